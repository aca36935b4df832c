"""What the record of rollouts costs: steps with and without it in pairs, and a step of full size.

    python benchmarks/report.py --json report.json

A `:tiny` run records every other step. A step is written while the next one goes on, so steps in
which the thread writes and steps in which it rests take turns, and neighbours are a pair: whatever
else the machine does falls on both. The same run without a record must have equal metrics, times
left out (exit code 1 where not).
The step of full size is synthetic: ids by Zipf's law over Qwen's vocabulary, log-probabilities and
gaps drawn without any structure to compress.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from vlaa_jax.policy.groups import Groups
from vlaa_jax.rollout.engine import Rollout
from vlaa_jax.schema import Record, Score
from vlaa_jax.train import rollout_log
from vlaa_jax.train.rollout_log import TokenFigures

ROOT = Path(__file__).parent.parent
WARM_UP = 2
"""Steps that compile."""


def tiny_run(workdir: Path, cache: Path, steps: int, every: int) -> list[dict]:
    args = [
        *(sys.executable, "-m", "vlaa_jax.main", "--config=configs/grpo.py:tiny"),
        *(f"--config.run.steps={steps}", f"--config.run.log_rollouts_every={every}"),
        *("--config.run.save_every=1000", "--config.data.embedded_heldout=5"),
        *(f"--config.run.compilation_cache={cache}", f"--workdir={workdir}"),
    ]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    subprocess.run(args, cwd=ROOT, env=env, check=True, capture_output=True)
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def numbers(lines: list[dict]) -> list[dict]:
    drop = ("time/", "compile/", "train/mfu", "train/tflop")
    return [
        {k: v for k, v in line.items() if not k.startswith(drop) and not k.endswith("_per_s")}
        for line in lines
    ]


def pairs(steps: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        lines = tiny_run(base / "on", base / "cache", steps, every=2)
        equal = numbers(lines) == numbers(tiny_run(base / "off", base / "cache", steps, every=0))
    return {**neighbours(lines), "equal": equal}


def neighbours(lines: list[dict]) -> dict:
    """Step times while the step before is written, and of the steps after those."""
    times = [line["time/step_s"] for line in lines]
    writing, resting = times[WARM_UP + 1 :: 2], times[WARM_UP::2]
    ratios = [on / off for on, off in zip(writing, resting, strict=False)]
    return {
        "writing_s": statistics.median(writing),
        "resting_s": statistics.median(resting),
        "ratio_median": statistics.median(ratios),
        "ratios": ratios,
    }


def synthetic(prompts: int, completions: int, tokens: int) -> tuple[Groups, TokenFigures]:
    rng = np.random.default_rng(0)
    shape = (prompts, completions, tokens)
    length_PG = rng.integers(tokens // 4, tokens, shape[:2])
    ids = np.minimum(rng.zipf(1.3, shape), 151_000).astype(np.int32)
    mask = np.arange(tokens) < length_PG[..., None]
    sampler = -rng.exponential(0.5, shape).astype(np.float32)
    rollout = Rollout(ids, sampler, mask, length_PG, length_PG == tokens)
    text = "<think> we look at the picture </think> <answer> 3 </answer> " * (tokens // 20)
    record = Record("id", "How many are there?", ("a.png",), "3", "digit")
    groups = Groups(
        [SimpleNamespace(record=record)] * prompts,
        rollout,
        [[text] * completions] * prompts,
        [Score(1.0, "digit", "3", {"raw": 1.0, "format": 1.0})] * (prompts * completions),
    )

    def near(size: float) -> np.ndarray:
        return sampler + rng.normal(0, size, shape).astype(np.float32)

    entropy = rng.exponential(0.5, shape).astype(np.float32)
    figures = TokenFigures(np.arange(prompts), mask, [near(0.02)], [entropy], near(0.02), near(0.1))
    return groups, figures


def one_step(prompts: int, completions: int, tokens: int, rounds: int) -> dict:
    """CPU seconds of the thread that writes a step, and the bytes of its files."""
    groups, figures = synthetic(prompts, completions, tokens)
    advantages = np.zeros((prompts, completions))
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for step in range(rounds):
            began = time.thread_time()
            rollout_log._write(Path(folder), "rollouts", step, groups, advantages, figures)
            seconds.append(time.thread_time() - began)
        entry = json.loads((Path(folder) / "rollouts" / "index.jsonl").read_text().splitlines()[0])
        texts = (Path(folder) / "rollouts" / "000000.jsonl").stat().st_size
    return {
        "shape": [prompts, completions, tokens],
        "tokens": entry["tokens"],
        "cpu_s": seconds,
        "bytes_per_token": entry["bytes"] / entry["tokens"],
        "text_bytes_per_token": texts / entry["tokens"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=42)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = {
        "full_step": one_step(512, 4, 1024, rounds=3),
        "tiny_step": one_step(16, 8, 48, rounds=20),
        "pairs": pairs(args.steps),
    }
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if found["pairs"]["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
