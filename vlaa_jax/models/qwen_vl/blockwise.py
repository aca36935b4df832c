"""Attention by tiles: scores of a few queries on a few keys at a time, forward and backward.

The forward pass keeps its result and, per query, the logarithm of the softmax's denominator; the
backward pass makes each tile's scores again from them (arXiv 2205.14135, 2307.08691). Memory is
linear in length. Queries may meet their keys in several *parts* (a group's prompt, the completion
itself): all parts share one softmax, so each part's backward pass is given the denominator and the
result of all of them together. Parts that are merged by their own denominators alone would give
right values and wrong gradients of queries and keys.

Plain XLA: it runs anywhere, and no accelerator's fast memory is used on purpose. Tiles that the
pattern hides are never computed; the list of the others is fixed while tracing, so loops have known
lengths. Where a loop of unknown length costs nothing (a CPU), tiles whose queries and keys have no
segment in common are left out too, row by row.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import lax

from vlaa_jax.models.qwen_vl.attention import F32, MASKED, Pattern, precision_of, scaled_scores

Array = jax.Array

BLOCK = 512
"""Most queries, and most keys, of a tile."""
STEP = 64
"""Where a stream is cut, blocks are multiples of this."""
TILE = 1 << 24
"""Most scores of a tile, over all rows and heads of a device (64 MiB of float32)."""


class Part(NamedTuple):
    """Keys that queries [B, K, G, R, T, H] meet: R query heads share each of K key heads.

    Attributes:
        k_BKFSH: keys of each of F = G sequences, or of F = 1 that all G share.
        v_BKFSH: values.
        q_segments_BT: int; a query sees keys of its own segment. None: no segments.
        k_segments_BS: int, likewise.
    """

    k_BKFSH: Array
    v_BKFSH: Array
    q_segments_BT: Array | None = None
    k_segments_BS: Array | None = None


def attend(
    q_BMNH: Array,
    k_BMKH: Array,
    v_BMKH: Array,
    segments_BM: Array | None,
    pattern: Pattern,
    *,
    skips: bool = False,
) -> Array:
    """Attention within streams, as `attention.dense`; returns [B, M, N, H] in q's dtype.

    With `skips`, tiles without a segment in common are left out while it runs.
    """
    if skips and segments_BM is not None and q_BMNH.shape[0] > 1:

        def row(arrays: tuple[Array, ...]) -> Array:
            q, k, v, segments = (a[None] for a in arrays)
            return attend(q, k, v, segments, pattern, skips=True)[0]

        return lax.map(row, (q_BMNH, k_BMKH, v_BMKH, segments_BM))
    kv_heads, cut = k_BMKH.shape[2], pattern.prompt if pattern.groups else q_BMNH.shape[1]
    q = rearrange(q_BMNH, "b m (k r) h -> b k 1 r m h", k=kv_heads)
    k, v = (rearrange(a, "b m k h -> b k 1 m h") for a in (k_BMKH, v_BMKH))
    shared = Part(k[..., :cut, :], v[..., :cut, :])
    if not pattern.groups:
        shared = shared._replace(q_segments_BT=segments_BM, k_segments_BS=segments_BM)
        return _to_stream(_padded(q, [shared], (pattern.causal,), skips))
    assert segments_BM is not None
    prompt = _padded(q[..., :cut, :], [shared], (True,), skips)
    spread = partial(rearrange, pattern="b k 1 (g t) h -> b k g t h", g=pattern.groups)
    own = Part(spread(k[..., cut:, :]), spread(v[..., cut:, :]))
    q_own = rearrange(q[..., cut:, :], "b k 1 r (g t) h -> b k g r t h", g=pattern.groups)
    ones_BT = jnp.ones((q.shape[0], q_own.shape[4]), segments_BM.dtype)
    shared = shared._replace(q_segments_BT=ones_BT, k_segments_BS=segments_BM[:, :cut])
    completions = _padded(q_own, [shared, own], (False, True), skips)
    return jnp.concatenate([_to_stream(prompt), _to_stream(completions)], axis=1)


def _to_stream(out_BKGRTH: Array) -> Array:
    return rearrange(out_BKGRTH, "b k g r t h -> b (g t) (k r) h")


def _padded(q: Array, parts: Sequence[Part], causal: tuple[bool, ...], skips: bool) -> Array:
    """`_attend` with positions filled up to whole blocks; hides the filling."""
    length = q.shape[4]
    filled = tuple(
        Part(
            _fill(part.k_BKFSH, 3),
            _fill(part.v_BKFSH, 3),
            _fill(part.q_segments_BT, 1),
            _fill(part.k_segments_BS, 1),
        )
        for part in parts
    )
    static = tuple(
        Fixed(own, part.k_BKFSH.shape[3], skips and part.k_segments_BS is not None)
        for own, part in zip(causal, parts, strict=True)
    )
    return _attend(static, _fill(q, 4), filled)[..., :length, :]


def _block(length: int) -> int:
    """Positions of a block: all of them, or about BLOCK."""
    count = -(-length // BLOCK)
    return length if count == 1 else -(-length // count // STEP) * STEP


def _fill(array: Array | None, axis: int) -> Any:
    if array is None:
        return None
    length = array.shape[axis]
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, -length % _block(length))
    return jnp.pad(array, widths) if widths[axis][1] else array


class Fixed(NamedTuple):
    """What is known of a part while tracing.

    Attributes:
        causal: its keys stand where its queries do, and nobody sees what comes later.
        real: keys that are no filling.
        skips: tiles without a segment in common are left out.
    """

    causal: bool
    real: int
    skips: bool


Static = tuple[Fixed, ...]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: Static, q: Array, parts: tuple[Part, ...]) -> Array:
    return _forward(static, q, parts)[0]


def _forward(static: Static, q: Array, parts: tuple[Part, ...]) -> tuple[Array, Any]:
    found = [_part_forward(s, q, part) for s, part in zip(static, parts, strict=True)]
    if len(found) == 1:
        out, log_z = found[0]
    else:
        log_z = jax.nn.logsumexp(jnp.stack([log for _, log in found]), axis=0)
        out = jnp.zeros(q.shape, F32)
        for own, log in found:
            out += jnp.exp(log - log_z)[..., None] * own
    out = out.astype(q.dtype)
    return out, (q, parts, out, log_z)


def _backward(static: Static, saved: Any, ct: Array) -> tuple[Array, tuple[Part, ...]]:
    q, parts, out, log_z = saved
    ct = ct.astype(q.dtype)
    # Sum over keys of probability times its cotangent, in one softmax over all parts.
    mean = jnp.sum(ct.astype(F32) * out.astype(F32), axis=-1)
    grad_q, grads = jnp.zeros((), F32), []
    for own_static, part in zip(static, parts, strict=True):
        own_q, grad_k, grad_v = _part_backward(own_static, q, part, ct, log_z, mean)
        grad_q += own_q
        keys = (grad_k.astype(part.k_BKFSH.dtype), grad_v.astype(part.v_BKFSH.dtype))
        grads.append(Part(*keys, *(_no_gradient(a) for a in part[2:])))
    return grad_q.astype(q.dtype), tuple(grads)


def _no_gradient(segments: Array | None) -> Any:
    return None if segments is None else np.zeros(segments.shape, jax.dtypes.float0)


_attend.defvjp(_forward, _backward)


class _Tiling:
    """The tiles of a part, and how to cut arrays to them."""

    def __init__(self, fixed: Fixed, q: Array, part: Part) -> None:
        self.causal, self.real, self.skips = fixed
        self.q_block, self.k_block = _block(q.shape[4]), _block(part.k_BKFSH.shape[3])
        at_once = q.size // (q.shape[4] * q.shape[5])
        while at_once * self.q_block * self.k_block > TILE and self.q_block % 16 == 0:
            self.q_block //= 2
        places = np.ndindex(q.shape[4] // self.q_block, part.k_BKFSH.shape[3] // self.k_block)
        last = self.q_block - 1
        seen = [
            (i, j)
            for i, j in places
            if not self.causal or j * self.k_block <= i * self.q_block + last
        ]
        self.tiles = jnp.asarray(seen, jnp.int32)
        self.filled = part.k_BKFSH.shape[3] != self.real

    def run(self, step: Any, start: Any, part: Part) -> Any:
        """The carry after ``step(carry, tile)`` over the tiles."""
        if not self.skips or part.q_segments_BT is None or part.k_segments_BS is None:
            return lax.scan(lambda carry, tile: (step(carry, tile), None), start, self.tiles)[0]
        (low_q, high_q), (low_k, high_k) = (
            (reach(ids.reshape(ids.shape[0], -1, size), axis=2) for reach in (jnp.min, jnp.max))
            for ids, size in (
                (part.q_segments_BT, self.q_block),
                (part.k_segments_BS, self.k_block),
            )
        )
        i, j = self.tiles.T
        # Equal ids lie in both blocks' ranges; that some other pairs do too costs only time.
        meet = (low_q[:, i] <= high_k[:, j]) & (low_k[:, j] <= high_q[:, i])
        seen = jnp.any(meet, axis=0)
        chosen = self.tiles[jnp.argsort(~seen, stable=True)]
        return lax.fori_loop(0, jnp.sum(seen), lambda n, carry: step(carry, chosen[n]), start)

    def of_queries(self, array: Array, i: Array, axis: int) -> Array:
        """The block of queries i."""
        return lax.dynamic_slice_in_dim(array, i * self.q_block, self.q_block, axis)

    def of_keys(self, array: Array, j: Array, axis: int) -> Array:
        """The block of keys j."""
        return lax.dynamic_slice_in_dim(array, j * self.k_block, self.k_block, axis)

    def scores(self, q: Array, part: Part, i: Array, j: Array) -> Array:
        """Of tile (i, j), hidden ones MASKED: [B, K, F, R, q_block, k_block] in float32."""
        own, keys = self.of_queries(q, i, 4), self.of_keys(part.k_BKFSH, j, 3)
        flat = rearrange(own, "b k f r t h -> b k f (r t) h")
        scores = rearrange(
            scaled_scores(flat, keys), "b k f (r t) s -> b k f r t s", t=self.q_block
        )
        visible = self._visible(part, i, j)
        return scores if visible is None else jnp.where(visible, scores, MASKED)

    def _visible(self, part: Part, i: Array, j: Array) -> Array | None:
        at_q = i * self.q_block + jnp.arange(self.q_block)
        at_k = j * self.k_block + jnp.arange(self.k_block)
        tests = []
        if self.causal:
            tests.append(at_q[:, None] >= at_k)
        if self.filled:
            tests.append((at_k < self.real)[None])
        if part.q_segments_BT is not None and part.k_segments_BS is not None:
            q_ids = self.of_queries(part.q_segments_BT, i, 1)
            k_ids = self.of_keys(part.k_segments_BS, j, 1)
            same_BTS = q_ids[:, :, None] == k_ids[:, None, :]
            tests.append(same_BTS[:, None, None, None])
        visible = None
        for test in tests:
            visible = test if visible is None else visible & test
        return visible


def _put(array: Array, block: Array, start: Array, axis: int) -> Array:
    return lax.dynamic_update_slice_in_dim(array, block, start, axis)


def _product(spec: str, a: Array, b: Array) -> Array:
    return jnp.einsum(spec, a, b, precision=precision_of(b), preferred_element_type=F32)


def _part_forward(fixed: Fixed, q: Array, part: Part) -> tuple[Array, Array]:
    """Softmax over this part's keys alone: its result in float32, and log of its denominator."""
    lead, q = q.shape[:5], _folded(q, part)
    tiling = _Tiling(fixed, q, part)

    def step(carry: tuple[Array, Array, Array], tile: Array) -> tuple[Array, ...]:
        i, j = tile
        out, top, total = (tiling.of_queries(a, i, 4) for a in carry)
        scores = tiling.scores(q, part, i, j)
        higher = jnp.maximum(top, jnp.max(scores, axis=-1))
        exps = jnp.exp(scores - higher[..., None])
        keep = jnp.exp(top - higher)
        total = total * keep + jnp.sum(exps, axis=-1)
        values = tiling.of_keys(part.v_BKFSH, j, 3)
        mixed = _product("bkfrts,bkfsh->bkfrth", exps.astype(values.dtype), values)
        out = out * keep[..., None] + mixed
        news = zip(carry, (out, higher, total), strict=True)
        return tuple(_put(old, new, i * tiling.q_block, 4) for old, new in news)

    rows = q.shape[:5]
    start = jnp.zeros(q.shape, F32), jnp.full(rows, MASKED, F32), jnp.zeros(rows, F32)
    out, top, total = tiling.run(step, start, part)
    total = jnp.maximum(total, jnp.finfo(F32).tiny)  # queries that have met no key
    out = out / total[..., None]
    return out.reshape(*lead, -1), (top + jnp.log(total)).reshape(lead)


