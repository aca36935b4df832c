"""LogicVista (arXiv 2407.04973): 447 questions with one or more letters as the answer.

Only the judge reads the outputs, and its reply must be nothing but capital letters.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vlaa_jax.evaluate.asking import first_usable, judge_prompt
from vlaa_jax.evaluate.hub import as_column
from vlaa_jax.evaluate.nouns import Benchmark, Judge, Line, Row, Scored, Verdict
from vlaa_jax.evaluate.scoring.profiles import Profile
from vlaa_jax.evaluate.scoring.storage import Cell, as_text, stored
from vlaa_jax.evaluate.tables import accuracy_lines, row_units

SKILLS = ("inductive", "deductive", "numerical", "spatial", "mechanical")


async def score(row: Row, output: Cell, judge: Judge | None, profile: Profile) -> Verdict:
    """The verdict on one output."""
    prompt = judge_prompt(
        "logicvista_extract", question=as_text(row["question"]), response=as_text(output)
    )
    reply, asked = await first_usable(judge, "extract", prompt, usable=_is_capitals)
    if reply is None:
        return Verdict(False, "failed", None, reason="no letters in any reply", asked=asked)
    gold = sorted(letter.lower() for letter in as_text(row["answer"]).split(", "))
    said = sorted(letter.lower() for letter in reply)
    cell = stored(reply, profile)
    shown = None if cell is None else str(cell)
    return Verdict("".join(said) == "".join(gold), "judge", shown, asked=asked)


def _is_capitals(reply: str) -> bool:
    return reply.isupper() and reply.isalpha()


def _skills(row: Row) -> list[str]:
    return [skill for skill in SKILLS if skill in as_text(row["skill"])]


def table(scored: Sequence[Scored]) -> list[Line]:
    """Accuracy by skill; a row counts in every skill that its text names."""
    lines = accuracy_lines(scored, _skills, "Task&Skill", prefetched=False)
    found = {line["Task&Skill"]: line for line in lines}
    empty = {"tot": 0, "hit": 0, "acc": None}
    return [
        found.get(name, {"Task&Skill": name, **empty}) for name in ("Overall", *SKILLS) if scored
    ]


def from_hub(record: Mapping[str, Any], place: int) -> dict[str, str | None]:
    """lscpku/LogicVista; a list of letters or skills becomes the text of the public table."""
    row = {"index": str(place)}
    columns = {
        column: as_column(_joined(record.get(column))) for column in ("question", "answer", "skill")
    }
    return row | columns


def _joined(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


BENCHMARK = Benchmark(
    name="logicvista",
    title="LogicVista",
    dataset="LogicVista",
    md5="41c5d33adf33765c399e0e6ae588c061",
    size=447,
    columns=("answer", "skill"),
    judge="always",
    prompt=lambda row: as_text(row["question"]),
    score=score,
    units=row_units,
    table=table,
    from_hub=from_hub,
)
