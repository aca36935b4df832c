"""Prefill and the decoding loop, on the device.

One prompt's keys and values exist once and serve its G completions. The loop stops as soon as every
completion has ended. Randomness of a completion depends on its own key and token index alone, so a
sample does not change with the batch it is drawn in.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlaa_jax.models.qwen_vl.cache import PrefixCache, SuffixCache, empty_suffix
from vlaa_jax.models.qwen_vl.layers import matmul
from vlaa_jax.models.qwen_vl.model import PromptInputs, QwenVL
from vlaa_jax.rollout.sampling import Sampling, sample_tokens

Array = jax.Array


class DecodeState(NamedTuple):
    """Everything that changes while completions grow.

    Attributes:
        suffix: the completions' cache.
        ids_PG: the next input of each completion.
        tokens_PGT: tokens so far; 0 behind the end.
        logprobs_PGT: their log-probabilities under the policy; 0 behind the end.
        length_PG: number of tokens, the end token included.
        done_PG: the end token has been drawn.
        keys_PG: random key of each completion.
    """

    suffix: SuffixCache
    ids_PG: Array
    tokens_PGT: Array
    logprobs_PGT: Array
    length_PG: Array
    done_PG: Array
    keys_PG: Array


def start(
    model: QwenVL, prompt: PromptInputs, keys_P: Array, *, completions: int, length: int
) -> tuple[PrefixCache, DecodeState]:
    """Prefills the prompts and makes an empty state for G completions of at most `length`."""
    prefix = model.prefill(prompt)
    prompts = keys_P.shape[0]
    split = jax.vmap(lambda key: jax.random.split(key, completions))
    shape = (prompts, completions)
    state = DecodeState(
        suffix=empty_suffix(prefix, completions, length),
        ids_PG=jnp.broadcast_to(prefix.last_id_P[:, None], shape),
        tokens_PGT=jnp.zeros((*shape, length), jnp.int32),
        logprobs_PGT=jnp.zeros((*shape, length), jnp.float32),
        length_PG=jnp.zeros(shape, jnp.int32),
        done_PG=jnp.zeros(shape, bool),
        keys_PG=split(keys_P),
    )
    return prefix, state


def advance(
    model: QwenVL,
    prefix: PrefixCache,
    state: DecodeState,
    *,
    allowed_V: Array | None,
    eos_id: int,
    max_tokens: int,
    sampling: Sampling,
    steps: int,
) -> DecodeState:
    """Decodes up to `steps` tokens; stops early when every completion is done or at its limit."""
    kernel_DV = model.head_kernel_DV.astype(model.dtype)

    def unfinished(carry: tuple[Array, DecodeState]) -> Array:
        count, state = carry
        return (count < steps) & jnp.any(_running(state, max_tokens))

    def body(carry: tuple[Array, DecodeState]) -> tuple[Array, DecodeState]:
        count, state = carry
        state = _step(model, kernel_DV, prefix, state, allowed_V, eos_id, max_tokens, sampling)
        return count + 1, state

    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), state))[1]


def _running(state: DecodeState, max_tokens: int) -> Array:
    return ~state.done_PG & (state.length_PG < max_tokens)


def _step(
    model: QwenVL,
    kernel_DV: Array,
    prefix: PrefixCache,
    state: DecodeState,
    allowed_V: Array | None,
    eos_id: int,
    max_tokens: int,
    sampling: Sampling,
) -> DecodeState:
    prompts, groups = state.ids_PG.shape
    step_P = state.suffix.step_P
    hidden_PGD, suffix = model.decode(prefix, state.suffix, state.ids_PG)
    logits_BV = matmul(hidden_PGD.reshape(prompts * groups, -1), kernel_DV)
    fold = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(0, None)))
    keys_B = fold(state.keys_PG, step_P).reshape(prompts * groups)
    tokens_B, logprobs_B = sample_tokens(logits_BV, keys_B, allowed_V, sampling)
    running_PG = _running(state, max_tokens)
    tokens_PG = jnp.where(running_PG, tokens_B.reshape(prompts, groups), 0)
    logprobs_PG = jnp.where(running_PG, logprobs_B.reshape(prompts, groups), 0.0)
    return DecodeState(
        suffix=suffix,
        ids_PG=tokens_PG,
        tokens_PGT=_put(state.tokens_PGT, tokens_PG, step_P),
        logprobs_PGT=_put(state.logprobs_PGT, logprobs_PG, step_P),
        length_PG=state.length_PG + running_PG,
        done_PG=state.done_PG | (running_PG & (tokens_PG == eos_id)),
        keys_PG=state.keys_PG,
    )


def _put(array_PGT: Array, column_PG: Array, step_P: Array) -> Array:
    """Writes one column, at each prompt's own step."""

    def write(array_GT: Array, column_G: Array, step: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(array_GT, column_G[:, None], step, axis=1)

    return jax.vmap(write)(array_PGT, column_PG, step_P)
