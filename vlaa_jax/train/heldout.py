"""Validation during training: rewards on held-out records, and what constant answers would get."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vlaa_jax.data.synthetic.baseline import constant_baseline
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.rollout.engine import Engine
from vlaa_jax.schema import Record, ScoreRequest
from vlaa_jax.train.policy import Checkpoint
from vlaa_jax.train.prompts import Collator, Prompt
from vlaa_jax.train.scoring import Completions, requests_for, rewards_array, texts_of

HELDOUT_STREAM = 0x7E57
"""Folded into the seed, so that validation draws other randomness than training."""


class Heldout:
    """Samples every held-out prompt n times and averages the rewards.

    Args:
        prompts: the held-out prompts.
        engine: draws the completions.
        collator: puts prompts on the device.
        reward: scores them.
        checkpoint: tokenizer and processor.
        batch: prompts at once; the last batch is filled up with repeats that do not count.
        seed: of the run.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        engine: Engine,
        collator: Collator,
        reward: MixedReward,
        checkpoint: Checkpoint,
        *,
        batch: int,
        seed: int,
    ) -> None:
        self._prompts = list(prompts)
        self._engine = engine
        self._collator = collator
        self._reward = reward
        self._checkpoint = checkpoint
        self._batch = batch
        self._key = jax.random.fold_in(jax.random.key(seed), HELDOUT_STREAM)

    def __call__(self, params: Mapping[str, Any]) -> dict[str, float]:
        """Mean reward over records and samples (mean@n) and share of records solved (pass@n).

        Returns:
            ``heldout/mean``, ``heldout/<verifier_type>``, ``heldout/extracted_frac``,
            ``heldout/pass_at_n``: the best of n samples of a record, averaged.
        """
        by_type: dict[str, list[float]] = defaultdict(list)
        best, extracted = [], []
        for start in range(0, len(self._prompts), self._batch):
            real = self._prompts[start : start + self._batch]
            filled = (real * self._batch)[: self._batch]
            rewards_PG, found = self._score(params, filled, start)
            for prompt, row in zip(real, rewards_PG, strict=False):
                by_type[prompt.record.verifier_type or ""].extend(row[~np.isnan(row)])
                best.append(np.nanmax(row) if not np.isnan(row).all() else 0.0)
            extracted += found[: len(real) * self._engine.completions]
        every = [value for values in by_type.values() for value in values]
        metrics = {f"heldout/{name}": float(np.mean(v)) for name, v in sorted(by_type.items())}
        return {
            "heldout/mean": float(np.mean(every)),
            "heldout/pass_at_n": float(np.mean(best)),
            "heldout/extracted_frac": float(np.mean(extracted)),
            **metrics,
        }

    def _score(
        self, params: Mapping[str, Any], prompts: list[Prompt], start: int
    ) -> tuple[np.ndarray, list[float]]:
        inputs, _ = self._collator(prompts)
        fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
        keys_P = fold(self._key, np.arange(start, start + len(prompts)))
        rollout = self._engine.generate(params, inputs, keys_P)
        completions = Completions(*(np.asarray(a) for a in rollout))
        texts = texts_of(self._checkpoint.chat, completions)
        requests = requests_for(prompts, texts, self._checkpoint.processor)
        scores = self._reward.score(
            requests,
            lengths=completions.length_PG.reshape(-1).tolist(),
            max_length=self._engine.max_new_tokens,
        )
        found = [score.parts["format"] for score in scores]
        return rewards_array(scores, completions.length_PG.shape), found


def constant_scores(records: Sequence[Record], reward: MixedReward) -> dict[str, float]:
    """What the best constant answer of each verifier type gets: the bar to clear."""

    def score(record: Record, answer: str) -> float:
        request = ScoreRequest(
            verifier_type=record.verifier_type or "",
            gt=record.gt or "",
            response=f"<think> </think> <answer>{answer}</answer>",
            question=record.question,
            box_space=record.box_space,
        )
        return reward.score([request])[0].parts["raw"]

    # The most frequent golds are the best constants; trying them all would take a minute of maths.
    found = constant_baseline(records, score, max_candidates=8)
    return {name: baseline.score for name, baseline in found.items()}


def save_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a small JSON file in one piece."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
