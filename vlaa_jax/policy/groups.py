"""Groups: prompts with their completions and what those were paid."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vlaa_jax.policy.prompts import Prompt
from vlaa_jax.rollout.engine import Rollout
from vlaa_jax.schema import Score


class Groups(NamedTuple):
    """P prompts with G completions each, and what they were paid.

    Attributes:
        prompts: the prompts.
        rollout: their completions.
        texts: the completions as text, [P][G].
        scores: one per completion, prompt by prompt.
    """

    prompts: list[Prompt]
    rollout: Rollout
    texts: list[list[str]]
    scores: list[Score]

    @property
    def raw_PG(self) -> np.ndarray:
        """Unshaped rewards, float32; NaN where the scorer failed."""
        raw = np.array([score.parts["raw"] for score in self.scores], np.float32)
        return raw.reshape(self.rollout.length_PG.shape)

    def take(self, chosen: Sequence[int]) -> "Groups":
        """Some of the groups, in the given order."""
        completions = self.rollout.length_PG.shape[1]
        return Groups(
            [self.prompts[p] for p in chosen],
            Rollout(*(array[list(chosen)] for array in self.rollout)),
            [self.texts[p] for p in chosen],
            [score for p in chosen for score in self.scores[p * completions :][:completions]],
        )


def varied(raw_PG: np.ndarray) -> np.ndarray:
    """Which groups have two valid rewards that differ, bool [P]."""
    valid_PG = ~np.isnan(raw_PG)
    highest_P = np.where(valid_PG, raw_PG, -np.inf).max(axis=1)
    lowest_P = np.where(valid_PG, raw_PG, np.inf).min(axis=1)
    return (highest_P > lowest_P) & (valid_PG.sum(axis=1) >= 2)


def concatenate(a: Groups, b: Groups) -> Groups:
    """Two batches of groups as one, padded to the longer."""
    longest = max(a.rollout.tokens_PGT.shape[-1], b.rollout.tokens_PGT.shape[-1])

    def pad(array: np.ndarray) -> np.ndarray:
        missing = longest - array.shape[-1] if array.ndim == 3 else 0
        return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)])

    pairs = zip(a.rollout, b.rollout, strict=True)
    return Groups(
        a.prompts + b.prompts,
        Rollout(*(np.concatenate([pad(x), pad(y)]) for x, y in pairs)),
        a.texts + b.texts,
        a.scores + b.scores,
    )
