"""Key/value caches for decoding: the prompt's once per group, the completion's per sample.

Plain named tuples that go in and come out of jitted functions; no hidden mutable state, and the
per-prompt rope offset travels with the prefix.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class PrefixCache(NamedTuple):
    """Keys and values of P prompts, each shared by its G completions.

    Holds the prompt without its last token: that token is the first input of every completion,
    so prefill needs no logits and the first sampled token takes the same path as all others.

    Attributes:
        k_LPKSH: keys per layer, right padded to S positions.
        v_LPKSH: values.
        length_P: int, number of real positions of each prompt's prefix.
        last_id_P: int, the prompt's last token.
        last_position_P: int, its M-RoPE position (text: equal on all axes); completion input t of
            prompt p stands at ``last_position_P[p] + t``.
    """

    k_LPKSH: Array
    v_LPKSH: Array
    length_P: Array
    last_id_P: Array
    last_position_P: Array


class SuffixCache(NamedTuple):
    """Keys and values of the completions so far.

    Attributes:
        k_LPKGUH: keys per layer; U positions are allocated.
        v_LPKGUH: values.
        step_P: int, number of inputs already written; the same for all completions of a prompt.
    """

    k_LPKGUH: Array
    v_LPKGUH: Array
    step_P: Array


def empty_suffix(prefix: PrefixCache, completions: int, length: int) -> SuffixCache:
    """A suffix cache for G = `completions` samples per prompt and `length` tokens each."""
    layers, prompts, kv_heads, _, head_dim = prefix.k_LPKSH.shape
    shape = (layers, prompts, kv_heads, completions, length, head_dim)
    zeros = jnp.zeros(shape, prefix.k_LPKSH.dtype)
    return SuffixCache(zeros, zeros, jnp.zeros((prompts,), jnp.int32))
