"""Building blocks shared by the vision tower and the decoder, at Hugging Face's rounding points.

Every module may carry a leading stack axis (``stack=(depth,)``): the parameters of all layers of a
kind lie in one array, and `scan_layers` runs the layer body over that axis, so that compile time
does not grow with depth.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from vlaa_jax.parallel.sharding import Layout, Names

Array = jax.Array
DType = Any

HIGHEST = lax.Precision.HIGHEST


class KernelPlace(NamedTuple):
    """Where a kernel [D, F] and what comes out of it lie, and how it is read.

    Attributes:
        layout: mesh and rules; None on one device.
        axes: logical axes of D and F.
        exact: precision of float32 products with kernels that are read `rounded`; None reads them
            in the type of what they are multiplied with.
    """

    layout: Layout | None
    axes: Names
    exact: lax.Precision | None = None


@jax.custom_jvp
def rounded(x: Array) -> Array:
    """The nearest bfloat16 numbers, in x's type; gradients go straight through.

    A cast there and back would not do: compilers may keep the digits.
    """
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


rounded.defjvps(lambda tangent, _, x: tangent)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x_ND: Array, kernel_DF: Array, place: KernelPlace | None = None) -> Array:
    """``x @ kernel`` with operands in x's dtype and float32 accumulation and result.

    The gradient keeps its operands in x's dtype too. Plain `jnp.dot` with
    ``preferred_element_type`` would multiply a float32 cotangent with bfloat16 weights, which
    runs at float32 speed on every backend.

    With a place, the kernel is cast first and gathered then, for the backward pass once more, and
    its gradient is reduced to where the kernel lies.

    Shapes: x [N, D], kernel [D, F] of any float dtype; returns float32 [N, F].
    """
    return _dot(x_ND, _ready(kernel_DF, x_ND.dtype, place), ((1,), (0,)), place)


def _ready(kernel_DF: Array, dtype: DType, place: KernelPlace | None) -> Array:
    if place is None:
        return kernel_DF.astype(dtype)
    if place.exact is None:
        kernel_DF = kernel_DF.astype(dtype)
    else:
        kernel_DF = rounded(kernel_DF).astype(jnp.bfloat16)  # half the bytes to gather
    if place.layout is not None:
        kernel_DF = place.layout.pin_gathered(kernel_DF, *place.axes)
    return kernel_DF.astype(dtype)


def _dot(
    a: Array,
    b: Array,
    contract: tuple[tuple[int], tuple[int]],
    place: KernelPlace | None = None,
) -> Array:
    exact = place.exact if place is not None else None
    precision = (exact or HIGHEST) if a.dtype == jnp.float32 else None
    return lax.dot_general(
        a, b, (contract, ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def _matmul_fwd(
    x_ND: Array, kernel_DF: Array, place: KernelPlace | None
) -> tuple[Array, tuple[Array, Array]]:
    return matmul(x_ND, kernel_DF, place), (x_ND, kernel_DF)


def _matmul_bwd(
    place: KernelPlace | None, saved: tuple[Array, Array], ct_NF: Array
) -> tuple[Array, Array]:
    x_ND, kernel_DF = saved
    ct_NF = ct_NF.astype(x_ND.dtype)
    grad_x = _dot(ct_NF, _ready(kernel_DF, x_ND.dtype, place), ((1,), (1,)), place)
    grad_kernel = _dot(x_ND, ct_NF, ((0,), (0,)), place)
    if place is not None and place.layout is not None:
        grad_x = place.layout.pin(grad_x, "batch", place.axes[0])
        grad_kernel = place.layout.pin(grad_kernel, *place.axes)
    return grad_x.astype(x_ND.dtype), grad_kernel.astype(kernel_DF.dtype)


matmul.defvjp(_matmul_fwd, _matmul_bwd)


def matmul_out_first(x_ND: Array, kernel_FD: Array) -> Array:
    """`matmul` by a kernel that is stored the other way round; returns float32 [N, F].

    For a few rows on a CPU: there the second operand of a product is repacked on every call, and
    here that is x instead of the kernel. It takes 0.6 of the time at 16 rows. The barrier keeps XLA
    from turning the product around again.
    """
    y_FN = _dot(kernel_FD.astype(x_ND.dtype), x_ND, ((1,), (1,)))
    return lax.optimization_barrier(y_FN).T


class Linear(nnx.Module):
    """Affine map on the last axis of a 2-D array; optionally with a low-rank (LoRA) branch.

    Tokens are always flattened to [N, D] first: XLA's CPU backward of a 3-D product costs about
    twice that of the same product in 2-D.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        stack: tuple[int, ...] = (),
        rngs: nnx.Rngs,
        init_std: float = 0.02,
    ) -> None:
        shape = (*stack, in_features, out_features)
        self.kernel = nnx.Param(init_std * jax.random.normal(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((*stack, out_features))) if bias else None
        self.lora: LoraBranch | None = nnx.data(None)
        self.place: KernelPlace | None = nnx.static(None)
        self.out_first = False

    def __call__(self, x_ND: Array) -> Array:
        """Maps [N, in] to [N, out] in x's dtype; accumulation and bias are in float32."""
        x_ND = self._pin(x_ND, 0)
        if self.out_first:
            y_NF = matmul_out_first(x_ND, self.kernel[...])
        else:
            y_NF = matmul(x_ND, self.kernel[...], self.place)
        if self.lora is not None:
            y_NF = y_NF + self.lora(x_ND, self.place)
        if self.bias is not None:
            y_NF = y_NF + self.bias[...].astype(jnp.float32)
        return self._pin(y_NF.astype(x_ND.dtype), 1)

    def _pin(self, x: Array, side: int) -> Array:
        """What goes in (0) or comes out (1), cut over the batch and as the kernel is there."""
        if self.place is None or self.place.layout is None:
            return x
        return self.place.layout.pin(x, "batch", self.place.axes[side])


class LoraBranch(nnx.Module):
    """Low-rank update ``scale * (x @ a) @ b`` (arXiv 2106.09685), stacked like its Linear."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int,
        scale: float,
        stack: tuple[int, ...],
        rngs: nnx.Rngs,
    ) -> None:
        bound = in_features**-0.5
        shape_a = (*stack, in_features, rank)
        self.a = LoraParam(jax.random.uniform(rngs.params(), shape_a, minval=-bound, maxval=bound))
        self.b = LoraParam(jnp.zeros((*stack, rank, out_features)))
        self.scale = scale

    def __call__(self, x_ND: Array, place: KernelPlace | None = None) -> Array:
        """Maps [N, in] to float32 [N, out]; `place` is that of the adapted kernel."""
        down = up = None
        if place is not None:  # the rank is never cut
            inputs, outputs = place.axes
            down, up = place._replace(axes=(inputs, None)), place._replace(axes=(None, outputs))
        low_NR = matmul(x_ND, self.a[...], down).astype(x_ND.dtype)
        return self.scale * matmul(low_NR, self.b[...], up)


class LoraParam(nnx.Param):
    """Marks the arrays that train when an adapter is used."""


class RMSNorm(nnx.Module):
    """Root-mean-square norm in the order of HF Qwen2RMSNorm.

    Statistics in float32, the normalised value is rounded to the activation dtype *before* the
    product with the weight. `nnx.RMSNorm` rounds once at the end and equals HF in bfloat16 on
    only three values out of four.
    """

    def __init__(self, features: int, *, eps: float, stack: tuple[int, ...] = ()) -> None:
        self.scale = nnx.Param(jnp.ones((*stack, features)))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        """Normalises the last axis; keeps shape and dtype."""
        x32 = x.astype(jnp.float32)
        x32 = x32 * lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return self.scale[...].astype(x.dtype) * x32.astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm of Qwen2-VL's vision tower: float32 throughout, one rounding at the end."""

    def __init__(self, features: int, *, eps: float, stack: tuple[int, ...] = ()) -> None:
        self.scale = nnx.Param(jnp.ones((*stack, features)))
        self.bias = nnx.Param(jnp.zeros((*stack, features)))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        """Normalises the last axis; keeps shape and dtype."""
        x32 = x.astype(jnp.float32)
        mean = jnp.mean(x32, axis=-1, keepdims=True)
        var = jnp.mean(jnp.square(x32 - mean), axis=-1, keepdims=True)
        y32 = (x32 - mean) * lax.rsqrt(var + self.eps)
        y32 = y32 * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return y32.astype(x.dtype)


def silu(x: Array) -> Array:
    """SiLU computed in float32 and rounded once, as torch does for bfloat16."""
    return jax.nn.silu(x.astype(jnp.float32)).astype(x.dtype)


def quick_gelu(x: Array) -> Array:
    """``x * sigmoid(1.702 x)`` with three roundings, as HF QuickGELUActivation."""
    # Scaled in float32: next to a bfloat16 array jax would round 1.702 itself to 1.703125.
    scaled = (1.702 * x.astype(jnp.float32)).astype(x.dtype)
    return x * jax.nn.sigmoid(scaled.astype(jnp.float32)).astype(x.dtype)


def gelu(x: Array) -> Array:
    """Exact (erf) GELU in float32, rounded once: the activation of the patch merger."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)


class GatedMlp(nnx.Module):
    """SwiGLU feed-forward block: ``down(silu(gate(x)) * up(x))``."""

    def __init__(
        self, width: int, hidden: int, *, bias: bool, stack: tuple[int, ...], rngs: nnx.Rngs
    ) -> None:
        self.gate_proj = Linear(width, hidden, bias=bias, stack=stack, rngs=rngs)
        self.up_proj = Linear(width, hidden, bias=bias, stack=stack, rngs=rngs)
        self.down_proj = Linear(hidden, width, bias=bias, stack=stack, rngs=rngs)

    def __call__(self, x_ND: Array) -> Array:
        """Maps [N, D] to [N, D]."""
        return self.down_proj(silu(self.gate_proj(x_ND)) * self.up_proj(x_ND))


class QuickGeluMlp(nnx.Module):
    """Two-layer feed-forward block of Qwen2-VL's vision tower."""

    def __init__(self, width: int, hidden: int, *, stack: tuple[int, ...], rngs: nnx.Rngs) -> None:
        self.fc1 = Linear(width, hidden, bias=True, stack=stack, rngs=rngs)
        self.fc2 = Linear(hidden, width, bias=True, stack=stack, rngs=rngs)

    def __call__(self, x_ND: Array) -> Array:
        """Maps [N, D] to [N, D]."""
        return self.fc2(quick_gelu(self.fc1(x_ND)))


REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "none": None,
}
"""What the backward pass keeps of a layer: nothing, the weight products, or everything."""


