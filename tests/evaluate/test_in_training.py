"""Benchmarks in a training run, by the real command."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_a_training_run_keeps_benchmark_scores_and_may_go_on_with_others(tmp_path):
    def train(*words):
        args = [sys.executable, "-m", "vlaa_jax.main", "--config=configs/sft.py:tiny",
                f"--workdir={tmp_path / 'run'}", "--config.benchmarks.root=embedded",
                f"--config.run.compilation_cache={tmp_path / 'cache'}",
                "--config.benchmarks.limit=2", "--config.benchmarks.new_tokens=8",
                "--config.data.embedded_heldout=5", *words]  # fmt: skip
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
        done = subprocess.run(args, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = train("--config.run.steps=1", "--config.benchmarks.names=('mathvista',)")
    assert "benchmark/mathvista" in first
    kept = json.loads((tmp_path / "run/heldout.json").read_text())
    assert kept["before"].keys() == kept["after"].keys() >= {"benchmark/mathvista"}
    assert kept["after"]["benchmark/mathvista_unknown_frac"] == 0.0
    train("--config.run.steps=1", "--config.benchmarks.names=('logicvista',)")
    kept = json.loads((tmp_path / "run/heldout.json").read_text())
    assert "benchmark/logicvista" in kept["after"]
