"""Log-probabilities and entropy of chosen tokens without ever holding [N, V] logits.

Logits of one long batch are gigabytes at a vocabulary of 152k. Here the N rows are cut into chunks;
a chunk's logits are made, reduced to three numbers per row, and forgotten. The backward pass makes
them again from the saved log-normaliser (three matrix products per chunk in all, the minimum for a
recomputed backward) and adds up the kernel's gradient in float32 whatever the kernel's type, which
plain differentiation of a loop over a bfloat16 kernel would not do.

Chunk i takes rows i, i + n, i + 2n, ... of n chunks, not a contiguous block: with the rows sharded
over devices in contiguous blocks, every chunk then has its share on every device.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from vlaa_jax.parallel.sharding import Layout

HEAD_AXES = ("embed", "vocab")
"""Logical axes of the output head."""

FORBIDDEN_LOGIT = -1e9
"""Logit of a forbidden id: its probability is exactly 0, yet sums over padding rows stay finite."""

CHUNK_ELEMENTS = 1 << 28
"""Default size of a chunk's logits per row shard (1 GiB of float32).

Large on purpose: every chunk reads the whole kernel and adds to a gradient of its size, so chunks
of few rows spend their time on memory traffic.
"""


def masked_logits(
    logits_NV: Float[Array, "*N V"], *, temperature: ArrayLike = 1.0, allowed_V: Array | None = None
) -> Float[Array, "*N V"]:
    """float32 logits / temperature, with ``FORBIDDEN_LOGIT`` where ``allowed_V`` is False.

    The one definition of the policy's distribution: the sampler draws from the softmax of this, and
    ``token_logprobs`` scores with it.
    """
    logits_NV = logits_NV.astype(jnp.float32) / temperature
    return logits_NV if allowed_V is None else jnp.where(allowed_V, logits_NV, FORBIDDEN_LOGIT)


def default_chunk(vocab_size: int, row_shards: int = 1) -> int:
    """Rows per chunk: a power of two within ``CHUNK_ELEMENTS`` logits on each row shard."""
    per_shard = max(CHUNK_ELEMENTS // vocab_size, 16)
    return row_shards * (1 << (per_shard.bit_length() - 1))


@dataclass(frozen=True)
class Chunking:
    """How N rows lie on devices and are cut into chunks. Static under jit.

    Attributes:
      chunk: rows whose logits are alive at a time, over all devices, of which N need be no
        multiple; None: ``default_chunk``.
      row_shards: number of equal contiguous blocks in which N lies on devices. Kernel gradients are
        kept apart per block until the end, so that they cross the mesh once and not once per chunk.
      layout: where rows and head lie on a mesh. The head is gathered once, before the loop over
        chunks, but for what is cut by vocabulary; its gradient is reduced once, behind it.

    Raises ValueError for a chunk or number of shards below 1.
    """

    chunk: int | None = None
    row_shards: int = 1
    layout: Layout | None = None

    def __post_init__(self) -> None:
        if (self.chunk is not None and self.chunk < 1) or self.row_shards < 1:
            sizes = f"{self.chunk} and {self.row_shards}"
            raise ValueError(f"chunk and row_shards must be at least 1, not {sizes}")

    def shape(self, n_rows: int, vocab_size: int) -> tuple[int, int]:
        """Rows of each chunk, evenly filled, and chunks."""
        chunk = self.chunk or default_chunk(vocab_size, self.row_shards)
        n_chunks = max(-(-n_rows // chunk), 1)
        return -(-n_rows // (n_chunks * self.row_shards)) * self.row_shards, n_chunks


WHOLE = Chunking()


def token_logprobs(
    hidden_ND: Float[Array, "N D"],
    kernel_DV: Float[Array, "D V"],
    targets_N: Int[Array, " N"],
    *,
    temperature: ArrayLike = 1.0,
    allowed_V: Bool[Array, " V"] | None = None,
    entropy_gradient: bool = False,
    chunking: Chunking = WHOLE,
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """log softmax(hidden @ kernel / temperature)[target] and the entropy in nats, both float32.

    Args:
      hidden_ND: final hidden states, after the last norm.
      kernel_DV: output head; for tied weights the transposed embedding. It is cast to the hidden
        states' type. bfloat16 products are accumulated in float32, the logits are never rounded,
        and neither is the gradient of a float32 head.
      targets_N: chosen ids. Ids outside [0, V) are clipped into it: mask such rows downstream.
      temperature: positive; a constant for differentiation.
      allowed_V: False for ids that must not be sampled (vision and padding tokens). A forbidden
        target has a log-probability near ``FORBIDDEN_LOGIT``.
      entropy_gradient: let gradients through the entropy (for an entropy bonus); otherwise it is
        a figure for reports.
      chunking: how rows are cut.

    Returns:
      (logprob_N, entropy_N); gradients flow to hidden_ND and kernel_DV.

    Raises ValueError for shapes that do not fit or a temperature that is not positive.
    """
    (n_rows, width), vocab_size = hidden_ND.shape, kernel_DV.shape[1]
    if kernel_DV.shape[0] != width or targets_N.shape != (n_rows,):
        raise ValueError(
            f"hidden {hidden_ND.shape}, kernel {kernel_DV.shape} and targets {targets_N.shape} "
            "must be [N, D], [D, V] and [N]"
        )
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    rows, n_chunks = chunking.shape(n_rows, vocab_size)
    padding = rows * n_chunks - n_rows
    targets_N = jnp.clip(targets_N, 0, vocab_size - 1)
    # Chunks lie on axis 1: row-major order puts neighbouring rows into different chunks.
    hidden_CnD = jnp.pad(hidden_ND, ((0, padding), (0, 0))).reshape(rows, n_chunks, width)
    targets_Cn = jnp.pad(targets_N, (0, padding)).reshape(rows, n_chunks)
    found = _chunked(
        (chunking.row_shards, entropy_gradient, chunking.layout),
        hidden_CnD.swapaxes(0, 1),
        kernel_DV,
        targets_Cn.T,
        jnp.asarray(temperature, jnp.float32),
        allowed_V,
    )
    logprob_N, entropy_N = (a_nC.T.reshape(-1)[:n_rows] for a_nC in found)
    return logprob_N, entropy_N if entropy_gradient else jax.lax.stop_gradient(entropy_N)


def _pin(layout: Layout | None, array: Array, *names: str | None) -> Array:
    return array if layout is None else layout.pin(array, *names)


def _product(spec: str, a: Array, b: Array) -> Array:
    """A product accumulated in float32; float32 operands are never rounded on the way in.

    Accelerators round float32 operands by default (TF32, bfloat16). The sampler does not, and the
    two must agree.
    """
    exact = a.dtype == b.dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if exact else None
    return jnp.einsum(spec, a, b, precision=precision, preferred_element_type=jnp.float32)


def _logits(
    hidden_CD: Array,
    kernel_DV: Array,
    temperature: Array,
    allowed_V: Array | None,
    layout: Layout | None,
) -> Array:
    product_CV = _product("cd,dv->cv", _pin(layout, hidden_CD, "batch", None), kernel_DV)
    product_CV = _pin(layout, product_CV, "batch", "vocab")
    return masked_logits(product_CV, temperature=temperature, allowed_V=allowed_V)


def _forward_chunk(
    hidden_CD: Array,
    targets_C: Array,
    kernel_DV: Array,
    temperature: Array,
    allowed_V: Array | None,
    layout: Layout | None,
) -> tuple[Array, Array, Array]:
    """(logprob, entropy, log-normaliser) per row of one chunk."""
    logits_CV = _logits(hidden_CD, kernel_DV, temperature, allowed_V, layout)
    top_C1 = jnp.max(logits_CV, axis=1, keepdims=True)
    shifted_CV = logits_CV - top_C1
    exp_CV = jnp.exp(shifted_CV)
    total_C = jnp.sum(exp_CV, axis=1)
    # H = log Z - E[logit]; a forbidden id adds 0 * -1e9.
    mean_C = jnp.sum(exp_CV * shifted_CV, axis=1) / total_C
    log_total_C = jnp.log(total_C)
    chosen_C = jnp.take_along_axis(shifted_CV, targets_C[:, None], axis=1)[:, 0]
    return chosen_C - log_total_C, log_total_C - mean_C, log_total_C + top_C1[:, 0]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(
    static: tuple[int, bool, Layout | None],
    hidden_nCD: Array,
    kernel_DV: Array,
    targets_nC: Array,
    temperature: Array,
    allowed_V: Array | None,
) -> tuple[Array, Array]:
    outputs, _ = _chunked_forward(static, hidden_nCD, kernel_DV, targets_nC, temperature, allowed_V)
    return outputs


def _chunked_forward(static, hidden_nCD, kernel_DV, targets_nC, temperature, allowed_V):  # type: ignore[no-untyped-def]
    layout, like = static[2], jnp.zeros((), kernel_DV.dtype)
    kernel_DV = kernel_DV.astype(hidden_nCD.dtype)
    if layout is not None:
        kernel_DV = layout.pin_gathered(kernel_DV, *HEAD_AXES)

    def one(chunk: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        return _forward_chunk(*chunk, kernel_DV, temperature, allowed_V, layout)

    logprob_nC, entropy_nC, log_z_nC = jax.lax.map(one, (hidden_nCD, targets_nC))
    saved = (hidden_nCD, kernel_DV, like, targets_nC, temperature, allowed_V, log_z_nC, entropy_nC)
    return (logprob_nC, entropy_nC), saved


def _chunked_backward(static, saved, cotangents):  # type: ignore[no-untyped-def]
    row_shards, entropy_gradient, layout = static
    hidden_nCD, kernel_DV, like, targets_nC, temperature, allowed_V, log_z_nC, entropy_nC = saved
    vocab_V = jnp.arange(kernel_DV.shape[1])

    def one(kernel_grad_sDV, chunk):  # type: ignore[no-untyped-def]
        hidden_CD, targets_C, log_z_C, entropy_C, g_logprob_C, g_entropy_C = chunk
        logits_CV = _logits(hidden_CD, kernel_DV, temperature, allowed_V, layout)
        logprobs_CV = logits_CV - log_z_C[:, None]
        probs_CV = jnp.exp(logprobs_CV)
        # d logprob / d logit = [v = target] - p;   d entropy / d logit = -p (log p + H)
        grad_CV = g_logprob_C[:, None] * ((vocab_V == targets_C[:, None]) - probs_CV)
        if entropy_gradient:
            grad_CV -= g_entropy_C[:, None] * probs_CV * (logprobs_CV + entropy_C[:, None])
        if allowed_V is not None:
            grad_CV = jnp.where(allowed_V, grad_CV, 0.0)
        grad_CV = (grad_CV / temperature).astype(jnp.result_type(hidden_CD, kernel_DV))
        hidden_grad_CD = _product("cv,dv->cd", grad_CV, kernel_DV)
        blocks = (row_shards, -1)
        kernel_grad_sDV += _product(
            "scd,scv->sdv",
            hidden_CD.reshape(*blocks, hidden_CD.shape[1]),
            grad_CV.reshape(*blocks, grad_CV.shape[1]),
        )
        kernel_grad_sDV = _pin(layout, kernel_grad_sDV, "batch", None, "vocab")
        return kernel_grad_sDV, hidden_grad_CD.astype(hidden_CD.dtype)

    start_sDV = jnp.zeros((row_shards, *kernel_DV.shape), jnp.float32)
    start_sDV = _pin(layout, start_sDV, "batch", None, "vocab")
    chunks = (hidden_nCD, targets_nC, log_z_nC, entropy_nC, *cotangents)
    kernel_grad_sDV, hidden_grad_nCD = jax.lax.scan(one, start_sDV, chunks)
    # Shards change places first and are summed then: a sum over shards alone comes out whole.
    kernel_grad_sDV = _pin(layout, kernel_grad_sDV, "copies", *HEAD_AXES)
    kernel_grad_DV = _pin(layout, jnp.sum(kernel_grad_sDV, axis=0), *HEAD_AXES)
    kernel_grad_DV = kernel_grad_DV.astype(like.dtype)
    no_grad = np.zeros(targets_nC.shape, jax.dtypes.float0)
    no_allowed = None if allowed_V is None else np.zeros(allowed_V.shape, jax.dtypes.float0)
    return hidden_grad_nCD, kernel_grad_DV, no_grad, jnp.zeros_like(temperature), no_allowed


_chunked.defvjp(_chunked_forward, _chunked_backward)
