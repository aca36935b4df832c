"""The tables that VLMEvalKit printed from given hits, and the leaderboard's numbers out of them."""

from typing import Any

import pytest

from golden_cases import tables
from vlaa_jax.evaluate.benchmarks import benchmark_named, dynamath, wemath
from vlaa_jax.evaluate.nouns import Scored, Verdict

TABLES = [table for table in tables() if table["printed"] and "error" not in table["printed"]]


def _scored(table: dict[str, Any]) -> list[Scored]:
    if "problems" in table:
        return [
            one for place, problem in enumerate(table["problems"]) for one in _rows(problem, place)
        ]
    scored = []
    for place, row in enumerate(table["rows"]):
        path = "rule" if row.get("prefetch") else "judge"
        columns = {key: str(value) for key, value in row.items()}
        if table["benchmark"] == "MathVerse":
            pair = {key: row[key] for key in ("subject", "subfield")}
            columns["metadata"] = str({"split": "testmini", **pair})
        scored.append(Scored({"index": str(place), **columns}, Verdict(bool(row["hit"]), path)))
    return scored


def _rows(problem: dict[str, Any] | str, place: int) -> list[Scored]:
    if isinstance(problem, str):
        steps, hits, whole = problem.split("|")
        problem = {
            "steps": int(steps),
            "sub_hits": [int(hit) for hit in hits],
            "multi_hit": int(whole),
        }
    base = {"ID": str(problem.get("ID", place)), "index": "0"}
    concepts = problem.get("concepts") or ["unknown"] * problem["steps"]
    rows = [
        Scored(
            {**base, "key": f"{problem['steps']}steps_{step}", "knowledge concept": concept},
            Verdict(bool(hit), "rule"),
        )
        for step, (hit, concept) in enumerate(zip(problem["sub_hits"], concepts, strict=True), 1)
    ]
    whole = {**base, "key": f"{problem['steps']}steps_multi", "knowledge concept": None}
    return [*rows, Scored(whole, Verdict(bool(problem["multi_hit"]), "rule"))]


def _close(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, float):
        return ours == pytest.approx(theirs, abs=1e-9)
    return ours == theirs


@pytest.mark.parametrize(
    "table", TABLES, ids=lambda t: f"{t['benchmark']}-{t['table']}-{t['profiles'][0]}"
)
def test_a_table_is_that_of_the_original(table):
    ours = benchmark_named(table["benchmark"].lower()).table(_scored(table))
    printed = table["printed"]
    if isinstance(printed, dict):
        (line,) = ours
        assert {key: line[key] for key in printed} == printed
        return
    heading = next(iter(printed[0]))
    ours_by_name = {line[heading]: line for line in ours}
    assert list(ours_by_name) == [line[heading] for line in printed]
    for line in printed:
        for key, value in line.items():
            assert _close(ours_by_name[line[heading]][key], value), (line[heading], key)


def test_the_leaderboards_numbers_come_out_of_the_units():
    by_name = {(table["benchmark"], table["table"]): table for table in TABLES}
    scored = _scored(by_name["DynaMath", "main"])
    worst = [unit.value for unit in dynamath.worst_case(scored)]
    average = [unit.value for unit in dynamath.average(scored)]
    printed = {line["Setting"]: line["Overall"] for line in by_name["DynaMath", "main"]["printed"]}
    assert sum(worst) / len(worst) == pytest.approx(printed["Worst Case"])
    assert sum(average) / len(average) == pytest.approx(printed["Average"])
    full = by_name["WeMath", "full_525"]
    for units, name in ((wemath.strict_units, "Strict"), (wemath.loose_units, "Loose")):
        values = [unit.value for unit in units(_scored(full))]
        assert len(values) == 525
        assert f"{sum(values) / 5.25:.2f}%" == full["printed"][f"Score ({name})"]


def test_where_the_original_divides_by_zero_there_is_a_table_without_that_rate():
    (table,) = (table for table in tables() if table["table"] == "no_multi_right")
    (line,) = wemath.BENCHMARK.table(_scored(table))
    assert line["RoteMemorization (Strict)"].startswith("–")
    assert line["CompleteMastery (Strict)"].endswith("(0)")


def test_a_failed_judge_leaves_a_question_open_unless_a_variant_is_wrong():
    def row(question: str, path: str, hit: bool) -> Scored:
        return Scored({"qid": question, "index": "0"}, Verdict(hit, path))

    units = dynamath.worst_case(
        [
            row("open", "rule", True),
            row("open", "failed", False),
            row("wrong", "rule", False),
            row("wrong", "failed", False),
            row("right", "rule", True),
        ]
    )
    assert {unit.key: (unit.value, unit.known) for unit in units} == {
        "open": (0.0, False),
        "wrong": (0.0, True),
        "right": (1.0, True),
    }
