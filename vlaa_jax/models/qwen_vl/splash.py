"""Attention by jax's splash kernel for TPU (jax.experimental.pallas.ops.tpu.splash_attention).

The kernel skips tiles of scores that a static mask hides, and hides the rest by segments; scores
never leave the chip. A prompt with its completions is one stream ``[prompt | G slots]``: each slot
sees the prompt and itself. The prompt's last token and its padding are of segment 0, since the
completions begin with that token themselves.

The kernel does not scale scores: queries are scaled in float32 and rounded once more.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention

from vlaa_jax.models.qwen_vl.attention import Pattern

Array = jax.Array

LANES, BLOCK = 128, 512
SLOT_SHIFT = 20
"""Bits of a query's code that hold its position; its slot lies above them."""


class SlotMask(splash_attention.Mask):
    """A pattern over M positions, computed in the kernel from a code of each query.

    What fills positions up behind the real ones are slots of their own.

    Attributes:
        q_sequence: int32 [M], position and slot of each query.
        mask_function: whether queries of some codes see keys at some positions.
    """

    def __init__(self, pattern: Pattern, real: int, positions: int) -> None:
        self.key, self.positions = (pattern, real, positions), positions
        at, first, length = np.arange(positions), real, real
        if pattern.groups:
            first = pattern.prompt
            length = (real - first) // pattern.groups
        slot = np.maximum(at - first, 0) // length
        if positions >> SLOT_SHIFT or int(slot.max()) >> (31 - SLOT_SHIFT):
            raise ValueError(f"a stream of {positions} positions is too long for the kernel's mask")
        self.q_sequence = (at + (slot << SLOT_SHIFT)).astype(np.int32)
        self.mask_function = partial(_slots, first, length)

    @property
    def shape(self) -> tuple[int, int]:
        """Queries and keys."""
        return self.positions, self.positions

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """The mask of some queries and keys."""
        queries, keys = index
        at_k = np.arange(self.positions)[keys]
        return self.mask_function(self.q_sequence[queries][:, None], at_k[None])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SlotMask) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _slots(first: int, length: int, code_q: Any, at_k: Any) -> Any:
    at_q = code_q & ((1 << SLOT_SHIFT) - 1)
    own = first + (code_q >> SLOT_SHIFT) * length
    return (at_k <= at_q) & ((at_k < first) | (at_k >= own))


@cache
def _kernel(pattern: Pattern, real: int, heads: int, block: int, interpret: bool) -> Any:
    """The kernel of a shape; a long stream's mask takes seconds to look through."""
    positions = -(-real // block) * block
    mask: Any = splash_attention.FullMask((positions, positions))
    if pattern.causal:
        mask = SlotMask(pattern, real, positions)
    blocks = splash_attention.BlockSizes(*(block,) * 8)
    with jax.ensure_compile_time_eval():  # kept beyond the trace that asks first
        kernel = splash_attention.make_splash_mha(
            splash_attention.MultiHeadMask([mask] * heads),
            block_sizes=blocks,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)


def attend(
    q_BMNH: Array,
    k_BMKH: Array,
    v_BMKH: Array,
    segments_BM: Array | None,
    pattern: Pattern,
    *,
    interpret: bool = False,
) -> Array:
    """Attention within streams, as `attention.dense`; returns [B, M, N, H] in q's dtype."""
    length, heads, head_dim = q_BMNH.shape[1:]
    block = min(BLOCK, -(-length // LANES) * LANES)
    positions = -(-length // block) * block
    kernel = _kernel(pattern, length, heads, block, interpret)
    q = (q_BMNH.astype(jnp.float32) * head_dim**-0.5).astype(q_BMNH.dtype)
    q, k, v = (_filled(a, positions).swapaxes(1, 2) for a in (q, k_BMKH, v_BMKH))
    if segments_BM is None and pattern.causal:
        out = jax.vmap(kernel)(q, k, v)  # what fills up comes last and is not seen
    else:
        if segments_BM is None:
            segments_BM = jnp.zeros(q_BMNH.shape[:2], jnp.int32)
        ids = _filled(segments_BM.astype(jnp.int32), positions, -1)
        out = jax.vmap(kernel)(q, k, v, splash_attention.SegmentIds(ids, ids))
    return out.swapaxes(1, 2)[:, :length]


def _filled(array: Array, positions: int, value: int = 0) -> Array:
    missing = positions - array.shape[1]
    if not missing:
        return array
    widths = ((0, 0), (0, missing), *((0, 0),) * (array.ndim - 2))
    return jnp.pad(array, widths, constant_values=value)
