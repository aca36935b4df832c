"""Log-probabilities of groups under given parameters, a few prompts at a time."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import jax
import numpy as np

from vlaa_jax.parallel.local import fetch
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.policy.micro import MicroPlan
from vlaa_jax.policy.prompts import Placed, Prompt
from vlaa_jax.rollout.engine import Rollout

Array = jax.Array


class GroupLogprobs:
    """Scores completions that were sampled.

    Args:
        distribution: the policy's.
        placed: the step's prompts on the devices.
        allowed_V: ids that are sampled at all.
        plan: which of them are computed together.
    """

    def __init__(
        self, distribution: Distribution, placed: Placed, allowed_V: Array, plan: MicroPlan
    ) -> None:
        self._placed, self._allowed_V, self._plan = placed, allowed_V, plan

        def score(params: Any, prompt: Any, tokens_PGT: Array, allowed_V: Array) -> Array:
            return distribution.completion_logprobs(params, prompt, tokens_PGT, allowed_V)[0]

        self._score = jax.jit(score)

    def __call__(
        self, params: Mapping[str, Any], prompts: Sequence[Prompt], rollout: Rollout
    ) -> np.ndarray:
        """Log-probability of every completion token, float32 [P, G, T]."""
        found_PGT = np.zeros(rollout.tokens_PGT.shape, np.float32)
        length: int = rollout.tokens_PGT.shape[2]
        for micro in chain.from_iterable(self._plan(prompts, rollout.length_PG)):
            inputs = self._placed([prompts[p] for p in micro.index_P], micro.tokens)
            tokens = self._placed.put(micro.cut(rollout.tokens_PGT))
            scored = fetch(self._score(params, inputs, tokens, self._allowed_V))[:, :, :length]
            found_PGT[micro.index_P, :, : scored.shape[2]] = scored
        return found_PGT
