"""Keeps what the policy said: one JSON line per completion, for programs and people to read."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from vlaa_jax.parallel import hosts
from vlaa_jax.policy.groups import Groups


def write_rollouts(workdir: Path, step: int, groups: Groups, advantages_PG: np.ndarray) -> None:
    """Writes WORKDIR/rollouts/STEP.jsonl.

    With several hosts, each writes the groups it has the texts of into a file of its own, and one
    puts them together in the order of the groups.
    """
    folder = workdir / "rollouts"
    folder.mkdir(exist_ok=True)
    file = folder / f"{step:06d}.jsonl"
    mine = [p for p, texts in enumerate(groups.texts) if texts]
    lines = [
        {"step": step, **_line(groups, p, g), "advantage": float(advantages_PG[p, g])}
        for p in mine
        for g in range(advantages_PG.shape[1])
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if hosts.count() == 1:
        file.write_text(text, encoding="utf-8")
        return
    _part(file, hosts.index()).write_text(text, encoding="utf-8")
    places = hosts.gather(mine, f"the rollouts of step {step + 1}")
    if hosts.is_writer():
        _merge(file, places, advantages_PG.shape[1])


def _part(file: Path, host: int) -> Path:
    return file.with_suffix(f".host{host}")


def _merge(file: Path, places: list[list[int]], completions: int) -> None:
    """Puts the hosts' parts into the order of the groups; a part goes when the whole is there."""
    found: dict[int, list[str]] = {}
    for host, mine in enumerate(places):
        with open(_part(file, host), encoding="utf-8", newline="\n") as part:
            lines = list(part)
        for number, p in enumerate(mine):
            found[p] = lines[number * completions :][:completions]
    whole = file.with_suffix(".tmp")
    whole.write_text("".join(line for p in sorted(found) for line in found[p]), encoding="utf-8")
    whole.replace(file)
    for host in range(len(places)):
        _part(file, host).unlink()


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
