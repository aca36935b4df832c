"""MathVerse testmini, vision only (arXiv 2403.14624): 788 questions read off the image.

The judge extracts from every output; an extraction that is the gold is right, any other is compared
by the judge.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vlaa_jax.evaluate.asking import first_usable, judge_prompt
from vlaa_jax.evaluate.hub import as_column
from vlaa_jax.evaluate.nouns import Benchmark, Judge, Line, Path, Row, RowError, Scored, Verdict
from vlaa_jax.evaluate.scoring.profiles import Profile
from vlaa_jax.evaluate.scoring.storage import Cell, as_text, stored
from vlaa_jax.evaluate.tables import row_units
from vlaa_jax.foreign import parse_json

_VERSION = "Vision Only"


async def score(row: Row, output: Cell, judge: Judge | None, profile: Profile) -> Verdict:
    """The verdict on one output."""
    prompt = judge_prompt("mathverse_extract", response=as_text(output))
    reply, asked = await first_usable(judge, "extract", prompt)
    extracted = stored(reply or "", profile)
    extract_path: Path = "failed" if reply is None else "judge"
    said = None if extracted is None else str(extracted)
    gold = as_text(row["answer"])
    if as_text(extracted).strip() == gold.strip():
        return Verdict(True, "rule", said, extract_path, asked=asked)
    question = as_text(row["question_for_eval"])
    if not question.strip():
        raise RowError("question_for_eval is empty: the judge would be asked about nothing")
    prompt = judge_prompt(
        "mathverse_score", question=question, gold=gold, answer=as_text(extracted)
    )
    judgement, more = await first_usable(
        judge, "score", prompt, usable=lambda reply: reply.strip() in ("0", "1")
    )
    path: Path = "failed" if judgement is None else "judge"
    hit = judgement is not None and judgement.strip() == "1"
    return Verdict(hit, path, said, extract_path, asked=asked + more)


def table(scored: Sequence[Scored]) -> list[Line]:
    """Accuracy by subject and subfield, a line for each version; None for a group without rows."""
    kinds = [(one, _kind(one.row)) for one in scored]
    groups = dict.fromkeys(kind[place] for place in (1, 2) for _, kind in kinds)
    lines = []
    for version in sorted({kind[0] for _, kind in kinds}):
        here = [(one, kind) for one, kind in kinds if kind[0] == version]
        line: Line = {"split": version, "Overall": _accuracy([one for one, _ in here])}
        line |= {group: _accuracy([one for one, kind in here if group in kind]) for group in groups}
        lines.append(line)
    return lines


def _accuracy(scored: Sequence[Scored]) -> float | None:
    return sum(one.verdict.hit for one in scored) / len(scored) * 100 if scored else None


def _kind(row: Row) -> tuple[str, str, str]:
    """Version, subject and subfield; the last two stand in a printed dict with single quotes."""
    try:
        meta = parse_json(as_text(row["metadata"]).replace("'", '"'), finite=False)
        return as_text(row["problem_version"]), str(meta["subject"]), str(meta["subfield"])
    except (ValueError, KeyError, TypeError):
        return as_text(row["problem_version"]), "unknown", "unknown"


def from_hub(record: Mapping[str, Any], place: int) -> dict[str, str | None] | None:
    """AI4Math/MathVerse testmini, whose five versions stand in one file."""
    if record.get("problem_version") != _VERSION:
        return None
    columns = ("question", "answer", "question_for_eval", "query_cot", "problem_version")
    row = {column: as_column(record.get(column)) for column in columns}
    row["index"] = as_column(record.get("sample_index") or place + 1)
    row["metadata"] = json.dumps(record.get("metadata") or {}).replace('"', "'")
    return row


BENCHMARK = Benchmark(
    name="mathverse",
    title="MathVerse",
    dataset="MathVerse_MINI_Vision_Only",
    md5="68a11d4680014ac881fa37adeadea3a4",
    size=788,
    columns=("answer", "question_for_eval", "metadata", "problem_version"),
    judge="always",
    prompt=lambda row: as_text(row["question"]),
    score=score,
    units=row_units,
    table=table,
    from_hub=from_hub,
)
