"""MathVision (arXiv 2402.14804), full test and its mini set: plain accuracy.

A choice is matched by rule, a free-form answer by ``answers_equal``; the judge extracts from the
rest. In ``2025-04`` no free-form answer is right without the judge: the original's time limit fails
in worker threads there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlaa_jax.evaluate.asking import extract_and_compare
from vlaa_jax.evaluate.hub import as_column, with_choices
from vlaa_jax.evaluate.nouns import Benchmark, Judge, Line, Row, Scored, Verdict
from vlaa_jax.evaluate.scoring.equality import answers_equal
from vlaa_jax.evaluate.scoring.options import chosen_option
from vlaa_jax.evaluate.scoring.profiles import Profile
from vlaa_jax.evaluate.scoring.storage import Cell, as_text
from vlaa_jax.evaluate.tables import accuracy_lines, listed_options, row_units


async def score(row: Row, output: Cell, judge: Judge | None, profile: Profile) -> Verdict:
    """The verdict on one output."""
    options = listed_options(row)
    return await extract_and_compare(
        row,
        output,
        judge,
        profile,
        by_rule=_by_rule(row, options, output, profile),
        right=lambda extracted: _right(row, options, extracted, profile),
    )


def _by_rule(row: Row, options: dict[str, str], output: Cell, profile: Profile) -> str | None:
    text = as_text(output)
    if options:
        return chosen_option(text, options, profile)
    equal = profile.free_form_by_rule and answers_equal(text, as_text(row["answer"]), profile.latex)
    return text if equal else None


def _right(row: Row, options: dict[str, str], extracted: Cell, profile: Profile) -> bool:
    said: str | None = as_text(extracted)
    if options:
        said = chosen_option(as_text(extracted), options, profile)
    return said is not None and answers_equal(said, as_text(row["answer"]), profile.latex)


def table(scored: Sequence[Scored]) -> list[Line]:
    """Accuracy by category, sorted by name."""
    lines = accuracy_lines(scored, lambda row: [as_text(row["category"])], "Subject")
    return sorted(lines, key=lambda line: str(line["Subject"]))


def from_hub(record: Mapping[str, Any], place: int) -> dict[str, str | None]:
    """MathLLMs/MathVision; the options are written below the question."""
    options = [str(option) for option in record.get("options") or []]
    return {
        "index": as_column(record.get("id") or place + 1),
        "question": with_choices(as_column(record.get("question")) or "", options),
        "answer": as_column(record.get("answer")),
        "choices": repr(options),
        "category": as_column(record.get("subject") or record.get("category")),
    }


BENCHMARK = Benchmark(
    name="mathvision",
    title="MathVision",
    dataset="MathVision",
    md5="93f6de14f7916e598aa1b7165589831e",
    size=3_040,
    columns=("answer", "choices", "category"),
    judge="sometimes",
    prompt=lambda row: as_text(row["question"]),
    score=score,
    units=row_units,
    table=table,
    from_hub=from_hub,
)
MINI = replace(
    BENCHMARK,
    name="mathvision_mini",
    title="MathVision mini",
    dataset="MathVision_MINI",
    md5="060fe4fa5d868987ce179307bd5f8a33",
    size=304,
)
