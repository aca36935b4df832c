"""A checkpoint's rewards on held-out records, with what a mean hides kept apart.

Every completion is scored twice: as in training, where an output without exactly one answer is
worth nothing, and without that requirement, where the last thing that looks like an answer is
scored. Truncated outputs, and those in which no answer is found, are counted apart from wrong ones.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from vlaa_jax import disk
from vlaa_jax.evaluate.nouns import Unit
from vlaa_jax.parallel.mesh import make_mesh
from vlaa_jax.policy.checked import load_checked
from vlaa_jax.policy.groups import Groups
from vlaa_jax.policy.pretrained import open_pretrained
from vlaa_jax.policy.prompts import Collator, Encoder
from vlaa_jax.policy.reward_head import mixed_reward
from vlaa_jax.policy.sampler import Sampler
from vlaa_jax.policy.scoring import CompletionScorer
from vlaa_jax.policy.usable import heldout_prompts
from vlaa_jax.rewards.mixed import check_failed
from vlaa_jax.schema import Score, Summary, UserError
from vlaa_jax.settings.study import HeldoutSettings
from vlaa_jax.train.claim import check_settings, lock, plain
from vlaa_jax.train.opening import files

OUTPUTS, UNITS = "outputs.jsonl", "units.json"
HIT = 0.5
"""Reward from which an answer counts as right: boxes and open answers are paid in parts."""
_MARKS = ("<answer>", "</think>", "answer is")
_TAG = re.compile(r"</?(?:think|answer)>")


def run(settings: HeldoutSettings, workdir: Path, console: Console) -> Summary:
    """Samples and scores all held-out records; a second run of the same does nothing new.

    Raises:
        UserError: the directory, the checkpoint or the data cannot be used.
    """
    _check_files(settings)
    release = lock(workdir)
    try:
        check_settings(workdir, settings)
        groups, free = sample(settings, workdir)
        lines = list(outputs(groups, free))
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        disk.write_text(workdir / OUTPUTS, text)
        disk.write_json(workdir / UNITS, units(lines))
        disk.write_json(workdir / "config.json", plain(settings))
    finally:
        release()
    rewards = [line["reward"] for line in lines if line["reward"] is not None]
    mean = float(np.mean(rewards))
    console.print(f"held-out reward {mean:.3f} over {len(lines):,} outputs")
    return Summary(workdir, {"heldout/mean": mean})


def _check_files(settings: HeldoutSettings) -> None:
    if jax.process_count() > 1:
        raise UserError("heldout runs on one host; all its devices are used")
    if settings.data.records == "embedded":
        return
    for name in ("heldout", "image_root"):
        path = getattr(settings.data, name)
        if not path or not Path(path).exists():
            raise UserError(f"data.{name}: {path!r} does not exist")


def sample(settings: HeldoutSettings, workdir: Path) -> tuple[Groups, list[Score]]:
    """Completions with their scores, and their scores without the format requirement."""
    mesh = make_mesh(**asdict(settings.mesh))
    pretrained = open_pretrained(settings.model, settings.data, mesh, trains=False)
    encoder = Encoder(pretrained, settings.data)
    places = files(settings.data, workdir)
    limit = settings.rollout.max_new_tokens
    model = settings.model
    reward = mixed_reward(settings.rewards, mesh, model.dtype, model.checkpoint)
    try:
        reward.start()
        records, _ = load_checked(
            places.heldout or Path(), places.images, encoder, gold_problems=reward.gold_problems
        )
        prompts = heldout_prompts(records, encoder)
        collator = Collator(pretrained, settings.data, mesh)
        sampler = Sampler(pretrained, collator, settings.rollout, mesh, seed=settings.seed)
        keys_P = sampler.keys(0, 0, len(prompts))
        rollout = sampler(pretrained.load_params(), prompts, keys_P)
        jax.block_until_ready(rollout.tokens_PGT)
        scorer = CompletionScorer(
            reward, pretrained.chat, pretrained.processor, places.images, limit
        )
        texts = scorer.texts(rollout)
        scores = scorer.score(prompts, texts, rollout)
        check_failed(scores, settings.rewards.max_failed_frac, where="held-out records")
        pairs = zip(prompts, texts, strict=True)
        requests = [scorer.request(p, in_format(text)) for p, group in pairs for text in group]
        free = reward.score(requests, shaped=False)
    finally:
        reward.close()
    return Groups(list(prompts), rollout, texts, scores), free


def in_format(text: str) -> str:
    """The output as if it had kept the format: what follows the last mark of an answer, else all
    of it, is the answer."""
    ends = [text.rfind(mark) + len(mark) for mark in _MARKS if mark in text]
    answer = _TAG.sub(" ", text[max(ends, default=0) :]).strip()
    return f"<think> </think> <answer> {answer.removesuffix('.')} </answer>"


def outputs(groups: Groups, free: Sequence[Score]) -> Iterator[dict[str, Any]]:
    """One line per completion; a score that failed is null."""
    rollout, count = groups.rollout, groups.rollout.length_PG.shape[1]
    for p, prompt in enumerate(groups.prompts):
        for g in range(count):
            score, other = groups.scores[p * count + g], free[p * count + g]
            yield {
                "id": prompt.record.id,
                "sample": g,
                "verifier_type": prompt.record.verifier_type,
                "gt": prompt.record.gt,
                "completion": groups.texts[p][g],
                "extracted": score.extracted,
                "reward": None if score.failed else float(score.parts["raw"]),
                "free_reward": None if other.failed else float(max(other.reward, _raw(score))),
                "length": int(rollout.length_PG[p, g]),
                "truncated": bool(rollout.truncated_PG[p, g]),
            }


def _raw(score: Score) -> float:
    return 0.0 if score.failed else float(score.parts["raw"])


def units(lines: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Mean reward of each record, by verifier type, as an evaluation keeps its units."""
    by_record: dict[tuple[str, str], list[float]] = {}
    for line in lines:
        if line["reward"] is not None:
            key = line["verifier_type"], line["id"]
            by_record.setdefault(key, []).append(line["reward"])
    found: dict[str, list[dict[str, Any]]] = {}
    for (kind, record_id), rewards in by_record.items():
        one = Unit(record_id, float(np.mean(rewards)), record_id)
        found.setdefault(kind, []).append(asdict(one))
    return dict(sorted(found.items()))
