"""Hosts that evaluate together: each answers questions of its own, one scores."""

import json
import signal

import pytest

from hosts_case import Hosts

WORDS = ["--config=configs/evaluate.py:tiny", "--config.model.dtype=float32"]


def evaluate(workdir, cache, count):
    hosts = Hosts(count, 1, workdir, cache, WORDS)
    assert hosts.end() == [0] * count, hosts.said()


def answers(workdir, pattern="outputs*.jsonl"):
    lines = [json.loads(x) for file in workdir.glob(pattern) for x in file.read_text().splitlines()]
    found = [line for line in lines if "made_by" not in line]
    keyed = {(x["benchmark"], x["index"], x["sample"]): x["text"] for x in found}
    assert len(keyed) == len(found), "an output was made twice"
    return keyed


def scores(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    return summary["average"], [one["headline"] for one in summary["benchmarks"]]


@pytest.mark.slow
def test_two_hosts_answer_what_one_answers_and_go_on_after_a_signal(tmp_path):
    cache, one, two = tmp_path / "cache", tmp_path / "one", tmp_path / "two"
    evaluate(one, cache, 1)
    hosts = Hosts(2, 1, two, cache, WORDS)
    while not list(two.glob("outputs.host1.jsonl")) or len(answers(two)) < 8:
        assert hosts.processes[1].poll() is None, hosts.said()
    hosts.processes[1].send_signal(signal.SIGTERM)
    assert hosts.end() == [130, 130], hosts.said()
    assert not (two / "summary.json").exists() and len(answers(two)) < len(answers(one))
    evaluate(two, cache, 2)
    assert answers(two) == answers(one)
    assert 0 < len(answers(two, "outputs.host1.jsonl")) < len(answers(one))
    assert scores(two) == scores(one)
