"""Every recorded verdict of VLMEvalKit, row by row, under both profiles."""

import asyncio
from typing import Any

import pytest

from golden_cases import ScriptedJudge, cases
from vlaa_jax.evaluate.benchmarks import benchmark_named
from vlaa_jax.evaluate.score import Output, Scorer
from vlaa_jax.evaluate.scoring.profiles import profile_named

# The original runs these as Python code, and a name, call, comparison, index or boolean gives a
# number. Nothing of the kind is run here, so the answer is only the text it is.
RUN_AS_CODE = {
    "mathvision-108": "reads a local variable of the evaluator",
    "mathvision-111": "the boolean operator 'and' gives its last value",
    "mathvision-113": "calls max",
    "mathvision-114": "calls len",
    "mathvision-119": "a comparison gives True, which is 1",
    "mathvision-120": "indexes a list",
    "mathvision-123": "adds a local variable of the evaluator",
}


def _verdict(case: dict[str, Any]):
    judge = ScriptedJudge(case["judge"])
    benchmark = benchmark_named(case["benchmark"].lower())
    asks = None if case.get("mode") == "exact_matching" else judge
    row = {"index": "1", **case["row"]}
    scorer = Scorer(benchmark, profile_named(case["profile"]), asks)
    return asyncio.run(scorer.verdict(Output(row, case["prediction"]))).verdict, judge


def _path(verdict, case) -> str:
    return "failed" if case["path"] == "random" else case["path"]


def _same(ours: str | None, theirs: Any) -> bool:
    if theirs is None or ours is None:
        return ours is None and theirs is None
    if isinstance(theirs, int | float):
        return abs(float(ours) - theirs) < 1e-9
    return ours == theirs


CASES = list(cases())
PLAIN = [case for case in CASES if case["id"] not in RUN_AS_CODE]
CODE = [case for case in CASES if case["id"] in RUN_AS_CODE]


def _name(case: dict[str, Any]) -> str:
    return f"{case['id']}-{case['profile']}"


@pytest.mark.parametrize("case", PLAIN, ids=_name)
def test_a_verdict_is_that_of_the_original(case):
    verdict, judge = _verdict(case)
    assert not judge.left, "the original asked on"
    assert verdict.hit == bool(case["hit"]), verdict
    assert verdict.path == _path(verdict, case)
    if case["path"] not in ("error", "random"):
        assert _same(verdict.extracted, case["extracted"]), (verdict, case["extracted"])
    if "extract_path" in case:
        assert verdict.extract_path == case["extract_path"]


@pytest.mark.parametrize("case", CODE, ids=_name)
def test_what_the_original_runs_as_code_is_not_run(case):
    assert case["unsafe"] == "code" and case["hit"] == 1
    script = case["judge"] or [{"stage": "extract", "reply": case["prediction"], "temperature": 0}]
    verdict, _ = _verdict({**case, "judge": script})
    assert not verdict.hit
