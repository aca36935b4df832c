"""Step 6: what is imitated and what is explored, and the files that training reads.

Three files in the released form (JSON Lines): ``sft.jsonl`` (traces without a cue),
``aha_sft.jsonl`` (traces with one; the paper's 55K) and ``grpo.jsonl`` (at most ``rl_caps`` of a
source, drawn by seed from those that qualify). All rejects of steps 2 to 6 are in
``rejects.jsonl``.
"""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from vlaa_jax.pipeline.collect import drawn_first, known
from vlaa_jax.pipeline.outcomes import Outcomes
from vlaa_jax.pipeline.sample import Outcome, Sample
from vlaa_jax.settings.by_source import source_counts
from vlaa_jax.settings.pipeline import SplitSettings

NAME = "split"
SFT, AHA_SFT, GRPO = "sft.jsonl", "aha_sft.jsonl", "grpo.jsonl"
REJECTS, FAILED = "rejects.jsonl", "failed.jsonl"
AHA_CUES = (
    *("wait", "again", "double-check", "hmm", "mistake"),
    *("alternatively", "check", "i should confirm"),
)
"""arXiv 2504.11468, appendix A.2; "against" and "checkered" count too, as in the paper."""
_BATCH = 256

GoldProblems = Callable[[list[Sample]], list[str | None]]


def has_aha(text: str) -> bool:
    """Whether any cue is a substring of the text, whatever the case."""
    lowered = text.lower()
    return any(cue in lowered for cue in AHA_CUES)


def qualifies(sample: Sample, settings: SplitSettings) -> bool:
    """Whether the rule would have the sample explored.

    What is never imitated is explored whatever its words, and where its difficulty is not known.
    """
    if settings.rule == "aha":
        return not sample.wants_trace or has_aha(sample.trace)
    found = sample.difficulty.get(settings.rule)
    return not sample.wants_trace if found is None else settings.low <= found <= settings.high


@dataclass
class Tally:
    """Counts of a run, per source."""

    kept: Counter[str] = field(default_factory=Counter)
    sft: Counter[str] = field(default_factory=Counter)
    aha_sft: Counter[str] = field(default_factory=Counter)
    rl: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """By source, step and reason; what the split drops was kept by the steps before."""


def split(
    outcomes: Outcomes, settings: SplitSettings, workdir: Path, gold_problems: GoldProblems
) -> Tally:
    """Write the files; each is complete when it appears.

    Args:
        outcomes: of the samples that came through the steps.
        settings: rule, caps and seed.
        workdir: where the files go.
        gold_problems: says which golds of explored samples could not be scored in training.
    """
    explored: dict[str, dict[int, str]] = {}
    imitated: dict[int, str] = {}
    with_cue: dict[int, str] = {}
    refused: dict[int, tuple[str, str]] = {}
    kept = (outcome for outcome in outcomes if outcome.state == "kept")
    while batch := list(islice(kept, _BATCH)):
        candidates = [o for o in batch if "rl" in o.sample.uses and qualifies(o.sample, settings)]
        problems = gold_problems([o.sample for o in candidates])
        for outcome, problem in zip(candidates, problems, strict=True):
            place = explored.setdefault(outcome.sample.source, {})
            if problem is None:
                place[outcome.position] = outcome.sample.id
            else:
                refused[outcome.position] = ("gold cannot be scored", problem)
        for outcome in batch:
            if outcome.sample.wants_trace:
                chosen = with_cue if has_aha(outcome.sample.trace) else imitated
                chosen[outcome.position] = outcome.sample.id
            elif not qualifies(outcome.sample, settings):
                told = str(outcome.sample.difficulty[settings.rule])
                refused[outcome.position] = ("too easy or too hard to explore", told)
    if settings.rule != "aha":  # what is explored is not imitated, whatever its words
        every = {position for place in explored.values() for position in place}
        imitated = {p: name for p, name in (imitated | with_cue).items() if p not in every}
    caps = known(source_counts, settings, "rl_caps")
    rl = set()
    for source, ids in explored.items():
        rl |= drawn_first(settings.seed, ids, caps.get(source, len(ids)))
    aha = drawn_first(settings.seed, with_cue, settings.aha_cap or len(with_cue))
    return _write(outcomes, workdir, set(imitated), aha, rl, refused)


def _write(
    outcomes: Outcomes,
    workdir: Path,
    imitated: set[int],
    aha: set[int],
    rl: set[int],
    refused: dict[int, tuple[str, str]],
) -> Tally:
    tally = Tally()
    names = (SFT, AHA_SFT, GRPO, REJECTS, FAILED)
    with ExitStack() as stack:
        files = {
            name: stack.enter_context((workdir / f"{name}.partial").open("w", encoding="utf-8"))
            for name in names
        }

        def put(name: str, value: dict[str, Any]) -> None:
            files[name].write(json.dumps(value, ensure_ascii=False) + "\n")

        for outcome in outcomes:
            sample, position = outcome.sample, outcome.position
            if outcome.state == "failed":
                tally.failed[sample.source] += 1
                put(FAILED, _left(outcome))
            elif outcome.state == "dropped":
                tally.dropped[sample.source, outcome.step, outcome.reason] += 1
                put(REJECTS, _left(outcome))
            else:
                tally.kept[sample.source] += 1
                if position in imitated:
                    tally.sft[sample.source] += 1
                    put(SFT, sft_record(sample))
                if position in aha:
                    tally.aha_sft[sample.source] += 1
                    put(AHA_SFT, sft_record(sample))
                if position in rl:
                    tally.rl[sample.source] += 1
                    put(GRPO, grpo_record(sample))
                if position in refused:
                    reason, detail = refused[position]
                    tally.dropped[sample.source, NAME, reason] += 1
                    put(REJECTS, _left(Outcome(position, "dropped", sample, NAME, reason, detail)))
    for name in names:
        (workdir / f"{name}.partial").replace(workdir / name)
    return tally


def _left(outcome: Outcome) -> dict[str, Any]:
    head = {"step": outcome.step, "reason": outcome.reason, "detail": outcome.detail}
    return {"id": outcome.sample.id, **head, "sample": asdict(outcome.sample)}


def sft_record(sample: Sample) -> dict[str, Any]:
    """The sample as a line of the released SFT file."""
    return {
        "id": sample.id,
        "image": sample.image,
        "question": sample.question,
        "answer": sample.target,
        "gt": _gold(sample),
        "caption": sample.caption,
        "meta": _meta(sample),
    }


def grpo_record(sample: Sample) -> dict[str, Any]:
    """The sample as a line of the released GRPO file; its trace is in ``meta.ds_answer``."""
    trace = {"ds_answer": sample.target} if sample.thought else {}
    return {
        "id": sample.id,
        "image": sample.image,
        "question": sample.question,
        "gt": _gold(sample),
        "verifier_type": sample.verifier_type,
        "caption": sample.caption,
        "meta": {**_meta(sample), **trace},
    }


def _gold(sample: Sample) -> str | int:
    """Counts are integers in the released files."""
    counted = sample.verifier_type == "digit" and sample.gt.isdecimal() and len(sample.gt) < 10
    return int(sample.gt) if counted else sample.gt


def _meta(sample: Sample) -> dict[str, Any]:
    named = {
        "caption_model_id": sample.caption_model,
        "rationale": sample.context if sample.context != sample.meta.get("text_question") else "",
        "verdict": sample.verdict,
        "license": sample.license,
        "origin": sample.origin,
        "image_sha256": sample.digest,
        "box_space": sample.box_space,
    }
    return {**sample.meta, **{k: v for k, v in named.items() if v}, **sample.difficulty}