def _part_backward(
    fixed: Fixed, q: Array, part: Part, ct: Array, log_z: Array, mean: Array
) -> tuple[Array, Array, Array]:
    """Gradients of queries, keys and values in float32, given the softmax over all parts."""
    shape, scale = q.shape, q.shape[-1] ** -0.5
    q, ct, log_z, mean = (_folded(a, part) for a in (q, ct, log_z, mean))
    tiling = _Tiling(fixed, q, part)

    def step(carry: tuple[Array, Array, Array], tile: Array) -> tuple[Array, ...]:
        i, j = tile
        grad_q, grad_k, grad_v = carry
        q_i, ct_i, log_i, mean_i = (tiling.of_queries(a, i, 4) for a in (q, ct, log_z, mean))
        k_j, v_j = (tiling.of_keys(a, j, 3) for a in (part.k_BKFSH, part.v_BKFSH))
        weights = jnp.exp(tiling.scores(q, part, i, j) - log_i[..., None])
        to_weights = _product("bkfrth,bkfsh->bkfrts", ct_i, v_j)
        to_scores = weights * (to_weights - mean_i[..., None]) * scale
        weights, to_scores = weights.astype(v_j.dtype), to_scores.astype(k_j.dtype)
        more_q = _product("bkfrts,bkfsh->bkfrth", to_scores, k_j)
        more_k = _product("bkfrts,bkfrth->bkfsh", to_scores, q_i)
        more_v = _product("bkfrts,bkfrth->bkfsh", weights, ct_i)
        grad_q = _put(grad_q, tiling.of_queries(grad_q, i, 4) + more_q, i * tiling.q_block, 4)
        grad_k = _put(grad_k, tiling.of_keys(grad_k, j, 3) + more_k, j * tiling.k_block, 3)
        grad_v = _put(grad_v, tiling.of_keys(grad_v, j, 3) + more_v, j * tiling.k_block, 3)
        return grad_q, grad_k, grad_v

    start: Any = tuple(jnp.zeros(a.shape, F32) for a in (q, part.k_BKFSH, part.v_BKFSH))
    grad_q, grad_k, grad_v = tiling.run(step, start, part)
    return grad_q.reshape(shape), grad_k, grad_v


def _folded(array: Array, part: Part) -> Array:
    """[B, K, G, R, T, ...] as [B, K, F, G / F * R, T, ...]: queries that share keys together."""
    return array.reshape(*array.shape[:2], part.k_BKFSH.shape[2], -1, *array.shape[4:])
