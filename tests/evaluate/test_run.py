"""Whole evaluations of the miniature over real HTTP: kills, resumes, refusals, reports."""

import contextlib
import hashlib
import io
import json
import random
import subprocess
import time
from pathlib import Path

import pytest
from rich.console import Console

from evaluation_runs import command, served
from stub_server import StubServer
from vlaa_jax.evaluate import run as evaluate_run
from vlaa_jax.evaluate.generate import Job, Outputs
from vlaa_jax.evaluate.ledger import Ledger
from vlaa_jax.evaluate.miniature.judge_server import scripted_reply
from vlaa_jax.evaluate.run import run
from vlaa_jax.schema import UserError

JOBS = 8 + 8 + 6 + 20 + 10 + 5
QUIET = Console(quiet=True)
RESULTS = ("units.json", "leaderboard.csv", "verdicts", "predictions")


def answer(request: dict) -> str:
    """An output that depends on nothing but the request."""
    text = json.dumps(request["messages"], sort_keys=True) + str(request.get("seed"))
    rng = random.Random(hashlib.sha256(text.encode()).hexdigest())
    said = rng.choice(
        ["A", "B", "3", "it is red, so (A)", '{"short answer": "C"}', "no idea", "4/6"]
    )
    return f"<think>so many squares: {rng.random()}</think><answer>{said}</answer>"


def judge(request: dict) -> str:
    return scripted_reply(request["messages"][-1]["content"])


def slowly(reply, seconds):
    def slow(request):
        time.sleep(seconds)
        return reply(request)

    return slow


def content(workdir: Path) -> dict[str, str]:
    files = [file for name in RESULTS for file in sorted((workdir / name).rglob("*"))]
    files += [workdir / name for name in RESULTS if (workdir / name).is_file()]
    return {str(file.relative_to(workdir)): file.read_text() for file in files}


def outputs(workdir: Path) -> list[dict]:
    lines = (workdir / "outputs.jsonl").read_text().splitlines()[1:]
    key = lambda line: (line["benchmark"], int(line["index"]), line["sample"])  # noqa: E731
    return sorted(map(json.loads, lines), key=key)


def test_five_kills_change_nothing_and_cost_only_what_was_in_flight(tmp_path):
    with StubServer(answer) as quick, StubServer(judge) as script:
        settings = served(quick.url, script.url)
        run(settings, tmp_path / "whole", QUIET)
        asked = len(script.requests)
    assert len(quick.requests) == JOBS and asked > 20
    kills, rng = 0, random.Random(7)
    with (
        StubServer(slowly(answer, 0.06), lambda request: json.dumps(request)) as server,
        StubServer(slowly(judge, 0.06), lambda request: json.dumps(request)) as script,
    ):
        settings = served(server.url, script.url, judge={"concurrency": 4})
        while True:
            process = subprocess.Popen(
                command(settings, tmp_path / "cut"), stdout=subprocess.DEVNULL
            )
            before = len(server.requests) + len(script.requests)
            while kills < 5 and process.poll() is None:
                done = len(server.requests) + len(script.requests) - before
                if done >= rng.randint(6, 24):
                    process.kill()
                    kills += 1
                    break
                time.sleep(0.02)
            if process.wait() == 0:
                break
        recorded = (tmp_path / "cut" / "outputs.jsonl").read_text().splitlines()
    assert kills == 5
    assert outputs(tmp_path / "cut") == outputs(tmp_path / "whole")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert len(recorded) == JOBS + 1
    repeats = sum(server.seen.values()) - JOBS + sum(script.seen.values()) - asked
    assert 0 <= repeats <= kills * 4, "at most what was in flight at each kill"
    assert len(server.seen) == JOBS and max(server.seen.values()) <= 1 + kills


def test_a_finished_run_asks_nobody_again(tmp_path):
    with StubServer(answer) as server, StubServer(judge) as script:
        settings = served(server.url, script.url)
        first = run(settings, tmp_path, QUIET)
        before = content(tmp_path)
    second = run(settings, tmp_path, QUIET)  # both servers are gone
    assert second.figures == first.figures
    assert content(tmp_path) == before


def test_outputs_that_were_made_otherwise_are_not_mixed(tmp_path):
    with StubServer(answer) as server, StubServer(judge) as script:
        run(served(server.url, script.url), tmp_path, QUIET)
        other = served(server.url, script.url, generation={"new_tokens": 7})
        with pytest.raises(UserError, match="new_tokens=2048, now it is 7"):
            run(other, tmp_path, QUIET)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["generation"]["new_tokens"] == 2048, "of the run that the directory holds"


