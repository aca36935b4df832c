"""The rollout engine: prompts in, G completions each out, on the trainer's own parameters.

There is no second copy of the weights and no second implementation of the model, so there is
nothing to synchronise. Only shapes from the bucket ladder reach the jitted functions.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vlaa_jax.data.planner import ladder
from vlaa_jax.models.qwen_vl.model import PromptInputs
from vlaa_jax.rollout import generate
from vlaa_jax.rollout.sampling import Sampling

Array = jax.Array


class Rollout(NamedTuple):
    """Completions of P prompts, G each, right padded to T from the ladder.

    Attributes:
        tokens_PGT: int32 ids, the end token included; 0 behind the end.
        logprobs_PGT: float32 log-probabilities under the policy that sampled.
        mask_PGT: True on real tokens.
        length_PG: number of real tokens.
        truncated_PG: True where the token limit ended the completion.
    """

    tokens_PGT: Array
    logprobs_PGT: Array
    mask_PGT: Array
    length_PG: Array
    truncated_PG: Array


class Engine:
    """Samples completions.

    Args:
        graphdef: structure of the model.
        completions: G.
        max_new_tokens: token limit of a completion.
        sampling: how to draw tokens.
        eos_id: the token that ends a completion.
        allowed_V: which ids may be sampled.
        min_bucket: smallest cache length of a completion.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        *,
        completions: int,
        max_new_tokens: int,
        sampling: Sampling,
        eos_id: int,
        allowed_V: np.ndarray,
        min_bucket: int = 32,
    ) -> None:
        self.completions = completions
        self.max_new_tokens = max_new_tokens
        self._allowed_V = jnp.asarray(allowed_V)
        self._min_bucket = min_bucket
        length = ladder(max_new_tokens, min_bucket)

        @jax.jit
        def run(params: Any, prompt: PromptInputs, keys_P: Array, allowed_V: Array) -> Rollout:
            model = nnx.merge(graphdef, params)
            prefix, state = generate.start(
                model, prompt, keys_P, completions=completions, length=length
            )
            state = generate.advance(
                model,
                prefix,
                state,
                allowed_V=allowed_V,
                eos_id=eos_id,
                max_tokens=max_new_tokens,
                sampling=sampling,
                steps=max_new_tokens,
            )
            mask_PGT = jnp.arange(length) < state.length_PG[..., None]
            return Rollout(
                state.tokens_PGT, state.logprobs_PGT, mask_PGT, state.length_PG, ~state.done_PG
            )

        self._run = run

    @property
    def compile_count(self) -> int:
        """Programs compiled so far."""
        return int(self._run._cache_size())  # type: ignore[attr-defined]

    def generate(self, params: Mapping[str, Any], prompt: PromptInputs, keys_P: Array) -> Rollout:
        """Samples G completions of every prompt.

        Args:
            params: the policy's parameters.
            prompt: P prompts on the device.
            keys_P: one random key per prompt.

        Returns:
            The completions, cropped to the ladder size of the longest.
        """
        rollout = self._run(params, prompt, keys_P, self._allowed_V)
        longest = int(jnp.max(rollout.length_PG))
        return crop(rollout, ladder(max(longest, 1), self._min_bucket))


def crop(rollout: Rollout, length: int) -> Rollout:
    """Cuts padding behind `length` tokens."""
    tokens, logprobs, mask, lengths, truncated = rollout
    return Rollout(
        tokens[..., :length], logprobs[..., :length], mask[..., :length], lengths, truncated
    )
