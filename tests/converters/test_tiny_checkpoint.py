"""How the embedded checkpoint is made, at a size that makes a poor one."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from converters.tiny_checkpoint import IN_FORMAT, TURNS, write_records
from vlaa_jax.data.sources.record_file import load_records
from vlaa_jax.data.synthetic import TASKS

ROOT = Path(__file__).parents[2]


def test_records_hold_every_task_and_break_the_format_as_often_as_said(tmp_path):
    count = 420
    path = write_records(tmp_path, count)
    records = load_records(path, kind="sft")
    assert len(records) == count
    assert set(TURNS) == {*TASKS, "recall"}
    asked = Counter(record.question.split()[0] for record in records)
    assert asked["Give"] == count * TURNS.count("iou") // len(TURNS)
    answers = [record.answer for record in records]
    whole = sum(a.startswith("<think>") and a.endswith("</answer>") for a in answers) / count
    assert abs(whole - IN_FORMAT) < 4 * np.sqrt(IN_FORMAT * (1 - IN_FORMAT) / count)
    lines = path.read_text().splitlines()
    for folder in (tmp_path / "again", tmp_path):  # where others are drawn, too
        assert write_records(folder, 30).read_text().splitlines() == lines[:30]


def test_the_command_trains_writes_a_directory_and_may_be_given_again(tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    command = [sys.executable, "-m", "converters.tiny_checkpoint", out, f"--work={work}"]
    command += ["--samples=40", "--config.run.steps=2"]
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert not done.returncode, done.stderr
    rows = [json.loads(line) for line in (work / "run" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [0, 1]
    weights, start = (load_file(path / "model.safetensors") for path in (out, work / "start"))
    assert sorted(weights) == sorted(start)
    same = [np.array_equal(weights[name].astype(np.float32), start[name]) for name in start]
    assert not any(same)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert (out / "tokenizer.json").read_bytes() == (work / "start" / "tokenizer.json").read_bytes()
