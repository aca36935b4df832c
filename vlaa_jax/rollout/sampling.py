"""From logits to a token and its log-probability under the policy.

The log-probability returned is that of the *policy*: the softmax over allowed tokens at the
sampling temperature, the same definition the trainer scores with. Truncation (top-k, top-p, min-p)
changes which token is drawn, never what its log-probability is said to be.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlaa_jax.algos.logprobs import masked_logits

Array = jax.Array

NEVER = -jnp.inf


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens. Static under jit; a checkpoint's generation_config plays no part.

    Attributes:
        temperature: divides the logits; above 0.
        top_k: keep the k most likely tokens and, as HF does, ties with the k-th; 0 keeps all.
        top_p: keep the smallest set of likeliest tokens whose mass reaches p; 1 keeps all.
        min_p: keep tokens at least this share of the likeliest token's probability; 0 keeps all.
        greedy: take the likeliest token instead of drawing (evaluation).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    greedy: bool = False


class RowSampling(NamedTuple):
    """How to draw, row by row: arrays under jit, so that other settings compile nothing anew.

    Attributes:
        temperature_B: float32, as `Sampling.temperature`.
        top_k_B: int32; 0 keeps all.
        top_p_B: float32; 1 keeps all.
        min_p_B: float32; 0 keeps all.
        greedy_B: bool.
    """

    temperature_B: Array
    top_k_B: Array
    top_p_B: Array
    min_p_B: Array
    greedy_B: Array

    @classmethod
    def of(cls, rows: Sequence[Sampling]) -> "RowSampling":
        """The same settings as arrays."""
        return cls(
            jnp.array([row.temperature for row in rows], jnp.float32),
            jnp.array([row.top_k for row in rows], jnp.int32),
            jnp.array([row.top_p for row in rows], jnp.float32),
            jnp.array([row.min_p for row in rows], jnp.float32),
            jnp.array([row.greedy for row in rows], bool),
        )


def allowed_tokens(vocab_size: int, tokenizer_size: int, forbidden: tuple[int, ...]) -> np.ndarray:
    """Which ids may be sampled: bool [V].

    Rows of the head beyond the tokenizer (padding for aligned shapes) and the given ids (vision
    placeholders, padding) are out, in the sampler and in the trainer's log-probabilities alike.
    """
    allowed_V = np.arange(vocab_size) < tokenizer_size
    allowed_V[[i for i in forbidden if 0 <= i < vocab_size]] = False
    return allowed_V


def sample_tokens(
    logits_BV: Array, keys_B: Array, allowed_V: Array | None, sampling: Sampling
) -> tuple[Array, Array]:
    """Draws one token per row.

    Args:
        logits_BV: raw logits of the head, float.
        keys_B: one random key per row, so that a sample does not depend on its neighbours.
        allowed_V: bool mask of ids, or None.
        sampling: how to draw.

    Returns:
        int32 tokens [B] and their float32 log-probabilities [B] under the policy.
    """
    policy_BV = masked_logits(logits_BV, temperature=sampling.temperature, allowed_V=allowed_V)
    logprobs_BV = jax.nn.log_softmax(policy_BV, axis=-1)
    if sampling.greedy:
        tokens_B = jnp.argmax(policy_BV, axis=-1)
    else:
        kept_BV = truncate(logprobs_BV, sampling)
        noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, kept_BV.shape[1:]))(keys_B)
        tokens_B = jnp.argmax(kept_BV + noise_BV, axis=-1)
    chosen_B = jnp.take_along_axis(logprobs_BV, tokens_B[:, None], axis=-1)[:, 0]
    return tokens_B.astype(jnp.int32), chosen_B


def truncate(logprobs_BV: Array, sampling: Sampling) -> Array:
    """Sets tokens outside top-k, top-p and min-p to -inf. The likeliest token always stays."""
    kept_BV = logprobs_BV
    if sampling.min_p > 0:
        floor_B1 = jnp.max(logprobs_BV, axis=-1, keepdims=True) + np.log(sampling.min_p)
        kept_BV = jnp.where(logprobs_BV >= floor_B1, kept_BV, NEVER)
    if 0 < sampling.top_k < logprobs_BV.shape[-1]:
        kth_B1 = jax.lax.top_k(logprobs_BV, sampling.top_k)[0][:, -1:]
        kept_BV = jnp.where(logprobs_BV >= kth_B1, kept_BV, NEVER)
    if sampling.top_p < 1:
        ordered_BV = jnp.sort(logprobs_BV, axis=-1, descending=True)
        mass_before_BV = jnp.cumsum(jnp.exp(ordered_BV), axis=-1) - jnp.exp(ordered_BV)
        inside_BV = mass_before_BV < sampling.top_p
        last_B1 = jnp.min(jnp.where(inside_BV, ordered_BV, jnp.inf), axis=-1, keepdims=True)
        kept_BV = jnp.where(logprobs_BV >= last_B1, kept_BV, NEVER)
    return kept_BV


def sample_rows(
    logits_BV: Array, keys_B: Array, allowed_V: Array | None, rows: RowSampling
) -> tuple[Array, Array]:
    """`sample_tokens` with settings of its own for every row: the same tokens from the same keys.

    Returns:
        int32 tokens [B] and their float32 log-probabilities [B] under each row's policy.
    """
    policy_BV = masked_logits(
        logits_BV, temperature=rows.temperature_B[:, None], allowed_V=allowed_V
    )
    logprobs_BV = jax.nn.log_softmax(policy_BV, axis=-1)
    # Sorting the vocabulary costs more than all the rest: only where a row asks for it.
    sorts = jnp.any((rows.top_k_B > 0) | (rows.top_p_B < 1))
    floor_B1 = jax.lax.cond(sorts, _row_floor, _no_floor, logprobs_BV, rows)
    likeliest_B1 = jnp.max(logprobs_BV, axis=-1, keepdims=True)
    min_p_B1 = likeliest_B1 + jnp.log(rows.min_p_B)[:, None]
    kept_BV = jnp.where(logprobs_BV >= jnp.maximum(floor_B1, min_p_B1), logprobs_BV, NEVER)
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, kept_BV.shape[1:]))(keys_B)
    drawn_B = jnp.argmax(kept_BV + noise_BV, axis=-1)
    tokens_B = jnp.where(rows.greedy_B, jnp.argmax(policy_BV, axis=-1), drawn_B)
    chosen_B = jnp.take_along_axis(logprobs_BV, tokens_B[:, None], axis=-1)[:, 0]
    return tokens_B.astype(jnp.int32), chosen_B


def _no_floor(logprobs_BV: Array, rows: RowSampling) -> Array:
    return jnp.full((logprobs_BV.shape[0], 1), NEVER, logprobs_BV.dtype)


def _row_floor(logprobs_BV: Array, rows: RowSampling) -> Array:
    """The least log-probability that top-k and top-p leave in each row, [B, 1]."""
    vocab = logprobs_BV.shape[-1]
    ordered_BV = jnp.sort(logprobs_BV, axis=-1, descending=True)
    last_B1 = jnp.clip(rows.top_k_B, 1, vocab)[:, None] - 1
    kth_B1 = jnp.take_along_axis(ordered_BV, last_B1, axis=-1)
    kth_B1 = jnp.where(rows.top_k_B[:, None] > 0, kth_B1, NEVER)
    mass_before_BV = jnp.cumsum(jnp.exp(ordered_BV), axis=-1) - jnp.exp(ordered_BV)
    inside_BV = mass_before_BV < rows.top_p_B[:, None]
    nucleus_B1 = jnp.min(jnp.where(inside_BV, ordered_BV, jnp.inf), axis=-1, keepdims=True)
    nucleus_B1 = jnp.where(rows.top_p_B[:, None] < 1, nucleus_B1, NEVER)
    return jnp.maximum(kth_B1, nucleus_B1)
