"""The project's own verifiers, asked from the event loop."""

import asyncio
import math

from vlaa_jax.pipeline.sample import Sample
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.schema import ScoreRequest


class RewardScorer:
    """Rewards of completions; maths is compared in processes that can be killed."""

    def __init__(self) -> None:
        self._reward = MixedReward()

    async def __call__(self, sample: Sample, completion: str) -> float:
        """Reward in [0, 1]; NaN where the type or the gold cannot be scored by rule."""
        if sample.verifier_type == "open_ended":
            return math.nan
        request = _request(sample, completion)
        scores = await asyncio.to_thread(self._reward.score, [request], shaped=False)
        return scores[0].reward

    def gold_problems(self, samples: list[Sample]) -> list[str | None]:
        """Why the gold of each sample cannot be trained on; None where it can."""
        return self._reward.gold_problems([_request(sample, "") for sample in samples])

    def close(self) -> None:
        """End the worker processes."""
        self._reward.close()


def _request(sample: Sample, completion: str) -> ScoreRequest:
    return ScoreRequest(
        sample.verifier_type,
        sample.gt,
        completion,
        id=sample.id,
        question=sample.question,
        box_space=sample.box_space,
    )
