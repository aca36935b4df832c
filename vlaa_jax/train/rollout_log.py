"""Keeps what the policy said: one JSON line per completion, for people to read."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlaa_jax.rollout.engine import Rollout
from vlaa_jax.schema import Score
from vlaa_jax.train.prompts import Prompt


def write_rollouts(
    workdir: Path,
    step: int,
    prompts: Sequence[Prompt],
    texts: Sequence[Sequence[str]],
    scores: Sequence[Score],
    advantages_PG: np.ndarray,
    rollout: Rollout,
) -> None:
    """Writes WORKDIR/rollouts/STEP.jsonl."""
    folder = workdir / "rollouts"
    folder.mkdir(exist_ok=True)
    groups = advantages_PG.shape[1]
    lines = []
    for p, prompt in enumerate(prompts):
        for g in range(groups):
            score = scores[p * groups + g]
            lines.append(
                {
                    "step": step,
                    "id": prompt.record.id,
                    "images": list(prompt.record.images),
                    "question": prompt.record.question,
                    "verifier_type": score.verifier_type,
                    "gt": prompt.record.gt,
                    "completion": texts[p][g],
                    "extracted": score.extracted,
                    "reward": None if score.failed else score.reward,
                    "parts": {k: v for k, v in score.parts.items() if v == v},
                    "error": score.error,
                    "advantage": float(advantages_PG[p, g]),
                    "length": int(rollout.length_PG[p, g]),
                    "truncated": bool(rollout.truncated_PG[p, g]),
                }
            )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / f"{step:06d}.jsonl").write_text(text, encoding="utf-8")
