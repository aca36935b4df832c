"""Attention over the layouts of the decoder and the vision tower, with all scores at once.

One operation serves everything: queries see keys where a boolean mask says so, softmax in float32.
The decoder's special case is *shared prefix + own suffix*: the G completions of a prompt attend
to one copy of the prompt's keys and, causally, to their own. This is the reference for the forms
that never hold their scores (attend.py), and what decoding and short streams use.

Every product runs as a plain batched matrix product, batch axes first and the contracted axis last,
with heads before positions. The transposes this asks for touch arrays of the size of q, never of
the size of the scores; letting einsum pick the layout costs XLA on CPU three to four times as much.
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from vlaa_jax.models.qwen_vl.layers import HIGHEST

Array = jax.Array

F32 = jnp.float32
MASKED = -1e30
"""Score of a hidden key: finite, so that a row without any visible key gives no NaN."""


class Pattern(NamedTuple):
    """Who sees whom in a stream of M positions, apart from its segments. Static under jit.

    Attributes:
        causal: nobody sees what comes later.
        prompt: with groups, positions of the prompt at the stream's beginning.
        groups: completions of equal length behind the prompt; each sees the prompt's positions of
            segment 1 and, causally, itself. What those of segment 0, the prompt's last token and
            its padding, are given is nobody's business: backends differ there. 0: none.
    """

    causal: bool = True
    prompt: int = 0
    groups: int = 0


CAUSAL, FULL = Pattern(), Pattern(causal=False)


def scaled_scores(q_XMH: Array, k_XSH: Array) -> Array:
    """Scaled scores in float32, [..., M, S]. The scale is applied to the product, as HF does."""
    scores = jnp.einsum(
        "...mh,...sh->...ms",
        q_XMH,
        k_XSH,
        precision=precision_of(q_XMH),
        preferred_element_type=F32,
    )
    return scores * q_XMH.shape[-1] ** -0.5


def _mix(weights_XMS: Array, v_XSH: Array) -> Array:
    return jnp.einsum(
        "...ms,...sh->...mh",
        weights_XMS.astype(v_XSH.dtype),
        v_XSH,
        precision=precision_of(v_XSH),
        preferred_element_type=F32,
    )


def precision_of(x: Array) -> jax.lax.Precision | None:
    """Of a product with such operands: float32 is not rounded on the way in."""
    return HIGHEST if x.dtype == F32 else None


def dense(
    q_BMNH: Array, k_BMKH: Array, v_BMKH: Array, segments_BM: Array | None, pattern: Pattern
) -> Array:
    """Attention within streams: everybody sees its own segment as far as the pattern lets it.

    Args:
        q_BMNH: queries.
        k_BMKH: keys; N is a multiple of K.
        v_BMKH: values.
        segments_BM: int segments; None where there is one.
        pattern: who sees whom.

    Returns:
        [B, M, N, H] in q's dtype.
    """
    if pattern.groups:
        return _dense_groups(q_BMNH, k_BMKH, v_BMKH, segments_BM, pattern)
    length = q_BMNH.shape[1]
    if segments_BM is None:
        mask = jnp.ones((1, length, length), bool)
    else:
        mask = segments_BM[:, :, None] == segments_BM[:, None, :]
    return masked_attention(q_BMNH, k_BMKH, v_BMKH, jnp.tril(mask) if pattern.causal else mask)


def _dense_groups(
    q: Array, k: Array, v: Array, segments_BM: Array | None, pattern: Pattern
) -> Array:
    assert segments_BM is not None
    prompts, cut = q.shape[0], pattern.prompt

    def split(a: Array) -> tuple[Array, Array]:
        own = a[:, cut:].reshape(prompts, pattern.groups, -1, *a.shape[2:])
        return a[:, :cut], own

    (q_pre, q_own), (k_pre, k_own), (v_pre, v_own) = split(q), split(k), split(v)
    length = q_own.shape[2]
    out_prefix = masked_attention(q_pre, k_pre, v_pre, jnp.tril(jnp.ones((1, cut, cut), bool)))
    k_pre, v_pre = (rearrange(a, "p s k h -> p k s h") for a in (k_pre, v_pre))
    k_own, v_own = (rearrange(a, "p g u k h -> p k g u h") for a in (k_own, v_own))
    own = [OwnKeys(k_own, v_own, jnp.tril(jnp.ones((1, length, length), bool)))]
    real_PS = segments_BM[:, :cut] == 1
    out_own = prefix_suffix_attention(q_own, k_pre, v_pre, real_PS, own)
    return jnp.concatenate([out_prefix, out_own.reshape(prompts, -1, *q.shape[2:])], axis=1)


def masked_attention(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask_BTS: Array) -> Array:
    """Softmax attention with grouped key heads.

    Args:
        q_BTNH: queries.
        k_BSKH: keys; N is a multiple of K.
        v_BSKH: values.
        mask_BTS: True where the query may see the key; B may be 1.

    Returns:
        [B, T, N, H] in q's dtype.
    """
    length, kv_heads = q_BTNH.shape[1], k_BSKH.shape[2]
    q = rearrange(q_BTNH, "b t (k q) h -> b k (q t) h", k=kv_heads)
    k, v = (rearrange(a, "b s k h -> b k s h") for a in (k_BSKH, v_BSKH))
    scores = rearrange(scaled_scores(q, k), "b k (q t) s -> b k q t s", t=length)
    weights = jax.nn.softmax(jnp.where(mask_BTS[:, None, None], scores, MASKED), axis=-1)
    out = _mix(rearrange(weights, "b k q t s -> b k (q t) s"), v)
    return rearrange(out, "b k (q t) h -> b t (k q) h", t=length).astype(q_BTNH.dtype)


class OwnKeys(NamedTuple):
    """A stretch of every completion's own keys, for `prefix_suffix_attention`.

    Attributes:
        k_PKGUH: keys.
        v_PKGUH: values.
        mask_PTU: True where the query may see the key; P and T may be 1.
    """

    k_PKGUH: Array
    v_PKGUH: Array
    mask_PTU: Array


def prefix_suffix_attention(
    q_PGTNH: Array,
    k_prefix_PKSH: Array,
    v_prefix_PKSH: Array,
    prefix_mask_PS: Array,
    own: Sequence[OwnKeys],
) -> Array:
    """Attention of G completions to the shared prompt and to their own past, in one softmax.

    The prompt's keys exist once per group: the G*T queries of a group meet them in one product.

    Args:
        q_PGTNH: queries of T new tokens per completion.
        k_prefix_PKSH: keys of the prompt, one copy per group.
        v_prefix_PKSH: values of the prompt.
        prefix_mask_PS: True where the prompt key is real.
        own: the completions' keys, in as many stretches as they are stored in.

    Returns:
        [P, G, T, N, H] in q's dtype.
    """
    groups, length = q_PGTNH.shape[1:3]
    q = rearrange(q_PGTNH, "p g t (k q) h -> p k g (q t) h", k=k_prefix_PKSH.shape[1])
    on_prefix = scaled_scores(rearrange(q, "p k g m h -> p k (g m) h"), k_prefix_PKSH)
    on_prefix = jnp.where(prefix_mask_PS[:, None, None], on_prefix, MASKED)
    scores = [rearrange(on_prefix, "p k (g m) s -> p k g m s", g=groups)]
    for part in own:
        on_own = rearrange(scaled_scores(q, part.k_PKGUH), "p k g (q t) u -> p k g q t u", t=length)
        on_own = jnp.where(part.mask_PTU[:, None, None, None], on_own, MASKED)
        scores.append(rearrange(on_own, "p k g q t u -> p k g (q t) u"))

    on_prefix, *on_own_parts = _joint_softmax(scores)
    out = _mix(rearrange(on_prefix, "p k g m s -> p k (g m) s"), v_prefix_PKSH)
    out = rearrange(out, "p k (g m) h -> p k g m h", g=groups)
    for weights, part in zip(on_own_parts, own, strict=True):
        out = out + _mix(weights, part.v_PKGUH)
    return rearrange(out, "p k g (q t) h -> p g t (k q) h", t=length).astype(q_PGTNH.dtype)


def _joint_softmax(scores: Sequence[Array]) -> list[Array]:
    """One softmax over the last axes of all arrays, without putting them side by side."""
    tops = [jnp.max(part, axis=-1, keepdims=True) for part in scores]
    top = jax.lax.stop_gradient(reduce(jnp.maximum, tops))
    exps = [jnp.exp(part - top) for part in scores]
    total = sum(jnp.sum(part, axis=-1, keepdims=True) for part in exps)
    return [part / total for part in exps]
