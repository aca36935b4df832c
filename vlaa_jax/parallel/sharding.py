"""From logical axes of parameters to places on the mesh: one table of rules."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

RULES: dict[str, str | None] = {
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    # The vision tower is small and its widths (3420, 16 heads) divide badly: fsdp only.
    "vision_embed": "fsdp",
    "vision_qkv": None,
    "vision_mlp": None,
}
"""Logical axis -> mesh axis (None: replicated)."""


def param_sharding(path: str, shape: tuple[int, ...], axes: Mapping, mesh: Mesh) -> NamedSharding:
    """Where one parameter lives.

    A dimension that its mesh axis does not divide is replicated: correct, only less thrifty.

    Args:
        path: dotted path of the parameter.
        shape: its shape.
        axes: dotted path -> logical axes; a path that is absent is replicated.
        mesh: the device mesh.
    """
    names = axes.get(path, (None,) * len(shape))
    spec = []
    for size, name in zip(shape, names, strict=True):
        mesh_axis = RULES[name] if name is not None else None
        fits = mesh_axis is not None and size % mesh.shape[mesh_axis] == 0
        spec.append(mesh_axis if fits else None)
    return NamedSharding(mesh, PartitionSpec(*spec))


def tree_shardings(tree: Any, axes: Mapping, mesh: Mesh) -> Any:
    """Shardings of a nested dict of arrays (or of their shapes), like `tree`."""

    def place(path: tuple, leaf: Any) -> NamedSharding:
        return param_sharding(dotted(path), leaf.shape, axes, mesh)

    return jax.tree_util.tree_map_with_path(place, tree)


def dotted(path: tuple) -> str:
    """Path of a leaf as ``a.b.c``."""
    return ".".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
