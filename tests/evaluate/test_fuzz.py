"""Random outputs and replies under every benchmark: no crash, nothing run, a verdict each time.

``VLAA_FUZZ_CASES=100000`` runs the number that ``docs/evaluation.md`` reports.
"""

import asyncio
import os
import random
import re
import sys

import pytest

from test_values import PIECES
from vlaa_jax.evaluate import asking
from vlaa_jax.evaluate.benchmarks import LEADERBOARD
from vlaa_jax.evaluate.nouns import Question
from vlaa_jax.evaluate.score import Output, Scorer
from vlaa_jax.evaluate.scoring.extract import scored_text
from vlaa_jax.evaluate.scoring.profiles import PROFILES

CASES = int(os.environ.get("VLAA_FUZZ_CASES", "3000"))
TAGS = "<think> </think> <answer> </answer> answer is A B C D Z null Answer ( ) . , : ; * #"
JSON = '{"short answer": "5"} {"short answer": ["x"]} short answer [1, 2] \\n =5 http://x'
LONG = ["[" * 200, "{" * 200, "x" * 3000]
KNOWN = ["Failed to obtain answer via API", "I can't process this file."]
WORDS = [*PIECES, *TAGS.split(), *JSON.split(), *LONG, *KNOWN]


SEEN: list[str] = []
WATCHED = ("exec", "os.system", "subprocess.Popen", "socket.connect", "open", "import")
watching = False


def _hook(event: str, arguments: object) -> None:
    if watching and event in WATCHED:
        SEEN.append(f"{event} {arguments}")


sys.addaudithook(_hook)  # the interpreter's own account of what runs; it cannot be taken off again


class RandomJudge:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    async def ask(self, question: Question) -> str | None:
        return self.rng.choice([None, "", "B", "0", "1", "AB", sentence(self.rng)])


def sentence(rng: random.Random) -> str:
    return rng.choice(["", " "]).join(rng.choices(WORDS, k=rng.randint(0, 12)))


def row(rng: random.Random) -> dict[str, str | None]:
    kinds = ["multi_choice", "free_form", "float", "multiple choice", "text", "integer", "", None]
    choices = ["['A', 'B']", "[]", "['1', '12']", "nonsense", "__import__('os')", None]
    return {
        "index": "1",
        "question": sentence(rng),
        "question_for_eval": sentence(rng),
        "answer": rng.choice(["5", "B", "0", sentence(rng), None]),
        "answer_option": rng.choice(["A", "B", None]),
        "question_type": rng.choice(kinds),
        "answer_type": rng.choice(kinds),
        "choices": rng.choice(choices),
        "A": rng.choice(["1", "one", None]),
        "B": rng.choice(["12", "a", None]),
    }


@pytest.mark.parametrize("benchmark", LEADERBOARD, ids=lambda one: one.name)
def test_every_text_gets_a_verdict(benchmark):
    global watching
    rng = random.Random(benchmark.name)
    for prompt in ("extract_answer", "mathverse_extract", "mathverse_score", "dynamath_extract"):
        asking._template(prompt)  # read once, not while it is watched
    for prompt in ("wemath_match", "logicvista_extract"):
        asking._template(prompt)

    async def all_of_them() -> None:
        for _ in range(CASES // len(LEADERBOARD)):
            judge = rng.choice([None, RandomJudge(rng)])
            profile = rng.choice(list(PROFILES.values()))
            output = Output(row(rng), sentence(rng))
            verdict = (await Scorer(benchmark, profile, judge).verdict(output)).verdict
            assert isinstance(verdict.hit, bool)
            assert verdict.path in ("rule", "judge", "failed", "unjudged", "error")

    SEEN.clear()
    with asyncio.Runner() as runner:
        watching = True
        try:
            runner.run(asyncio.wait_for(all_of_them(), 600))
        finally:
            watching = False
    assert not SEEN


def test_the_watch_sees_what_runs():
    global watching
    SEEN.clear()
    watching = True
    try:
        eval(compile("1 + 1", "text", "eval"))
    finally:
        watching = False
    assert any(event.startswith("exec") for event in SEEN)


def test_the_answer_pair_is_the_pattern_s_and_repeated_tags_cost_no_more():
    rng = random.Random(3)
    pieces = ["<answer>", "</answer>", "<answer", " a\n", "answer>"]
    for _ in range(CASES):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 9)))
        found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
        assert scored_text(text) == (found[0].strip() if len(found) == 1 else text), text
    endless = "<answer>" * 1_000_000  # by the pattern, a day
    assert scored_text(endless) == endless
