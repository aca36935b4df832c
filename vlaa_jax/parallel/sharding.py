"""From logical axes to places on the mesh: one table of rules for parameters and activations.

What a dimension *is* stands beside the model (models/qwen_vl/axes.py); where it goes stands here.
A mesh axis cuts one dimension of an array, the first that asks for it. So "embed" of a parameter is
cut over fsdp, while an activation ``("batch", "embed")`` has given fsdp to its batch and keeps its
width whole: tokens stay cut over the batch axes all the way, and parameters are gathered to them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vlaa_jax.parallel.mesh import BATCH_AXES

Rules = Mapping[str, tuple[str, ...]]
Names = tuple[str | None, ...]
"""Logical axis of each dimension; None is never cut."""

TRAIN: Rules = {
    "layers": (),
    "batch": BATCH_AXES,
    "copies": ("data",),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    # The vision tower is small and its widths (3420, 16 heads) divide badly: fsdp only.
    "vision_embed": ("fsdp",),
    "vision_qkv": (),
    "vision_mlp": (),
}
"""Logical axis -> mesh axes. "copies" are rows dealt to copies of the parameters alone."""

SAMPLE: Rules = {**TRAIN, "embed": (), "vision_embed": ()}
"""Decoding reads every weight for every token: nothing is cut that would have to be gathered."""

TABLES: Mapping[str, Rules] = {"train": TRAIN, "sample": SAMPLE}


@dataclass(frozen=True)
class Layout:
    """A mesh and a table of rules. Static under jit.

    Attributes:
        mesh: the devices.
        table: a key of TABLES.
        units: per logical axis, into how many pieces it can be cut at most (a head stays whole);
            an axis that is absent can be cut anywhere.
    """

    mesh: Mesh
    table: str = "train"
    units: Mapping[str, int] = field(default_factory=dict, hash=False)

    def spec(self, shape: tuple[int, ...], names: Names, taken: tuple[str, ...] = ()) -> Any:
        """Which mesh axes cut each dimension.

        A dimension that its mesh axes do not divide stays whole: correct, only less thrifty.

        Args:
            shape: sizes of the dimensions.
            names: their logical axes.
            taken: mesh axes that may cut nothing.
        """
        used, places = set(taken), list[str | tuple[str, ...] | None]()
        for size, name in zip(shape, names, strict=True):
            axes = TABLES[self.table][name] if name is not None else ()
            axes = tuple(axis for axis in axes if axis not in used and self.mesh.shape[axis] > 1)
            parts = prod(self.mesh.shape[axis] for axis in axes)
            pieces = self.units.get(name or "", size)
            if not axes or size % parts or pieces % parts:
                places.append(None)
                continue
            used.update(axes)
            places.append(axes if len(axes) > 1 else axes[0])
        # As the compiler words its answers: a program's results fit the next one's arguments.
        while places and places[-1] is None:
            places.pop()
        return PartitionSpec(*places)

    def sharding(self, shape: tuple[int, ...], names: Names) -> NamedSharding:
        """Where an array lies."""
        return NamedSharding(self.mesh, self.spec(shape, names))

    def pin(self, array: jax.Array, *names: str | None) -> jax.Array:
        """The same array, with its place said to the compiler; on one device nothing at all."""
        if self.mesh.size == 1:
            return array
        return jax.lax.with_sharding_constraint(array, self.sharding(array.shape, names))

    def pin_gathered(self, array: jax.Array, *names: str | None) -> jax.Array:
        """A parameter as it is used beside activations: not cut over the batch axes."""
        if self.mesh.size == 1:
            return array
        spec = self.spec(array.shape, names, taken=BATCH_AXES)
        return jax.lax.with_sharding_constraint(array, NamedSharding(self.mesh, spec))

    def copies_of(self, name: str, count: int) -> int:
        """How often `count` units of an axis must be repeated so that the mesh divides them."""
        parts = prod(self.mesh.shape[axis] for axis in TABLES[self.table][name])
        return parts // count if parts > count and parts % count == 0 else 1


def param_sharding(path: str, shape: tuple[int, ...], axes: Mapping, layout: Layout) -> Any:
    """Where one parameter lives; a path that `axes` does not name is on every device."""
    return layout.sharding(shape, axes.get(path, (None,) * len(shape)))


def tree_shardings(tree: Any, axes: Mapping, layout: Layout | Mesh) -> Any:
    """Shardings of a nested dict of arrays (or of their shapes), like `tree`.

    Args:
        tree: parameters.
        axes: dotted path -> logical axes of each dimension.
        layout: where axes go; a mesh alone stands for its training layout.
    """
    where = Layout(layout) if isinstance(layout, Mesh) else layout

    def place(path: tuple, leaf: Any) -> NamedSharding:
        return param_sharding(dotted(path), leaf.shape, axes, where)

    return jax.tree_util.tree_map_with_path(place, tree)


def places_of(tree: Any) -> Any:
    """The shardings that arrays (or shapes with a place) have, for out_shardings."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def dotted(path: tuple) -> str:
    """Path of a leaf as ``a.b.c``."""
    return ".".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
