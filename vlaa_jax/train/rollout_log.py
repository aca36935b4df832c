"""Keeps what the policy said: one JSON line per completion, for programs and people to read."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from vlaa_jax.policy.groups import Groups


def write_rollouts(workdir: Path, step: int, groups: Groups, advantages_PG: np.ndarray) -> None:
    """Writes WORKDIR/rollouts/STEP.jsonl."""
    folder = workdir / "rollouts"
    folder.mkdir(exist_ok=True)
    lines = [
        {"step": step, **_line(groups, p, g), "advantage": float(advantages_PG[p, g])}
        for p, g in np.ndindex(advantages_PG.shape)
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / f"{step:06d}.jsonl").write_text(text, encoding="utf-8")


def _line(groups: Groups, p: int, g: int) -> dict[str, Any]:
    rollout, record = groups.rollout, groups.prompts[p].record
    score = groups.scores[p * rollout.length_PG.shape[1] + g]
    return {
        "id": record.id,
        "images": list(record.images),
        "question": record.question,
        "verifier_type": score.verifier_type,
        "gt": record.gt,
        "completion": groups.texts[p][g],
        "extracted": score.extracted,
        "reward": None if score.failed else score.reward,
        "parts": {k: v for k, v in score.parts.items() if v == v},
        "error": score.error,
        "length": int(rollout.length_PG[p, g]),
        "truncated": bool(rollout.truncated_PG[p, g]),
    }
