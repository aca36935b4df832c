"""The judge over real HTTP: recorded, replayed, failing, and absent."""

import asyncio
import json
import subprocess
import sys
import time

import pytest

from stub_server import StubServer
from vlaa_jax.evaluate.benchmarks import LEADERBOARD, benchmark_named
from vlaa_jax.evaluate.judge import RecordedJudge, refuse_without_judge
from vlaa_jax.evaluate.ledger import read_ledger
from vlaa_jax.evaluate.nouns import Question
from vlaa_jax.schema import UserError
from vlaa_jax.settings.evaluate import JudgeSettings

QUESTION = Question("extract", "what?", 0, 0.0)


def _settings(url: str = "", **changes) -> JudgeSettings:
    return JudgeSettings(url=url, **{"model": "m", "retries": 0, "key_env": "", **changes})


async def _ask(settings, replies, *questions):
    judge = RecordedJudge(settings, replies)
    try:
        return await asyncio.gather(*(judge.ask(question) for question in questions)), judge
    finally:
        await judge.aclose()


def test_a_reply_is_recorded_and_replayed_without_the_server(tmp_path):
    with StubServer(lambda request: "B") as server:
        found, judge = asyncio.run(_ask(_settings(server.url), tmp_path / "j", QUESTION))
        assert found == ["B"] and judge.asked == 1
        request = server.requests[0]
        assert request["model"] == "m" and request["temperature"] == 0.0
        assert request["max_tokens"] == 128
    for url in ("", server.url):  # the server is gone
        found, judge = asyncio.run(_ask(_settings(url), tmp_path / "j", QUESTION))
        assert found == ["B"] and (judge.asked, judge.replayed) == (0, 1)


def test_the_key_holds_model_prompt_sampling_and_repeat(tmp_path):
    judge = RecordedJudge(_settings(), tmp_path / "j")
    base = judge.key_of(QUESTION)
    others = [
        Question("extract", "what", 0, 0.0),
        Question("extract", "what?", 1, 0.0),
        Question("extract", "what?", 0, 0.5),
        Question("extract", "what?", 0, 0.0, 2048),
    ]
    keys = {base, *map(judge.key_of, others)}
    for place, change in enumerate(({"model": "n"}, {"repeat": 1})):
        other = RecordedJudge(_settings(**change), tmp_path / f"j{place}")
        keys.add(other.key_of(QUESTION))
    assert len(keys) == 7


def test_questions_that_are_the_same_are_asked_once(tmp_path):
    def slow(request):
        time.sleep(0.05)
        return "B"

    with StubServer(slow) as server:
        found, judge = asyncio.run(_ask(_settings(server.url), tmp_path / "j", *[QUESTION] * 5))
    assert found == ["B"] * 5 and len(server.requests) == judge.asked == 1


def test_a_failure_is_no_reply_is_counted_and_is_asked_again_by_the_next_run(tmp_path):
    answers = iter(["first", 500, "later"])
    with StubServer(lambda request: next(answers)) as server:
        first = Question("extract", "another", 0, 0.0)
        found, _ = asyncio.run(_ask(_settings(server.url), tmp_path / "j", first))
        found, judge = asyncio.run(_ask(_settings(server.url), tmp_path / "j", QUESTION))
        assert found == [None] and judge.failures == {"server": 1}
        assert len((tmp_path / "j").read_text().splitlines()) == 1
        found, judge = asyncio.run(_ask(_settings(server.url), tmp_path / "j", QUESTION))
        assert found == ["later"]


def test_a_judge_that_never_answers_stops_the_run_in_one_line(tmp_path):
    questions = [Question("extract", str(place), 0, 0.0) for place in range(20)]
    with StubServer(lambda request: 401) as server, pytest.raises(UserError, match=r"judge\.url"):
        asyncio.run(_ask(_settings(server.url, concurrency=1), tmp_path / "j", *questions))


def test_without_server_what_is_not_recorded_is_a_failure(tmp_path):
    found, judge = asyncio.run(_ask(_settings(), tmp_path / "j", QUESTION))
    assert found == [None] and judge.failures == {"not recorded": 1}


def test_a_torn_line_is_cut_off_and_damage_elsewhere_is_told(tmp_path):
    path = tmp_path / "j"
    line = json.dumps({"key": "a", "reply": "b"})
    path.write_text(f"{line}\n{line[:9]}")
    RecordedJudge(_settings(), path)._ledger.close()
    assert path.read_text() == f"{line}\n"
    path.write_text(f"{line[:9]}\n{line}\n")
    with pytest.raises(UserError, match="line 1 is damaged"):
        RecordedJudge(_settings(), path)


def test_two_runs_do_not_write_to_one_record(tmp_path):
    judge = RecordedJudge(_settings(), tmp_path / "j")
    with pytest.raises(UserError, match="another run"):
        RecordedJudge(_settings(), tmp_path / "j")
    judge._ledger.close()


@pytest.mark.parametrize("benchmark", LEADERBOARD, ids=lambda one: one.name)
def test_a_benchmark_that_needs_a_judge_says_so_before_anything_else(benchmark):
    if benchmark.judge == "optional":
        refuse_without_judge([benchmark], _settings(), recorded=False)
        return
    with pytest.raises(UserError, match=f"{benchmark.title} needs a judge"):
        refuse_without_judge([benchmark], _settings(), recorded=False)
    refuse_without_judge([benchmark], _settings("http://x/v1"), recorded=False)
    refuse_without_judge([benchmark], _settings(), recorded=True)


def test_rules_only_is_for_benchmarks_that_rules_can_read_at_all():
    refuse_without_judge([benchmark_named("mathvista")], _settings(rules_only=True), False)
    with pytest.raises(UserError, match="LogicVista needs a judge for every output"):
        refuse_without_judge([benchmark_named("logicvista")], _settings(rules_only=True), False)


def test_a_full_disk_is_told_in_one_line_and_leaves_the_record_whole(tmp_path):
    program = """
import resource, sys
from pathlib import Path
from vlaa_jax.evaluate.ledger import Ledger
from vlaa_jax.schema import UserError
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger = Ledger(Path(sys.argv[1]))
ledger.append({"n": 0})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, -1))
try:
    ledger.append({"n": "x" * 2000})
except UserError as error:
    print(error)
ledger.append({"n": 1})
"""
    path = tmp_path / "j"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert "File too large" in done.stdout and "what it holds is kept" in done.stdout
    assert [record["n"] for record in read_ledger(path)[0]] == [0, 1]