def test_a_directory_is_one_run_s(tmp_path):
    with Ledger(tmp_path / "lock"), StubServer(answer) as server:
        with pytest.raises(UserError, match="another run"):
            run(served(server.url, server.url), tmp_path, QUIET)
        assert not server.requests and not (tmp_path / "questions").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", 7),
        ("text", None),
        ("sample", "0"),
        ("index", 7),
        ("tokens", "x"),
        ("benchmark", []),
    ],
)
def test_a_record_of_outputs_from_elsewhere_is_refused_by_line(tmp_path, field, value):
    outputs, head = tmp_path / "outputs.jsonl", '{"made_by": {"a": 1}}\n'
    line = {"benchmark": "wemath", "index": "1", "text": "x", "sample": 0,
            "finish_reason": "stop", "tokens": None}  # fmt: skip
    outputs.write_text(f"{head}{json.dumps(line)}\n")
    Outputs(tmp_path, {"a": 1}).close()
    outputs.write_text(f"{head}{json.dumps(line)}\n{json.dumps(line | {field: value})}\n")
    with pytest.raises(UserError, match=rf"line 3 is no record of an output \({field}\)"):
        Outputs(tmp_path, {"a": 1})


def test_a_directory_without_outputs_takes_other_settings(tmp_path):
    outputs = tmp_path / "outputs.jsonl"
    for value in (1, 2):
        with contextlib.closing(Outputs(tmp_path, {"a": value})):
            assert not outputs.read_text()


def test_outputs_of_other_hosts_count_if_they_were_made_alike(tmp_path):
    other = tmp_path / "outputs.host1.jsonl"
    job, another = (Job("mathvista", index, 0, "?", list) for index in ("7", "8"))
    line = {"benchmark": "mathvista", "index": "7", "sample": 0, "text": "x",
            "finish_reason": "stop", "tokens": 1}  # fmt: skip
    (tmp_path / "outputs.kept.jsonl").write_text('{"made_by": "a copy of the user"}\n')
    other.write_text(f"{json.dumps({'made_by': {'a': 1}})}\n{json.dumps(line)}\n{{torn")
    with contextlib.closing(Outputs(tmp_path, {"a": 1})) as outputs:
        assert outputs.missing([job, another]) == [another]
    other.write_text('{"made_by": {"a": 2}}\n')
    with pytest.raises(UserError, match=r"host1\.jsonl: was made with a=2, now it is 1"):
        Outputs(tmp_path, {"a": 1})


def test_the_report_holds_the_paper_the_images_and_where_answers_stood(tmp_path):
    with StubServer(answer) as server, StubServer(judge) as script:
        summary = run(served(server.url, script.url), tmp_path, QUIET)
    page = (tmp_path / "report.html").read_text()
    assert "VLAA-Thinker-Qwen2.5VL-7B" in page and "data:image/jpeg;base64," in page
    assert "<mark>" in page and "http" not in page.replace("http://127.0.0.1", "")
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["average"] == pytest.approx(summary.figures["average"])
    assert {"profile", "judge", "outputs: model", "data: mathvista"} <= set(told["provenance"])
    by_name = {one["benchmark"]: one for one in told["benchmarks"]}
    assert by_name["dynamath"]["estimate"]["clusters"] == 2
    assert by_name["wemath"]["estimate"]["units"] == 3
    lines = (tmp_path / "verdicts" / "mathvista.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        if line["span"]:
            start, end = line["span"]
            assert line["scored_text"][start:end] == line["extracted"].strip()


def test_predictions_of_a_run_are_scored_alike_from_their_files(tmp_path):
    with StubServer(answer) as server, StubServer(judge) as script:
        first = run(served(server.url, script.url), tmp_path / "a", QUIET)
        files = {"source": "file", "files": str(tmp_path / "a" / "predictions")}
        second = run(served("", script.url, generation=files), tmp_path / "b", QUIET)
    assert second.figures == first.figures


def test_a_name_in_brackets_is_printed_as_it_is(tmp_path):
    said = Console(file=io.StringIO(), width=200)
    with StubServer(answer) as server, StubServer(judge) as script:
        data = {"benchmarks": ("wemath",)}
        run(served(server.url, script.url, data=data, run={"name": "[/a]"}), tmp_path, said)
    assert "[/a]" in said.file.getvalue()


def test_samples_and_a_baseline(tmp_path):
    with StubServer(answer) as server, StubServer(judge) as script:
        run(served(server.url, script.url), tmp_path / "base", QUIET)
        several = {"samples": 3, "temperature": 0.7}
        compared = {"baseline": str(tmp_path / "base")}
        settings = served(server.url, script.url, generation=several, scoring=compared)
        run(settings, tmp_path / "three", QUIET)
    told = json.loads((tmp_path / "three" / "summary.json").read_text())["benchmarks"][0]
    assert told["spread"]["samples"] == 3
    assert told["pass_at"]["1"] == pytest.approx(told["estimate"]["value"])
    assert told["pass_at"]["2"] >= told["pass_at"]["1"]
    assert told["difference"]["pairs"] == 8 and 0 <= told["difference"]["p_value"] <= 1


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "[]",
            "[" * 100_000,
            '{"wemath": 3}',
            '{"wemath": [1]}',
            '{"wemath": [{"key": "1"}]}',
        ),
        *(f'{{"wemath": [{{"key": "1", "value": {v}, "cluster": "1"}}]}}' for v in ("NaN", '"x"')),
    ],
)
def test_a_baseline_that_is_none_is_refused_before_anything_is_asked(tmp_path, text):
    (tmp_path / "units.json").write_text(text)
    with StubServer(answer) as server:
        settings = served(server.url, server.url, scoring={"baseline": str(tmp_path)})
        with pytest.raises(UserError, match="no units of an earlier evaluation"):
            run(settings, tmp_path / "run", QUIET)
        assert not server.requests


