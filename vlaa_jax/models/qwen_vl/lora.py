"""Low-rank adapters (LoRA, arXiv 2106.09685) over the stacked layers.

An adapted linear map keeps its kernel and gains a branch ``alpha / rank * (x @ a) @ b``, with `a`
and `b` stacked over layers like the kernel, so that the scan over layers takes them along. In the
parameter tree they are ``<linear>.lora.a`` [L, in, rank] and ``<linear>.lora.b`` [L, rank, out].

`b` starts at zero: a fresh adapter changes nothing. The base model is the same tree without the
branches (`without_adapters`) under the structure of `split_model` without `lora`; it shares every
array, so a reference model costs no memory.

There is no dropout: a policy that forgets at random has no single log-probability to compare.
"""

import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vlaa_jax.models.qwen_vl.layers import Linear, LoraBranch
from vlaa_jax.models.qwen_vl.trees import Tree, is_adapter, select
from vlaa_jax.parallel.sharding import dotted
from vlaa_jax.schema import UserError
from vlaa_jax.settings.shared import LoraSettings

Array = jax.Array


def add_branches(model: nnx.Module, settings: LoraSettings, rngs: nnx.Rngs) -> None:
    """Gives the named linear maps of a model their branches.

    Args:
        model: a QwenVL, real or abstract (inside `nnx.eval_shape`).
        settings: rank, alpha and the names of the linear maps, by their last part
            (``q_proj``; in the vision tower also ``qkv``, ``proj``, ``mlp_0`` ...).
        rngs: of the new arrays.

    Raises:
        UserError: a name fits no linear map of its part of the model.
    """
    unused = {
        **{("modules", name): _names_of(model, "text") for name in settings.modules},
        **{
            ("vision_modules", name): _names_of(model, "vision") for name in settings.vision_modules
        },
    }
    for linear_path, linear in _linears(model):
        part, name = linear_path[0], linear_path[-1]
        field = "modules" if part == "text" else "vision_modules"
        if part not in ("text", "vision") or name not in getattr(settings, field):
            continue
        unused.pop((field, name), None)
        *stack, inputs, outputs = linear.kernel[...].shape
        linear.lora = LoraBranch(
            inputs,
            outputs,
            rank=settings.rank,
            scale=settings.alpha / settings.rank,
            stack=tuple(stack),
            rngs=rngs,
        )
    for (field, name), known in unused.items():
        raise UserError(
            f"model.lora.{field}: this model has no {name!r}; it has {', '.join(known)}"
        )


def _linears(model: nnx.Module) -> Iterator[tuple[tuple[Any, ...], Linear]]:
    """Linear maps and their paths; the output head is left out."""
    for path, module in list(nnx.iter_modules(model)):
        if isinstance(module, Linear) and len(path) > 1:
            yield path, module


def _names_of(model: nnx.Module, part: str) -> list[str]:
    return sorted({str(path[-1]) for path, _ in _linears(model) if path[0] == part})


def init_branches(abstract: Tree, seed: int) -> dict[str, Any]:
    """Fresh branches: `a` uniform, `b` zero, as PEFT starts them.

    PEFT draws `a` with ``kaiming_uniform_(a=sqrt(5))``, which is uniform in +-1/sqrt(inputs).

    Args:
        abstract: nested dict of jax.ShapeDtypeStruct that holds branches alone.
        seed: every array's numbers are a function of it and of the array's path.

    Returns:
        Arrays of the same tree, dtypes and shardings.
    """

    def make() -> Any:
        def draw(path: Any, leaf: Any) -> Array:
            return _initial(dotted(path), leaf, seed)

        return jax.tree_util.tree_map_with_path(draw, abstract)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    placed = all(s is not None for s in jax.tree.leaves(shardings, is_leaf=lambda s: s is None))
    return jax.jit(make, out_shardings=shardings if placed else None)()


def _initial(path: str, leaf: jax.ShapeDtypeStruct, seed: int) -> Array:
    if path.endswith(".b"):
        return jnp.zeros(leaf.shape, leaf.dtype)
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
    bound = leaf.shape[-2] ** -0.5
    return jax.random.uniform(key, leaf.shape, leaf.dtype, minval=-bound, maxval=bound)


def has_adapters(params: Tree) -> bool:
    """Whether a parameter tree holds any branch."""
    return bool(adapters_of(params))


def without_adapters(params: Tree) -> dict[str, Any]:
    """The base model's parameters: the same arrays, branches left out."""
    return select(params, lambda path: not is_adapter(path))


def adapters_of(params: Tree) -> dict[str, Any]:
    """The branches alone."""
    return select(params, is_adapter)
