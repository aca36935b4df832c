"""DynaMath (arXiv 2411.00836): 501 questions in ten variants each, 5,010 rows.

The leaderboard's number is the worst case: a question counts when all its variants are right.
Outputs are asked for as JSON with a short answer; what cannot be read goes to the judge once.
Answers that are words pass as a fragment of the gold, even an empty one, as in the original.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vlaa_jax.evaluate.asking import first_usable, judge_prompt
from vlaa_jax.evaluate.hub import as_column
from vlaa_jax.evaluate.nouns import Benchmark, Judge, Line, Row, RowError, Scored, Unit, Verdict
from vlaa_jax.evaluate.scoring.profiles import Profile
from vlaa_jax.evaluate.scoring.storage import Cell, as_text
from vlaa_jax.evaluate.tables import mean

TOLERANCE = 0.001
QUESTIONS = 501
VARIANTS = 10

_LETTERS = "ABCDE"
_ASKED_FOR = {
    "multiple choice": "In 'short answer' give only the letter of the option, such as 'A' or 'C'.",
    "float": "In 'short answer' give a number with three digits after the point.",
}
_ASKED_OF_JUDGE = {
    "multiple choice": "only the letter of the chosen option, such as A or C",
    "float": "only the number, with three digits after the point",
}
_OTHERWISE = "Write numbers in 'short answer' with three digits after the point."


def prompt(row: Row) -> str:
    """The question with what is asked of the reply, by type of answer."""
    kind = as_text(row["answer_type"])
    return judge_prompt(
        "dynamath",
        question=as_text(row["question"]),
        asked=_ASKED_FOR.get(kind, _OTHERWISE),
    )


async def score(row: Row, output: Cell, judge: Judge | None, profile: Profile) -> Verdict:
    """The verdict on one output."""
    if profile.missing_output_is_error and not isinstance(output, str):
        raise RowError("the stored output is no text")
    kind, text = as_text(row["answer_type"]), _braced(as_text(output))
    said = _from_json(text, kind)
    if said is not None:
        return Verdict(_right(row, kind, said), "rule", _shown(said))
    said = _read(text, kind)
    if said is not None:
        return Verdict(_right(row, kind, said), "rule", _shown(said))
    asked_for = _ASKED_OF_JUDGE.get(kind, "only the answer itself, in a few words")
    question = judge_prompt("dynamath_extract", response=text, asked=asked_for)
    reply, asked = await first_usable(
        judge, "extract", question, attempts=1, warmer=False, max_tokens=2_048
    )
    said = None if reply is None else _read(reply, kind)
    if said is not None:
        return Verdict(_right(row, kind, said), "judge", _shown(said), asked=asked)
    reason = "no reply" if reply is None else f"the reply {reply[:40]!r} holds no answer"
    begins = kind == "multiple choice" and as_text(row["answer"]) in text[:3].upper()
    return Verdict(begins, "failed", None, reason=reason, asked=asked, unread=reply is not None)


def _braced(text: str) -> str:
    """From the first opening to the last closing brace, without any backslash."""
    start, end = text.find("{"), text.rfind("}")
    if 0 <= start < end:
        text = text[start : end + 1]
    return text.replace("\\", "")


def _from_json(text: str, kind: str) -> Any:
    """The parsed short answer of a JSON object; None where there is none."""
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    short = value.get("short answer") if isinstance(value, dict) else None
    if short is None:
        return None
    if kind in ("float", "multiple choice"):
        try:
            return _read(short, kind) if isinstance(short, str) else None
        except RowError:
            return None
    return short


def _read(text: str, kind: str) -> Any:
    """A short answer by type: a float, a letter in capitals, or the text; None where it is none."""
    if kind == "float":
        return _float(text)
    if kind != "multiple choice":
        return text
    if len(text) == 1:
        return text.upper()
    found = [letter for letter in _LETTERS if letter in text.upper()]
    return found[0] if len(found) == 1 else None


def _float(text: str) -> float | None:
    if text.isdigit() and not text.isdecimal():
        raise RowError("a digit that is no decimal stops the original")
    number, pi, _ = text.split(" ")[0].partition("π")
    try:
        return float(number) * (math.pi if pi else 1)
    except ValueError:
        return None


def _right(row: Row, kind: str, said: Any) -> bool:
    gold = as_text(row["answer"])
    if kind == "float":
        try:
            return abs(said - float(gold)) <= TOLERANCE
        except ValueError:
            raise RowError("the gold is no number") from None
    if kind == "multiple choice":
        return bool(said == gold)
    if not isinstance(said, str):
        raise RowError("the short answer is no text")
    return said.lower() in gold.lower()


def _shown(said: Any) -> str | None:
    text = str(said)
    return None if text in ("", "nan") else text


def worst_case(scored: Sequence[Scored]) -> list[Unit]:
    """A unit for each question: 1 when all its variants are right.

    A question with a wrong variant is 0 whatever a failed judge would have said of the others.
    """
    units = []
    for question, variants in _by_question(scored).items():
        right = all(one.verdict.hit for one in variants)
        wrong = any(one.verdict.known and not one.verdict.hit for one in variants)
        known = wrong or all(one.verdict.known for one in variants)
        units.append(Unit(question, float(right), question, known))
    return units


def average(scored: Sequence[Scored]) -> list[Unit]:
    """A unit for each row; the variants of a question belong together."""
    return [
        Unit(as_text(row["index"]), float(verdict.hit), as_text(row["qid"]), verdict.known)
        for row, verdict in ((one.row, one.verdict) for one in scored)
    ]


def _by_question(scored: Sequence[Scored]) -> dict[str, list[Scored]]:
    questions: dict[str, list[Scored]] = {}
    for one in scored:
        questions.setdefault(as_text(one.row["qid"]), []).append(one)
    return questions


def table(scored: Sequence[Scored]) -> list[Line]:
    """Average and worst case as fractions, overall, by subject and by level."""
    questions = _by_question(scored)
    worst = {question: all(one.verdict.hit for one in ones) for question, ones in questions.items()}
    first = [one for one in scored if as_text(one.row["varid"]) == "1"]
    return [
        _line("Average", scored, [float(one.verdict.hit) for one in scored]),
        _line("Worst Case", first, [float(worst[as_text(one.row["qid"])]) for one in first]),
    ]


def _line(setting: str, scored: Sequence[Scored], values: Sequence[float]) -> Line:
    line: Line = {"Setting": setting, "Overall": mean(values)}
    for prefix, column in (("Subject", "subject"), ("Level", "knowledge_level")):
        for group in sorted({as_text(one.row[column]) for one in scored}):
            pairs = zip(scored, values, strict=True)
            inside = [value for one, value in pairs if as_text(one.row[column]) == group]
            line[f"{prefix}-{group}"] = mean(inside)
    return line


def from_hub(record: Mapping[str, Any], place: int) -> dict[str, str | None]:
    """DynaMath/DynaMath_Sample, whose ten splits of 501 follow each other."""
    variant, question = divmod(place, QUESTIONS)
    row = {
        "index": str(place),
        "qid": str(question),
        "varid": str(variant + 1),
        "answer": as_column(record.get("ground_truth")),
    }
    columns = ("question", "answer_type", "subject", "knowledge_level")
    return row | {column: as_column(record.get(column)) for column in columns}


BENCHMARK = Benchmark(
    name="dynamath",
    title="DynaMath",
    dataset="DynaMath",
    md5="b8425ad9a7114571fc9366e013699494",
    size=QUESTIONS * VARIANTS,
    columns=("qid", "varid", "answer", "answer_type", "subject", "knowledge_level"),
    judge="sometimes",
    prompt=prompt,
    score=score,
    units=worst_case,
    table=table,
    from_hub=from_hub,
    other_scores={"average": average},
)