def test_a_failing_judge_is_a_state_and_leaves_no_headline(tmp_path):
    def sick(request):
        text = request["messages"][-1]["content"]
        return 500 if hashlib.sha256(text.encode()).digest()[0] % 2 else judge(request)

    with StubServer(answer) as server, StubServer(sick) as script:
        summary = run(served(server.url, script.url), tmp_path, QUIET)
    told = json.loads((tmp_path / "summary.json").read_text())["benchmarks"]
    logic = next(one for one in told if one["benchmark"] == "logicvista")
    assert logic["outputs"]["paths"]["failed"] > 0 and "no verdict on" in logic["withheld"]
    assert logic["headline"] is None and "logicvista" not in summary.figures
    assert logic["as_original"] <= logic["estimate"]["value"]
    assert "average" not in summary.figures


def test_a_question_that_a_server_refuses_is_missing_and_is_asked_again(tmp_path):
    said, healthy = Console(file=io.StringIO(), width=200), []

    def picky(request):
        return answer(request) if healthy or "How many?" not in str(request) else 400

    with StubServer(picky) as server, StubServer(judge) as script:
        settings = served(server.url, script.url, data={"benchmarks": ("wemath", "dynamath")})
        assert run(settings, tmp_path, said).figures.keys() == {"wemath"}
        assert "generation.url: dynamath 0 sample 0: refused: HTTP 400" in said.file.getvalue()
        dynamath = json.loads((tmp_path / "summary.json").read_text())["benchmarks"][1]
        assert dynamath["withheld"] == "10 of 20 questions have no prediction"
        healthy.append(True)
        asked = len(server.requests)
        assert run(settings, tmp_path, said).figures.keys() == {"wemath", "dynamath"}
        assert len(server.requests) - asked == 10
    with StubServer(lambda request: 400) as server, pytest.raises(UserError, match="HTTP 400"):
        run(served(server.url, script.url), tmp_path / "none", QUIET)
    assert len(server.requests) <= 4 + 5 + 4


def test_what_cannot_be_scored_is_refused_before_anything_is_asked(tmp_path):
    with StubServer(answer) as server:
        data = {"root": str(tmp_path)}
        with pytest.raises(UserError, match="MathVista needs a judge"):
            run(served(server.url, data=data), tmp_path / "a", QUIET)
        with pytest.raises(UserError, match=r"judge\.replies: typo is no file"):
            optional = {"root": str(tmp_path), "benchmarks": ("wemath",)}
            run(served(server.url, data=optional, judge={"replies": "typo"}), tmp_path / "a", QUIET)
        with pytest.raises(UserError, match="neither"):
            run(served(server.url, "http://127.0.0.1:9/v1", data=data), tmp_path / "b", QUIET)
        assert not server.requests
        elsewhere = {"baseline": str(tmp_path / "nowhere")}
        with pytest.raises(UserError, match="no units of an earlier"):
            run(
                served(server.url, "http://127.0.0.1:9/v1", scoring=elsewhere),
                tmp_path / "c",
                QUIET,
            )
        assert not server.requests
    with pytest.raises(UserError, match="greedy"):
        served(server.url, generation={"samples": 2})


def test_the_commit_is_that_of_this_source_tree_or_none(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    theirs = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    for folder, commit in (("vlaa_jax", theirs.strip()), ("venv/vlaa_jax", "")):
        prompts = tmp_path / folder / "evaluate" / "prompts"
        prompts.mkdir(parents=True)
        monkeypatch.setattr(evaluate_run, "_PROMPTS", prompts)
        assert evaluate_run._commit() == commit
