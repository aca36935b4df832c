"""The state of a training run on the device: what an optimizer update changes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

Array = jax.Array
Tree = Mapping[str, Any]


class TrainState(NamedTuple):
    """What an optimizer update changes.

    Attributes:
        trainable: nested dict of the parameters that train.
        opt_state: optimizer state of the same.
        updates: int32, updates done.
        skipped: int32, updates left out because a gradient was not finite.
        still: int32, updates in which no term of the loss had a gradient.
    """

    trainable: Tree
    opt_state: Any
    updates: Array
    skipped: Array
    still: Array


def new_state(
    trainable: Tree, optimizer: optax.GradientTransformation, everywhere: NamedSharding
) -> TrainState:
    """State before the first update.

    Moments are placed like their parameters. Scalars are put on `everywhere`, the whole mesh: a
    checkpoint restores arrays to where they were, and a scalar left on one device would not go
    together with sharded parameters after a resume.
    """
    places = _optimizer_places(trainable, optimizer, everywhere)
    opt_state = jax.jit(optimizer.init, out_shardings=places)(trainable)
    zeros = (jax.device_put(jnp.int32(0), everywhere) for _ in range(3))
    return TrainState(trainable, opt_state, *zeros)


def abstract_state(
    trainable: Tree, optimizer: optax.GradientTransformation, everywhere: NamedSharding
) -> TrainState:
    """Shapes, dtypes and places of `new_state`, to restore a checkpoint into; holds no memory."""
    places = _optimizer_places(trainable, optimizer, everywhere)

    def at(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    shapes = jax.eval_shape(optimizer.init, trainable)
    count: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    params = jax.tree.map(to_shape, trainable)
    return TrainState(params, jax.tree.map(at, shapes, places), count, count, count)


def to_shape(array: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and place of an array."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _optimizer_places(
    trainable: Tree, optimizer: optax.GradientTransformation, everywhere: NamedSharding
) -> Any:
    """Shardings of the optimizer state: a moment lies where its parameter lies."""
    leaves = jax.tree_util.tree_leaves_with_path(trainable)
    by_path = {path: leaf.sharding for path, leaf in leaves}

    def place(path: tuple, leaf: Any) -> Any:
        if not leaf.ndim:
            return everywhere
        suffixes = (path[start:] for start in range(len(path)))
        return next((by_path[suffix] for suffix in suffixes if suffix in by_path), everywhere)

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, trainable))
