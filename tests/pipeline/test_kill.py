"""The real task in a process of its own, killed and run again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline_cases import outputs
from vlaa_jax.pipeline.embedded import draw
from vlaa_jax.pipeline.local_server import LocalServer
from vlaa_jax.pipeline.scripted_models import ScriptedModels

ROOT = Path(__file__).parents[2]
COUNT, CONCURRENCY = 60, 4


class SlowModels(ScriptedModels):
    """Takes its time, and counts what got an answer."""

    def __init__(self, drawn):
        super().__init__(drawn)
        self.answered = []

    async def __call__(self, call):
        import asyncio

        await asyncio.sleep(0.02)
        self.answered.append(call.body)
        return await super().__call__(call)


def command(url, workdir):
    models = [
        f"--config.{group}.model.{key}={value}"
        for group in ("caption", "distil", "rewrite", "verify")
        for key, value in (("url", url), ("concurrency", CONCURRENCY))
    ]
    config = ["--config=configs/pipeline.py:tiny", f"--workdir={workdir}", *models]
    return [sys.executable, "-m", "vlaa_jax.main", *config, f"--config.collect.embedded={COUNT}"]


@pytest.fixture
def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_killed_runs_end_like_an_undisturbed_one_and_ask_little_again(environment, tmp_path):
    def run(workdir, models, kill_at=None):
        with LocalServer(models) as server:
            quiet = {"cwd": ROOT, "env": environment, "stdout": subprocess.DEVNULL}
            process = subprocess.Popen(command(server.url, workdir), **quiet)
            while kill_at is not None and len(models.answered) < kill_at:
                assert process.poll() is None
                time.sleep(0.01)
            if kill_at is not None:
                process.send_signal(signal.SIGKILL)
            return process.wait(timeout=60)

    calm = SlowModels(draw(COUNT, 0))
    assert run(tmp_path / "calm", calm) == 0
    total = len(calm.answered)
    killed = SlowModels(draw(COUNT, 0))
    for kill_at in (total // 4, total // 2):
        assert run(tmp_path / "killed", killed, kill_at) == -9
    assert run(tmp_path / "killed", killed) == 0
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "calm")
    again = len(killed.answered) - len(set(killed.answered))
    # Four models of four calls each were in flight at each of two kills.
    assert again <= 2 * 4 * CONCURRENCY
    assert len(set(killed.answered)) == total


def test_the_command_says_what_is_wrong_in_one_line(environment, tmp_path):
    def said(*flags):
        line = [*command("http://127.0.0.1:9/v1", tmp_path / "a"), *flags]
        done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 1
        return done.stderr.strip()

    assert said("--config.split.rl_caps=x=1").startswith("vlaa_jax: split.rl_caps: 'x' is not one")
    refused = said("--config.collect.sources=docvqa=/nowhere")
    assert refused.count("\n") == 0 and "/nowhere" in refused


def test_a_dead_endpoint_stops_the_run_and_leaves_it_to_be_gone_on_with(environment, tmp_path):
    flags = [f"--config.{g}.model.retries=0" for g in ("caption", "distil", "rewrite", "verify")]
    line = [*command("http://127.0.0.1:9/v1", tmp_path), *flags, "--config.run.max_failed=5"]
    line.append("--config.run.rest_s=0.05")
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    said = " ".join(done.stdout.split())
    assert re.search(r"stopped: (5 samples failed in a row|.* keeps failing).*ConnectError", said)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["pending"] > 0
