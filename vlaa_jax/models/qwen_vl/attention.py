"""Attention over the layouts of the decoder and the vision tower.

One operation serves everything: queries see keys where a boolean mask says so, softmax in float32.
The decoder's special case is *shared prefix + own suffix*: the G completions of a prompt attend
to one copy of the prompt's keys and, causally, to their own.
"""

import jax
import jax.numpy as jnp

from vlaa_jax.models.qwen_vl.layers import HIGHEST

Array = jax.Array

MASKED = -1e30
"""Score of a hidden key: finite, so that a row without any visible key gives no NaN."""


def _einsum(spec: str, a: Array, b: Array) -> Array:
    precision = HIGHEST if a.dtype == jnp.float32 else None
    return jnp.einsum(spec, a, b, precision=precision, preferred_element_type=jnp.float32)


def _split_heads(q: Array, kv_heads: int) -> Array:
    """[..., N, H] -> [..., K, N/K, H]: query heads grouped under the key head they share."""
    *lead, heads, head_dim = q.shape
    return q.reshape(*lead, kv_heads, heads // kv_heads, head_dim)


def masked_attention(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask_BTS: Array) -> Array:
    """Softmax attention with grouped key heads.

    Args:
        q_BTNH: queries.
        k_BSKH: keys; N is a multiple of K.
        v_BSKH: values.
        mask_BTS: True where the query may see the key.

    Returns:
        [B, T, N, H] in q's dtype.
    """
    head_dim = q_BTNH.shape[-1]
    q = _split_heads(q_BTNH, k_BSKH.shape[2])
    scores = _einsum("btkgh,bskh->bkgts", q, k_BSKH) * head_dim**-0.5
    scores = jnp.where(mask_BTS[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    out = _einsum("bkgts,bskh->btkgh", weights, v_BSKH)
    return out.reshape(q_BTNH.shape).astype(q_BTNH.dtype)


def causal_segment_mask(segment_ids_BT: Array) -> Array:
    """Who sees whom in packed rows: own segment, not later. Returns bool [B, T, T]."""
    length = segment_ids_BT.shape[1]
    same = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    return same & jnp.tril(jnp.ones((length, length), bool))


def prefix_suffix_attention(
    q_PGTNH: Array,
    k_prefix_PSKH: Array,
    v_prefix_PSKH: Array,
    k_suffix_PGUKH: Array,
    v_suffix_PGUKH: Array,
    prefix_mask_PS: Array,
    suffix_mask_PGTU: Array,
) -> Array:
    """Attention of G completions to the shared prompt and to their own past, in one softmax.

    The prompt's keys exist once per group: the G*T queries of a group meet them in one product.

    Args:
        q_PGTNH: queries of T new tokens per completion.
        k_prefix_PSKH: keys of the prompt, one copy per group.
        v_prefix_PSKH: values of the prompt.
        k_suffix_PGUKH: keys of each completion.
        v_suffix_PGUKH: values of each completion.
        prefix_mask_PS: True where the prompt key is real.
        suffix_mask_PGTU: True where the query may see the own key; broadcast over P and G is fine.

    Returns:
        [P, G, T, N, H] in q's dtype.
    """
    prompts, groups, length, heads, head_dim = q_PGTNH.shape
    prefix_length = k_prefix_PSKH.shape[1]
    q = _split_heads(q_PGTNH, k_prefix_PSKH.shape[2])
    scores_prefix = _einsum("pgtkqh,pskh->pkqgts", q, k_prefix_PSKH) * head_dim**-0.5
    scores_suffix = _einsum("pgtkqh,pgukh->pkqgtu", q, k_suffix_PGUKH) * head_dim**-0.5
    scores_prefix = jnp.where(prefix_mask_PS[:, None, None, None, None], scores_prefix, MASKED)
    scores_suffix = jnp.where(suffix_mask_PGTU[:, None, None], scores_suffix, MASKED)
    scores = jnp.concatenate([scores_prefix, scores_suffix], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)
    weights = weights.astype(q_PGTNH.dtype)
    out = _einsum("pkqgts,pskh->pgtkqh", weights[..., :prefix_length], v_prefix_PSKH)
    out = out + _einsum("pkqgtu,pgukh->pgtkqh", weights[..., prefix_length:], v_suffix_PGUKH)
    return out.reshape(prompts, groups, length, heads, head_dim).astype(q_PGTNH.dtype)
