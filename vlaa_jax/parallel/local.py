"""Arrays across hosts: which data shards lie here, global arrays from local parts, and back."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from vlaa_jax.parallel import hosts
from vlaa_jax.parallel.mesh import batch_sharding, data_shards


def shard_hosts(mesh: Mesh) -> list[list[int]]:
    """For every data shard, the hosts that hold devices of it, lowest first."""
    rows = mesh.devices.reshape(data_shards(mesh), -1)
    return [sorted({device.process_index for device in row}) for row in rows]


def local_shards(mesh: Mesh) -> list[int]:
    """The data shards that this host holds devices of, in order."""
    if hosts.count() == 1:
        return list(range(data_shards(mesh)))
    return [shard for shard, held in enumerate(shard_hosts(mesh)) if hosts.index() in held]


def owned_shards(mesh: Mesh) -> list[int]:
    """The data shards that this host answers for: every shard is one host's alone."""
    if hosts.count() == 1:
        return list(range(data_shards(mesh)))
    return [shard for shard, held in enumerate(shard_hosts(mesh)) if held[0] == hosts.index()]


def owners(count: int, at_once: int, mesh: Mesh) -> np.ndarray:
    """The host that answers for each of `count` elements, dealt `at_once` to the data shards."""
    held = np.array([first for first, *_ in shard_hosts(mesh)])
    return held[np.arange(count) % at_once // (at_once // len(held))]


def put_local(tree: Any, mesh: Mesh) -> Any:
    """A batch on the mesh, split over the data shards.

    Args:
        tree: arrays whose first axis holds the parts of `local_shards`, in their order.
        mesh: the device mesh.
    """
    sharding = batch_sharding(mesh)
    if hosts.count() == 1:
        return jax.device_put(tree, sharding)
    mine, shards = local_shards(mesh), data_shards(mesh)

    def put(array: np.ndarray) -> jax.Array:
        size = len(array) // len(mine)

        def shard(where: Any) -> Any:
            at = mine.index((where[0].start or 0) // size) * size
            return array[at : at + size]

        shape = (size * shards, *array.shape[1:])
        return jax.make_array_from_callback(shape, sharding, shard)

    return jax.tree.map(put, tree)


def put_known(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array that every host holds whole, on the mesh."""
    if hosts.count() == 1:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda where: array[where])


def fetch(array: jax.Array | np.ndarray) -> np.ndarray:
    """An array as every host sees it whole; a collective operation where it is spread."""
    if isinstance(array, np.ndarray):
        return array
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def parts_of(shards: Sequence[int], rows: Sequence[Any], n_shards: int) -> list[Any]:
    """The rows that belong to some of the data shards, which have equal contiguous parts."""
    size = len(rows) // n_shards
    return [row for shard in shards for row in rows[shard * size : (shard + 1) * size]]
