"""Log-probabilities of groups under given parameters, a few prompts at a time."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vlaa_jax.parallel.local import fetch
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.policy.prompts import Placed, Prompt
from vlaa_jax.rollout.engine import Rollout

Array = jax.Array


def parts(count: int, size: int) -> Iterator[slice]:
    """Slices of `size` out of `count`."""
    yield from (slice(start, start + size) for start in range(0, count, size))


class GroupLogprobs:
    """Scores completions that were sampled.

    Args:
        distribution: the policy's.
        placed: the step's prompts on the devices.
        allowed_V: ids that are sampled at all.
        at_once: prompts per call of the device.
    """

    def __init__(
        self, distribution: Distribution, placed: Placed, allowed_V: Array, at_once: int
    ) -> None:
        self._placed, self._allowed_V, self._at_once = placed, allowed_V, at_once

        def score(params: Any, prompt: Any, tokens_PGT: Array, allowed_V: Array) -> Array:
            return distribution.completion_logprobs(params, prompt, tokens_PGT, allowed_V)[0]

        self._score = jax.jit(score)

    def __call__(
        self, params: Mapping[str, Any], prompts: Sequence[Prompt], rollout: Rollout
    ) -> np.ndarray:
        """Log-probability of every completion token, float32 [P, G, T]."""
        found = []
        for part in parts(len(prompts), self._at_once):
            inputs = self._placed(prompts[part])
            tokens = self._placed.put(rollout.tokens_PGT[part])
            found.append(fetch(self._score(params, inputs, tokens, self._allowed_V)))
        return np.concatenate(found)
