"""Results as text, JSON, CSV and lists of verdicts."""

import contextlib
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlaa_jax import disk
from vlaa_jax.evaluate.nouns import RowError, Scored, Unit
from vlaa_jax.evaluate.report.paper import COLUMNS, ROWS
from vlaa_jax.evaluate.results import Result
from vlaa_jax.evaluate.scoring.extract import find_span, scored_text
from vlaa_jax.evaluate.scoring.storage import as_text
from vlaa_jax.evaluate.scoring_run import Scoring
from vlaa_jax.evaluate.tables import listed_options
from vlaa_jax.foreign import read_object
from vlaa_jax.schema import UserError

_MAX_UNITS = 2**28


def leaderboard_average(results: Sequence[Result]) -> float | None:
    """The plain mean of the six headlines; None unless all six are there."""
    by_name = {result.benchmark.name: result.headline for result in results}
    headlines = [by_name.get(name) for name in COLUMNS]
    known = [value for value in headlines if value is not None]
    return sum(known) / len(known) if len(known) == len(COLUMNS) else None


def summary_of(result: Result) -> dict[str, Any]:
    """A result as plain values."""
    counts = asdict(result.counts)
    counts["paths"] = {name: result.counts.paths.get(name, 0) for name in _PATHS}
    named = {"benchmark": result.benchmark.name, "headline": result.headline}
    plain = ("withheld", "as_original", "questions", "missing", "pass_at", "agreement", "table")
    nested = ("estimate", "spread", "without_think", "difference")
    return {
        **named,
        **{name: getattr(result, name) for name in plain},
        **{name: _plain(getattr(result, name)) for name in nested},
        "others": {name: _plain(value) for name, value in result.others.items()},
        "outputs": counts,
    }


_PATHS = ("rule", "judge", "unread", "failed", "unjudged", "error")


def _plain(value: Any) -> Any:
    return None if value is None else asdict(value)


def text_table(results: Sequence[Result], name: str = "this run") -> str:
    """The leaderboard's table with the paper's rows, and a line on each benchmark below it."""
    return "\n".join([*_leaderboard(results, name), "", *map(_one_line, results)])


def table_rows(results: Sequence[Result], name: str) -> list[list[str]]:
    """Header, the paper's rows and ours, as texts."""
    headlines = {result.benchmark.name: result for result in results}
    titles = ["MathVista", "MathVision", "MathVerse", "DynaMath", "WeMath", "LogicVista"]
    rows = [["model", *titles, "average"]]
    for row in ROWS:
        if row.table == "Table 4":
            cells = [f"{cell:.1f}" for cell in row.cells]
            rows.append([row.model, *cells, f"{row.printed_average:.1f}"])
    ours = [_cell(headlines.get(column)) for column in COLUMNS]
    average = leaderboard_average(results)
    return [*rows, [name, *ours, "–" if average is None else f"{average:.1f}"]]


def _leaderboard(results: Sequence[Result], name: str) -> Iterator[str]:
    rows = table_rows(results, name)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        first, *rest = (cell for cell in row)
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells])


def _cell(result: Result | None) -> str:
    return "–" if result is None or result.headline is None else f"{result.headline:.1f}"


def _one_line(result: Result) -> str:
    counts = ", ".join(
        f"{result.counts.paths[p]:,} {p}" for p in _PATHS if result.counts.paths.get(p)
    )
    parts = [f"{result.benchmark.title}: {interval(result.estimate)}", counts]
    if result.counts.by_rule is not None:
        parts.append(f"by rule {result.counts.by_rule:.1f}")
    if result.withheld:
        parts.append(f"no headline: {result.withheld}")
    return "; ".join(parts)


def interval(estimate: Any) -> str:
    """A value with its bounds."""
    if estimate is None:
        return "–"
    return f"{estimate.value:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]"


def write_csv(path: Path, results: Sequence[Result], name: str) -> None:
    """The leaderboard's table."""
    with disk.writing(path, newline="") as file:
        csv.writer(file).writerows(table_rows(results, name))


def verdict_lines(scoring: Scoring) -> Iterator[dict[str, Any]]:
    """Every output with what was extracted from where, and what was made of it."""
    for sample in scoring.samples:
        for prediction, one in zip(sample.predictions, sample.scored, strict=True):
            text = scored_text(prediction.text)
            yield {
                "index": prediction.index,
                "sample": prediction.sample,
                "hit": one.verdict.hit,
                "path": one.verdict.path,
                "extracted": one.verdict.extracted,
                "span": _span(text, one),
                "scored_text": text,
                "gold": one.row.get("answer_option") or one.row.get("answer"),
                "reason": one.verdict.reason,
                "asked": one.verdict.asked,
                "truncated": prediction.truncated,
            }


def _span(text: str, one: Scored) -> tuple[int, int] | None:
    """Where the extracted answer was said; of an option also where its text was."""
    letter = one.verdict.extracted
    found = find_span(text, letter)
    if found is not None or letter is None:
        return found
    options = {key: as_text(one.row[key]) for key in one.row if len(key) == 1}
    if one.row.get("choices"):
        with contextlib.suppress(RowError):
            options = listed_options(one.row)
    lowered = text.lower()  # as options are matched; a few letters grow by that
    return (
        find_span(lowered, options.get(letter, "").lower()) if len(lowered) == len(text) else None
    )


def write_verdicts(path: Path, scoring: Scoring) -> None:
    """Verdicts as JSON Lines."""
    with disk.writing(path) as file:
        file.writelines(
            json.dumps(line, ensure_ascii=False) + "\n" for line in verdict_lines(scoring)
        )


def write_units(path: Path, results: Sequence[Result]) -> None:
    """What headlines average, for a later run to compare with."""
    found = {result.benchmark.name: [asdict(unit) for unit in result.units] for result in results}
    disk.write_text(path, json.dumps(found) + "\n")


def read_units(path: Path) -> dict[str, list[Unit]]:
    """The units of an earlier run.

    Raises:
        UserError: no such file, or another kind of file.
    """
    try:
        found = read_object(path, _MAX_UNITS)
        return {name: [_unit(told) for told in units] for name, units in found.items()}
    except (UserError, OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise UserError(f"{path}: no units of an earlier evaluation ({error})") from error


def _unit(told: dict[str, Any]) -> Unit:
    value, known = float(told["value"]), bool(told.get("known", True))
    return Unit(str(told["key"]), value, str(told["cluster"]), known)
