"""Validation during training: rewards on held-out records, and what constant answers would get."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vlaa_jax.data.synthetic.baseline import constant_baseline
from vlaa_jax.parallel import hosts
from vlaa_jax.policy.groups import Groups
from vlaa_jax.policy.prompts import Prompt
from vlaa_jax.policy.sampler import Sampler
from vlaa_jax.policy.scoring import CompletionScorer
from vlaa_jax.policy.spread import Deal, exchange, taken
from vlaa_jax.rewards.mixed import MixedReward, check_failed
from vlaa_jax.rollout.engine import Rollout
from vlaa_jax.schema import VERIFIER_TYPES, Record, Score, ScoreRequest

CONSTANT_RECORDS = 200
"""Records of a verifier type that constant answers are tried on."""
HELDOUT_STREAM = 0x7E57
"""Folded into the seed, so that validation draws other randomness than training."""


class Heldout:
    """Samples every held-out prompt n times and averages the rewards.

    Args:
        prompts: the held-out prompts.
        sampler: draws the completions.
        scorer: scores them.
        deal: which host scores which of them; None where there is one.
        seed: of the run.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        sampler: Sampler,
        scorer: CompletionScorer,
        deal: Deal | None = None,
        *,
        seed: int,
    ) -> None:
        self._prompts = list(prompts)
        self._sampler = sampler
        self._scorer, self._deal = scorer, deal
        self._key = jax.random.fold_in(jax.random.key(seed), HELDOUT_STREAM)

    def __call__(self, params: Mapping[str, Any]) -> tuple[dict[str, float], Groups]:
        """Samples every held-out prompt and has it scored by the host it belongs to.

        Returns:
            Metrics, see `summarise`, and the groups they summarise.

        Raises:
            UserError: more scores failed than rewards.max_failed_frac allows.
        """
        fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
        keys_P = fold(self._key, np.arange(len(self._prompts)))
        rollout = self._sampler(params, self._prompts, keys_P)
        texts = self._scorer.texts(rollout)
        scores = self._scores(texts, rollout)
        most = self._scorer.reward.settings.max_failed_frac
        check_failed(scores, most, where="held-out records")
        groups = Groups(self._prompts, rollout, texts, scores)
        return summarise(groups), groups

    def _scores(self, texts: list[list[str]], rollout: Rollout) -> list[Score]:
        count = len(self._prompts)
        if hosts.count() == 1 or self._deal is None:
            return self._scorer.score(self._prompts, texts, rollout)
        places = np.flatnonzero(self._deal.owner_P(count) == hosts.index()).tolist()
        own: list[Score] = []
        if places:
            prompts, part = [self._prompts[p] for p in places], taken(rollout, places)
            own = self._scorer.score(prompts, [texts[p] for p in places], part)
        groups = rollout.length_PG.shape[1]
        mine = {p: own[n * groups :][:groups] for n, p in enumerate(places)}
        return [score for group in exchange(mine, count) for score in group]

    def constant_scores(self) -> dict[str, float]:
        """What the best constant answers get on these prompts; see `constant_scores`."""
        prompts = {prompt.record.id: prompt for prompt in self._prompts}

        def request(record: Record, response: str) -> ScoreRequest:
            return self._scorer.request(prompts[record.id], response)

        reward = self._scorer.reward
        free = free_types(reward.settings.open_ended)
        records = [p.record for p in self._prompts if p.record.verifier_type in free]
        found = constant_scores(records, reward, request)
        if len(records) < len(self._prompts):
            found.pop("mean", None)  # it would be one of other records than the policy's
        return found


def free_types(open_ended: str) -> frozenset[str]:
    """Verifier types whose scores cost a little time of this machine, and nothing else.

    Args:
        open_ended: the backend of open-ended answers.
    """
    asks = () if open_ended == "text_similarity" else ("open_ended",)
    return frozenset(VERIFIER_TYPES) - {*asks, "custom"}


def summarise(groups: Groups) -> dict[str, float]:
    """Mean reward over records and samples (mean@n) and what the best of n samples gets (pass@n).

    Returns:
        ``heldout/mean``, ``heldout/<verifier_type>``, ``heldout/extracted_frac``,
        ``heldout/failed_frac``, ``heldout/pass_at_n``: the best of n samples of a record,
        averaged. Rewards are the unshaped ones; failed scores are left out of every mean.
    """
    by_type: dict[str, list[float]] = defaultdict(list)
    best = []
    for prompt, raw_G in zip(groups.prompts, groups.raw_PG, strict=True):
        sound = raw_G[~np.isnan(raw_G)]
        if len(sound):
            by_type[prompt.record.verifier_type or ""].extend(sound)
            best.append(sound.max())
    every = [value for values in by_type.values() for value in values]
    return {
        "heldout/mean": float(np.mean(every)),
        "heldout/pass_at_n": float(np.mean(best)),
        "heldout/extracted_frac": float(np.mean([s.parts["format"] for s in groups.scores])),
        "heldout/failed_frac": float(np.mean([s.failed for s in groups.scores])),
        **{f"heldout/{name}": float(np.mean(v)) for name, v in sorted(by_type.items())},
    }


def constant_scores(
    records: Sequence[Record],
    reward: MixedReward,
    request_for: Callable[[Record, str], ScoreRequest],
) -> dict[str, float]:
    """What the best constant answer of each verifier type gets: the bar to clear, unshaped.

    Tried are the eight most frequent golds of a type; the best box is then improved side by side.

    Args:
        records: the held-out records.
        reward: scores the answers; its shaping options are left out, since a constant answer has
            no length of its own.
        request_for: makes the score request for a record and a whole response.
    """

    def score(record: Record, answer: str) -> float:
        request = request_for(record, f"<think> </think> <answer>{answer}</answer>")
        return reward.score([request], shaped=False)[0].reward

    # Trying every gold on every record would take minutes of symbolic maths.
    by_type: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_type[record.verifier_type or ""].append(record)
    some = [record for kind in by_type.values() for record in kind[:CONSTANT_RECORDS]]
    found = constant_baseline(some, score, max_candidates=8)
    if not found:
        return {}
    total = sum(baseline.records for baseline in found.values())
    mean = sum(baseline.score * baseline.records for baseline in found.values()) / total
    return {"mean": mean, **{name: baseline.score for name, baseline in found.items()}}
