"""The policy's weights as decoding wants them: cast once, and laid out so that nothing is gathered.

Training keeps float32 masters cut over the mesh. Every token of a rollout reads every weight, so
once per rollout the matrices are cast to the activation dtype, as each product would do, and laid
out by a second table of rules on the same devices in the same order: whole where they fit, else cut
over heads and columns. Biases and norms stay float32: a rounded bias changes results.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from vlaa_jax.models.qwen_vl.axes import PARAM_AXES, layout
from vlaa_jax.models.qwen_vl.model import QwenVL
from vlaa_jax.parallel.mesh import AXES
from vlaa_jax.parallel.sharding import Layout, dotted, tree_shardings
from vlaa_jax.schema import UserError

Params = Mapping[str, Any]

SAMPLE = "sample"
"""The table of rules that decoding goes by, of parallel.sharding.TABLES."""

MATRICES = ("kernel", "embedding", "a", "b")
"""Last names of parameters that are only ever multiplied or looked up in the activation dtype."""


def sampling_mesh(mesh: Mesh, tensor: int = 0) -> Mesh:
    """The mesh of decoding: the same devices in the same order, weights cut `tensor` ways.

    Args:
        mesh: the mesh of training.
        tensor: parts that heads and columns are cut into; 0 takes the training mesh's.

    Raises:
        UserError: `tensor` is no multiple of the training mesh's, or does not divide the devices.
    """
    own = mesh.shape["tensor"]
    tensor = tensor or own
    if tensor % own or mesh.size % tensor:
        raise UserError(
            f"sampling cuts weights {tensor} ways: it must be a multiple of mesh.tensor={own} "
            f"that divides the {mesh.size} devices"
        )
    return Mesh(mesh.devices.reshape(-1, 1, tensor), AXES)


def is_matrix(path: str) -> bool:
    """Whether the parameter at a dotted path is cast for decoding."""
    return path.rpartition(".")[2] in MATRICES


class SamplingWeights:
    """Makes the weights of a rollout.

    Args:
        graphdef: structure of the model.
        mesh: where decoding wants them, a `sampling_mesh`; None leaves them where they are.
    """

    def __init__(self, graphdef: nnx.GraphDef, mesh: Mesh | None) -> None:
        self._graphdef, self._mesh = graphdef, mesh
        self._programs: dict[Any, Any] = {}

    def model(self, params: Params) -> QwenVL:
        """The model with these parameters, laid out for decoding."""
        model: QwenVL = nnx.merge(self._graphdef, params)
        if self._mesh is None:
            return model
        return model.lay_out(layout(model.config, self._mesh, SAMPLE))

    @property
    def compile_count(self) -> int:
        """Programs compiled so far."""
        return sum(int(f._cache_size()) for f in self._programs.values())

    def __call__(self, params: Params) -> Params:
        """The weights to decode with; the very same arrays where nothing has to change.

        The masters are left as they are. What this function gave comes back unchanged, so it may
        be called ahead of a rollout, for instance to time it.
        """
        model = self.model(params)
        where = places_for(params, model.compute.layout)
        leaves, structure = jax.tree.flatten(params)
        places = [None] * len(leaves) if where is None else jax.tree.leaves(where)
        dtypes = jax.tree.leaves(rollout_dtypes(params, model.matrix_dtype))
        moved = [self._move(*each) for each in zip(leaves, dtypes, places, strict=True)]
        if all(new is old for new, old in zip(moved, leaves, strict=True)):
            return params
        return jax.tree.unflatten(structure, moved)

    def _move(self, leaf: jax.Array, dtype: Any, place: NamedSharding | None) -> jax.Array:
        """One array at a time: all in one program would need twice the memory for a while."""
        if leaf.dtype == dtype and (place is None or _lies(leaf, place)):
            return leaf
        key = (dtype, place)
        if key not in self._programs:
            self._programs[key] = jax.jit(lambda a: a.astype(dtype), out_shardings=place)
        return self._programs[key](leaf)


def places_for(params: Params, where: Layout | None) -> Any:
    """Shardings of the weights of a rollout, like `params`; None where they stay."""
    return None if where is None else tree_shardings(params, PARAM_AXES, where)


def rollout_dtypes(params: Params, dtype: Any) -> Any:
    """Types of the weights of a rollout, like `params`.

    Matrices get `dtype`, as their products cast them; biases and norms stay as they are.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.dtype(dtype) if is_matrix(dotted(path)) else leaf.dtype, params
    )


def _lies(leaf: jax.Array, place: NamedSharding) -> bool:
    return isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(place, leaf.ndim)