def unstack(layers: nnx.Module) -> list[nnx.Module]:
    """A module whose parameters have the stack axis first, as one module per layer.

    For loops around the layers on a CPU, with few rows: taken apart outside of the loop, no weight
    is copied from its stack in every turn, and kernels lie as `matmul_out_first` wants them. The
    modules compute the same; they are not differentiated.
    """
    graphdef, state = nnx.split(layers)
    depth = jax.tree.leaves(state)[0].shape[0]
    single = [nnx.merge(graphdef, jax.tree.map(lambda a, i=i: a[i], state)) for i in range(depth)]
    for layer in single:
        for _, module in nnx.iter_modules(layer):
            if isinstance(module, Linear):
                module.kernel = nnx.Param(module.kernel[...].T)
                module.out_first = True
    return single


def scan_layers(
    layers: nnx.Module | list[nnx.Module],
    body: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any = None,
    *,
    remat: str = "none",
    unroll: int | bool = 1,
) -> tuple[Any, Any]:
    """Runs ``carry, y = body(layer, carry, x)`` over the stack axis of `layers`.

    Args:
        layers: a module whose parameters all have the stack axis first; or, from `unstack`, a list
            of modules, with a list of `xs`, for an unrolled loop that is not differentiated.
        body: gets one unstacked layer, the carry and the slice of `xs`.
        carry: initial carry.
        xs: pytree scanned over its first axis together with the parameters, or None.
        remat: a key of REMAT_POLICIES.
        unroll: scan unroll factor; XLA on CPU runs about 1.4x faster unrolled.

    Returns:
        The last carry and the stacked ``y``; a list of them if `layers` is one.
    """
    if isinstance(layers, list):
        ys = []
        for layer, x in zip(layers, xs, strict=True):
            carry, y = body(layer, carry, x)
            ys.append(y)
        return carry, ys
    graphdef, state = nnx.split(layers)

    def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
        layer_state, x = inputs
        return body(nnx.merge(graphdef, layer_state), carry, x)

    if remat != "none":
        step = jax.checkpoint(step, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return lax.scan(step, carry, (state, xs), unroll=unroll)
