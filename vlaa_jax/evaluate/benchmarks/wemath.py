"""WeMath testmini (arXiv 2407.01284): 525 problems in steps, 1,740 rows, the strict score.

Every problem asks its steps one by one and then all at once. With S all steps right and M the whole
right: S and M is mastery, S without M inadequate generalisation, M without S rote memorisation,
neither insufficient knowledge. Strict pays mastery 1 and inadequate generalisation 1/2; loose calls
it rote only where no step is right.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vlaa_jax.evaluate.asking import first_usable, judge_prompt
from vlaa_jax.evaluate.hub import as_column
from vlaa_jax.evaluate.nouns import Benchmark, Judge, Line, Row, RowError, Scored, Unit, Verdict
from vlaa_jax.evaluate.scoring.options import FAILURE_TEXT, chosen_option
from vlaa_jax.evaluate.scoring.profiles import Profile
from vlaa_jax.evaluate.scoring.storage import Cell, as_text
from vlaa_jax.evaluate.tables import mean

PROBLEMS = 525
OPTIONS = "ABCDEFG"

_REMOVED = str.maketrans("", "", "><:.")
_HUB_LETTER = re.compile(r"([A-G])\s*[.:]")
_CONCEPTS = Path(__file__).parent.parent / "prompts" / "wemath_concepts.txt"
Kind = Literal["mastery", "inadequate", "rote", "insufficient"]


def prompt(row: Row) -> str:
    """Hint, question and options, as on the leaderboard (without the column ``requirement``)."""
    hint = f"Hint: {row['hint']}\n" if row.get("hint") is not None else ""
    options = "".join(f"{letter}. {text}\n" for letter, text in _options(row).items())
    listed = f"Options:\n{options}" if options else ""
    return f"{hint}Question: {as_text(row['question'])}\n{listed}"


async def score(row: Row, output: Cell, judge: Judge | None, profile: Profile) -> Verdict:
    """The verdict on one output: by matcher and judge, or exactly where there is no judge."""
    if judge is None:
        return score_exactly(row, output)
    options, gold = _options(row), as_text(row["answer"])
    matched = functools.partial(chosen_option, options=options, profile=profile)
    letter = matched(as_text(output))
    if letter:
        return Verdict(letter == gold, "rule", letter)
    question = judge_prompt(
        "wemath_match",
        question=as_text(row["question"]),
        options="\n".join(f"{letter}. {text}" for letter, text in options.items()),
        response=as_text(output),
    )
    reply, asked = await first_usable(
        judge,
        "match",
        question,
        usable=lambda reply: FAILURE_TEXT not in reply and bool(matched(reply)),
        attempts=3,
        warmer=False,
    )
    if reply is None:
        return Verdict(False, "failed", None, reason="no option in any reply", asked=asked)
    letter = matched(reply)
    return Verdict(letter == gold, "judge", letter, asked=asked)


def score_exactly(row: Row, output: Cell) -> Verdict:
    """The official way without a judge: the first character after the last ``Answer``."""
    if not isinstance(output, str):
        raise RowError("the stored output is no text")
    said = output.split("Answer")[-1].strip().translate(_REMOVED).strip()[:1]
    letter = said if said and said in "ABCDEFGH" else None
    return Verdict(letter is not None and letter == row["answer"], "rule", letter)


def _options(row: Row) -> dict[str, str]:
    return {letter: str(row[letter]) for letter in OPTIONS if row.get(letter) is not None}


# -- problems


def problems(scored: Sequence[Scored]) -> dict[str, tuple[list[Scored], list[Scored]]]:
    """Steps and whole of each problem, by its ID."""
    found: dict[str, tuple[list[Scored], list[Scored]]] = {}
    for one in scored:
        steps, whole = found.setdefault(as_text(one.row["ID"]), ([], []))
        (whole if as_text(one.row["key"]).endswith("_multi") else steps).append(one)
    return found


def kind_of(steps: Sequence[bool], whole: bool, *, strict: bool) -> Kind:
    """Which of the four cases a problem is."""
    if whole:
        mastered = all(steps) if strict else any(steps)
        return "mastery" if mastered else "rote"
    return "inadequate" if all(steps) else "insufficient"


def four_way(kinds: Sequence[Kind], total: int = PROBLEMS) -> dict[str, float | None]:
    """Score and rates in percent; rote memorisation is relative to all wholes that are right."""
    count = {kind: kinds.count(kind) for kind in ("mastery", "inadequate", "rote", "insufficient")}
    right = count["mastery"] + count["rote"]
    lost = 0.5 * count["inadequate"] + count["rote"] + count["insufficient"]
    return {
        "Score": 100 * (total - lost) / total,
        "InsufficientKnowledge": 100 * count["insufficient"] / total,
        "InadequateGeneralization": 100 * count["inadequate"] / total,
        "CompleteMastery": 100 * count["mastery"] / total,
        "RoteMemorization": 100 * count["rote"] / right if right else None,
    }


def _units(scored: Sequence[Scored], *, strict: bool) -> list[Unit]:
    paid = {"mastery": 1.0, "inadequate": 0.5, "rote": 0.0, "insufficient": 0.0}
    units = []
    for problem, (steps, wholes) in problems(scored).items():
        hits = [one.verdict.hit for one in steps]
        kind = kind_of(hits, all(one.verdict.hit for one in wholes) and bool(wholes), strict=strict)
        known = all(one.verdict.known for one in (*steps, *wholes))
        units.append(Unit(problem, paid[kind], problem, known))
    return units


def strict_units(scored: Sequence[Scored]) -> list[Unit]:
    """A unit for each problem, worth what strict pays."""
    return _units(scored, strict=True)


def loose_units(scored: Sequence[Scored]) -> list[Unit]:
    """A unit for each problem, worth what loose pays."""
    return _units(scored, strict=False)


def table(scored: Sequence[Scored]) -> list[Line]:
    """The metrics as the original prints them, whose divisor is 525 whatever the number of rows."""
    line: Line = {}
    found = problems(scored)
    for name, strict in (("Strict", True), ("Loose", False)):
        kinds = [
            kind_of(
                [one.verdict.hit for one in steps],
                bool(wholes) and all(one.verdict.hit for one in wholes),
                strict=strict,
            )
            for steps, wholes in found.values()
        ]
        rates = four_way(kinds)
        counts = {
            "InsufficientKnowledge": kinds.count("insufficient"),
            "InadequateGeneralization": kinds.count("inadequate"),
            "CompleteMastery": kinds.count("mastery"),
            "RoteMemorization": kinds.count("rote"),
        }
        line[f"Score ({name})"] = _percent(rates["Score"])
        for metric, number in counts.items():
            line[f"{metric} ({name})"] = f"{_percent(rates[metric])} ({number})"
    return [line | _by_steps(scored) | _by_concept(scored)]


def _by_steps(scored: Sequence[Scored]) -> Line:
    kinds: dict[str, list[float]] = {"One-step(S1)": [], "Two-step(S2)": [], "Three-step(S3)": []}
    for one in scored:
        key = as_text(one.row["key"])
        name = "One-step(S1)"
        if key.endswith("_multi"):
            name = "Two-step(S2)" if key.startswith("2") else "Three-step(S3)"
        kinds[name].append(100.0 * one.verdict.hit)
    return {name: _percent(mean(values)) for name, values in kinds.items() if values}


def _by_concept(scored: Sequence[Scored]) -> Line:
    """Rates of groups of concepts: means over concepts, not over rows; steps only."""
    hits: dict[str, list[float]] = {}
    for one in scored:
        if not as_text(one.row["key"]).endswith("_multi"):
            concept = as_text(one.row.get("knowledge concept"))
            hits.setdefault(concept, []).append(100.0 * one.verdict.hit)
    groups: dict[str, list[float]] = {}
    for concept, group in concept_groups().items():
        if concept in hits:
            groups.setdefault(group, []).append(sum(hits[concept]) / len(hits[concept]))
    return {group: _percent(mean(rates)) for group, rates in groups.items()}


@functools.cache
def concept_groups() -> dict[str, str]:
    """The group of each concept, as labelled by the data set."""
    lines = _CONCEPTS.read_text(encoding="utf-8").splitlines()
    pairs = (line.split(" | ") for line in lines if line)
    return {concept: group for group, concept in pairs}


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}%"


def from_hub(record: Mapping[str, Any], place: int) -> dict[str, str | None]:
    """We-Math/We-Math testmini, whose options stand in one text."""
    columns = ("ID", "key", "question", "answer", "knowledge concept", "hint")
    row = {column: as_column(record.get(column)) for column in columns}
    row["index"] = str(place)
    _, *parts = _HUB_LETTER.split(str(record.get("option") or ""))
    texts = [text.strip().removesuffix(";").rstrip() for text in parts[1::2]]
    return row | {letter: as_column(text) for letter, text in zip(parts[::2], texts, strict=True)}


BENCHMARK = Benchmark(
    name="wemath",
    title="WeMath",
    dataset="WeMath",
    md5="b5e969a075f01290a542411fb7766388",
    size=1_740,
    columns=("ID", "key", "answer", "knowledge concept", "hint", *OPTIONS),
    judge="optional",
    prompt=prompt,
    score=score,
    units=strict_units,
    table=table,
    from_hub=from_hub,
    other_scores={"loose": loose_units},
)
