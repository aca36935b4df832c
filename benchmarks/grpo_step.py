"""One GRPO step three ways, same weights: ours, our own layout with prompts repeated, HF in torch.

    python benchmarks/grpo_step.py --rounds 3 --json grpo_step.json

P prompts of 64 text and 256 visual tokens, G completions each of 64 tokens (nothing ends earlier),
a Qwen2.5-VL of 38 million parameters in float32. A step is a rollout, a scoring pass for the
reference, and an update (forward, loss, backward, AdamW). The contenders take turns within each
round; figures are medians, and ratios are taken within rounds. Before anything is timed, the three
must give the same log-probabilities of the same completions.

FLOPs are counted by hand from the layer shapes (two per multiply-add; a backward pass costs twice
its forward; a token that is decoded costs what it costs in a forward pass); the floor is the fewest
a phase needs, each prompt and image once, divided by the fastest matrix product measured in the
same run. Memory is what the compiler plans for the gradient program: arguments, results and
temporaries. Needs torch and transformers (the test extra), and 20 GiB for the repeated layout.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from step_room.figures import Measured, report, summary
from step_room.machine import peak_flops, release_memory, seconds
from step_room.mini import MINI, NEW, encoded_prompts
from step_room.ours import Ours
from step_room.theirs import Torch
from vlaa_jax.models.qwen_vl.hf_config import parse_config

PHASES = ("rollout", "score", "update")


def check(ours: Ours, naive: Ours, hf: Torch) -> dict[str, float]:
    """Same completions, same log-probabilities."""
    tokens = np.random.default_rng(1).integers(3, 3900, (len(hf.ids), NEW)).astype(np.int32)
    a, b, c = ours.score(tokens), naive.score(tokens), hf.score(tokens)
    gaps = {"ours_naive": float(np.abs(a - b).max()), "ours_hf": float(np.abs(a - c).max())}
    if max(gaps.values()) > 1e-3:
        raise SystemExit(f"the three do not compute the same model: {gaps}")
    return gaps


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All figures after each round, so that an interrupted measurement keeps those it has."""
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    config = parse_config(MINI)
    samples = encoded_prompts(config, args.prompts)
    rows = args.prompts * args.completions
    runs: dict[str, Any] = {
        "ours": Ours(config, samples, args.completions, repeat=False),
        "naive": Ours(config, samples, args.completions, repeat=True),
        "hf": Torch(config, samples, args.completions),
    }
    gaps = check(runs["ours"], runs["naive"], runs["hf"])
    rng = np.random.default_rng(2)
    advantages = rng.normal(size=rows).astype(np.float32)
    memory = {}
    for name in ("ours", "naive"):
        tokens = rng.integers(3, 3900, (rows, NEW)).astype(np.int32)
        memory[name] = runs[name].memory(tokens, advantages, np.zeros((rows, NEW), np.float32))
    measured = Measured(
        args.prompts,
        args.completions,
        config,
        sum(a.size for a in jax.tree.leaves(runs["ours"].params)),
        gaps,
        memory,
        peak_flops(),
        {name: {phase: [] for phase in PHASES} for name in runs},
    )
    for round_ in range(args.rounds + 1):
        for name, run in runs.items():
            times = step(round_, name, run, advantages)
            release_memory()
            if round_:
                for phase, value in zip(PHASES, times, strict=True):
                    measured.times[name][phase].append(value)
        if round_:
            yield summary(round_, measured)


def step(round_: int, name: str, run: Ours | Torch, advantages: np.ndarray) -> tuple[float, ...]:
    """Seconds of a contender's rollout, scoring and update."""
    rollout_s, tokens = seconds(run.rollout)
    score_s, ref = seconds(lambda: run.score(tokens))
    update_s, _ = seconds(lambda: run.update(tokens, advantages, ref))
    print(
        f"round {round_}{' (warm-up)' if not round_ else ''}  {name:6}"
        f"  rollout {rollout_s:6.2f} s  score {score_s:6.2f} s  update {update_s:6.2f} s",
        flush=True,
    )
    return rollout_s, score_s, update_s


def main() -> None:
    """Parses, measures, reports."""
    parser = argparse.ArgumentParser(description="Time a GRPO step three ways.")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for found in measure(args):
        if args.json:
            Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if found:
        report(found)


if __name__ == "__main__":
    main()
