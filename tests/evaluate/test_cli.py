"""``python -m vlaa_jax.evaluate score`` on files, and a benchmark of one's own."""

import asyncio
import dataclasses
import json

import pytest

from stub_server import StubServer
from vlaa_jax.evaluate.benchmarks import logicvista
from vlaa_jax.evaluate.cli import main
from vlaa_jax.evaluate.miniature.judge_server import scripted_reply
from vlaa_jax.evaluate.miniature.tables import write_tables
from vlaa_jax.evaluate.nouns import Verdict
from vlaa_jax.evaluate.predictions import Prediction, write_predictions
from vlaa_jax.evaluate.score import Scorer
from vlaa_jax.evaluate.scoring.profiles import PROFILES
from vlaa_jax.evaluate.scoring.storage import as_text
from vlaa_jax.evaluate.scoring_run import score_benchmark
from vlaa_jax.schema import UserError

ROWS = [
    {"index": 1, "question": "q", "choices": "['A', 'B']", "answer": "A", "category": "x"}
    | {"prediction": "<think>B?</think><answer>A</answer>"},
    {"index": 2, "question": "q", "choices": "[]", "answer": "0.5", "category": "y"}
    | {"prediction": r"<answer>\frac{1}{2}</answer>"},
    {"index": 3, "question": "q", "choices": "[]", "answer": "7", "category": "y"}
    | {"prediction": "I count 7 of them"},
    {"index": 4, "question": "q", "choices": "['cone', 'Cube']", "answer": "B", "category": "x"}
    | {"prediction": "<answer>my cube</answer>"},
]


@pytest.fixture
def file(tmp_path):
    write_predictions(tmp_path / "p.xlsx", ROWS)
    return tmp_path / "p.xlsx"


def test_a_file_is_scored_and_summed_up(file, tmp_path, capsys):
    with StubServer(lambda r: scripted_reply(r["messages"][-1]["content"])) as server:
        options = [str(file), "--benchmark=mathvision", f"--judge-url={server.url}"]
        options += ["--judge-key-env=", f"--out={tmp_path / 'out'}"]
        assert main(["score", *options]) == 0
        said = capsys.readouterr().out
        assert "MathVision: 100.0 [51.0, 100.0]; 3 rule, 1 judge" in said
        assert "no headline: 3,036 of 3,040 questions have no prediction" in said
        assert main(["score", *options, "--profile=2025-04", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["outputs"]["paths"]["judge"] == 2, (
        "no free-form answer is right by rule in the older profile"
    )
    lines = (tmp_path / "out" / "mathvision.jsonl").read_text().splitlines()
    spans = [json.loads(line)["span"] for line in lines]
    assert spans == [[0, 1], [9, 10], [8, 9], [3, 7]], (
        "a letter, what the judge took, a number, an option"
    )
    assert main(["score", *options[:2], f"--judge-replies={file.with_suffix('.judge.jsonl')}"]) == 0


def test_without_a_judge_there_is_a_sub_score_and_no_headline(file, capsys):
    assert main(["score", str(file), "--benchmark=mathvision"]) == 2
    assert "error: MathVision needs a judge for some outputs" in capsys.readouterr().err
    assert main(["score", str(file), "--benchmark=mathvision", "--rules-only", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["headline"] is None and "1 of 4 outputs need a judge" in told["withheld"]
    assert told["outputs"]["by_rule"] == 100.0


def test_what_cannot_be_written_or_replayed_is_told_in_one_line(file, capsys):
    options = ["score", str(file), "--benchmark=mathvision", "--rules-only"]
    assert main([*options, f"--out={file}"]) == 2
    assert main([*options, f"--judge-replies={file.parent / 'none'}"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "File exists" in said[0] and "is no file" in said[1]


def test_predictions_beside_the_public_table_are_checked_against_it(tmp_path, capsys):
    write_tables(tmp_path)
    path = tmp_path / "p.jsonl"
    write_predictions(path, [{"index": 0, "prediction": "Answer: A"}])
    options = ["score", str(path), "--benchmark=wemath", f"--data={tmp_path}"]
    assert main(options) == 2
    assert "MD5" in capsys.readouterr().err
    assert main([*options, "--any-digest"]) == 0
    assert "9 of 10 questions have no prediction" in capsys.readouterr().out
    write_predictions(path, [{"index": 99, "prediction": "Answer: A"}])
    assert main([*options, "--any-digest"]) == 2
    assert "index '99'" in capsys.readouterr().err


def test_a_benchmark_of_ones_own_is_a_file_and_a_row():
    async def score(row, output, judge, profile):
        said = as_text(output).split()[-1]
        return Verdict(said == row["answer"], "rule", said)

    mine = dataclasses.replace(
        logicvista.BENCHMARK,
        name="mine",
        columns=("answer", "skill"),
        judge="optional",
        score=score,
    )
    rows = [
        {"index": str(i), "question": "q", "answer": str(i % 2), "skill": "x"} for i in range(4)
    ]
    outputs = [Prediction(str(i), "it is 1") for i in range(4)]
    found = asyncio.run(score_benchmark(Scorer(mine, PROFILES["2026-08"]), rows, outputs))
    assert found.result.headline == 50.0


def test_the_same_question_has_one_prediction_of_a_sample():
    rows = [{"index": "1", "question": "q", "answer": "A", "skill": "x"}]
    twice = [Prediction("1", "a"), Prediction("1", "b")]
    with pytest.raises(UserError, match="two predictions"):
        asyncio.run(score_benchmark(Scorer(logicvista.BENCHMARK, PROFILES["2026-08"]), rows, twice))
