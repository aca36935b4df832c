"""The device mesh: axes ``data``, ``fsdp``, ``tensor``.

``data`` replicates parameters, ``fsdp`` shards them and is gathered layer by layer, ``tensor``
splits heads and feed-forward columns. Batches are split over ``data`` and ``fsdp`` together. Where
devices are in several slices, whose network is slow between them, ``data`` alone crosses it: once
per update, for the sums of gradients.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from vlaa_jax.schema import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    slices: int = 0,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Builds the mesh.

    Args:
        data: size of the data axis; -1 takes what the other two leave.
        fsdp: size of the fsdp axis.
        tensor: size of the tensor axis.
        slices: parts of the devices that only ``data`` goes across; 0 takes what the devices say.
        devices: the devices to use; all of them by default.

    Raises:
        UserError: the sizes do not multiply to the number of devices, or ``data`` is not a multiple
            of the slices.
    """
    devices = list(devices if devices is not None else jax.devices())
    found = {slice_of(device) for device in devices}
    devices.sort(key=slice_of)  # keeps the order within a slice
    slices = slices or len(found)
    count = len(devices)
    if data == -1:
        if count % (fsdp * tensor):
            raise UserError(
                f"mesh: {count} devices cannot be divided by fsdp={fsdp} x tensor={tensor}; "
                "choose mesh.fsdp and mesh.tensor whose product divides the device count"
            )
        data = count // (fsdp * tensor)
    if data * fsdp * tensor != count:
        raise UserError(
            f"mesh: data={data} x fsdp={fsdp} x tensor={tensor} needs {data * fsdp * tensor} "
            f"devices but {count} are present; set mesh.data=-1 to use what is left"
        )
    if data % slices or (len(found) > 1 and slices % len(found)):
        raise UserError(
            f"mesh: data={data} is not a multiple of {max(slices, len(found))} slices; make "
            "mesh.fsdp x mesh.tensor fit into one slice, since only data goes across slices"
        )
    return Mesh(np.array(devices).reshape(data, fsdp, tensor), AXES)


def slice_of(device: jax.Device) -> int:
    """Number of the slice a device is in; 0 where the platform has none."""
    return int(getattr(device, "slice_index", 0) or 0)


def platform_of(mesh: Mesh | AbstractMesh) -> str:
    """Kind of the devices: cpu, gpu or tpu. A mesh of none is taken for one of TPUs."""
    return "tpu" if isinstance(mesh, AbstractMesh) else mesh.devices.flat[0].platform


def data_shards(mesh: Mesh) -> int:
    """Number of parts a batch is dealt into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First axis split over data and fsdp, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
