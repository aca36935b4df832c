"""MathVista testmini (arXiv 2310.02255): 1,000 questions on images, plain accuracy.

A choice is matched by rule, a number must parse as a whole; the judge extracts from the rest. Two
quirks of the original are kept: answers that are text or lists are always wrong, and a correct 0
goes to the judge, because it is taken for nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vlaa_jax.evaluate.asking import extract_and_compare
from vlaa_jax.evaluate.hub import as_column, choice_letter
from vlaa_jax.evaluate.nouns import Benchmark, Judge, Line, Row, Scored, Verdict
from vlaa_jax.evaluate.scoring.options import chosen_option
from vlaa_jax.evaluate.scoring.profiles import Profile
from vlaa_jax.evaluate.scoring.storage import Cell, as_text
from vlaa_jax.evaluate.tables import accuracy_lines, listed, listed_options, row_units

_NUMBER = {"integer": int, "float": float}
_MAX_DIGITS = 4_000


async def score(row: Row, output: Cell, judge: Judge | None, profile: Profile) -> Verdict:
    """The verdict on one output."""
    options = listed_options(row) if row["question_type"] == "multi_choice" else None
    return await extract_and_compare(
        row,
        output,
        judge,
        profile,
        by_rule=_by_rule(row, options, output, profile),
        right=lambda extracted: _right(row, options, extracted, profile),
    )


def _by_rule(
    row: Row, options: Mapping[str, str] | None, output: Cell, profile: Profile
) -> str | None:
    if options is not None:
        return chosen_option(as_text(output), options, profile)
    value = _number(row, output)
    return str(value) if value and value == _number(row, row["answer"]) else None


def _right(row: Row, options: Mapping[str, str] | None, extracted: Cell, profile: Profile) -> bool:
    if options is not None:
        letter = chosen_option(as_text(extracted), options, profile)
        return letter is not None and letter == row["answer_option"]
    value = _number(row, extracted)
    return value is not None and value == _number(row, row["answer"])


def _number(row: Row, cell: Cell) -> int | float | None:
    """The whole cell as the number that the row asks for; None of any other kind of answer."""
    read = _NUMBER.get(as_text(row["answer_type"]))
    if read is None or cell is None or len(str(cell)) > _MAX_DIGITS:
        return None
    try:
        return read(cell)
    except (ValueError, OverflowError):
        return None


def table(scored: Sequence[Scored]) -> list[Line]:
    """Accuracy by skill and task; a skill that is named like the task counts twice."""
    return accuracy_lines(
        scored, lambda row: [*listed(row["skills"]), as_text(row["task"])], "Task&Skill"
    )


def from_hub(record: Mapping[str, Any], place: int) -> dict[str, str | None]:
    """AI4Math/MathVista; ``query`` is the question with its hint and lettered choices."""
    choices = list(record.get("choices") or [])
    meta = record.get("metadata") or {}
    return {
        "index": as_column(record.get("pid") or place + 1),
        "question": as_column(record.get("query") or record.get("question")),
        "answer": as_column(record.get("answer")),
        "answer_option": choice_letter(choices, record.get("answer")),
        "question_type": as_column(record.get("question_type")),
        "answer_type": as_column(record.get("answer_type")),
        "choices": repr([str(choice) for choice in choices]),
        "task": as_column(meta.get("task")),
        "skills": repr([str(skill) for skill in meta.get("skills") or []]),
    }


BENCHMARK = Benchmark(
    name="mathvista",
    title="MathVista",
    dataset="MathVista_MINI",
    md5="f199b98e178e5a2a20e7048f5dcb0464",
    size=1_000,
    columns=(
        *("answer", "answer_option", "question_type", "answer_type", "choices"),
        *("task", "skills"),
    ),
    judge="sometimes",
    prompt=lambda row: as_text(row["question"]),
    score=score,
    units=row_units,
    table=table,
    from_hub=from_hub,
)
