"""GRPO, Dr. GRPO, DAPO and GSPO side by side at tiny size: curves, and a table over seeds.

    python benchmarks/recipes.py --out runs/recipes --plot docs/recipes.svg --json recipes.json

Starts the real command once per recipe and seed, one after another; finished runs are not repeated
and interrupted ones go on (needs the extra `plots`). Every recipe gets the same steps, prompts,
completions, learning rate and base model; it differs in what its variant of configs/grpo.py sets.
With two updates per rollout the second one is off-policy: clips and ratios have something to do.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RECIPES = {"GRPO": "tiny", "Dr. GRPO": "tiny,drgrpo", "DAPO": "tiny,dapo", "GSPO": "tiny,gspo"}
KINDS = ("mean", "digit", "iou", "math", "mcq", "open_ended")


def run(variant: str, seed: int, workdir: Path, options: list[str]) -> None:
    """One run, unless it is finished."""
    kept = workdir / "heldout.json"
    if kept.exists() and "after" in json.loads(kept.read_text(encoding="utf-8")):
        return
    command = [
        *(sys.executable, "-m", "vlaa_jax.main", f"--config=configs/grpo.py:{variant}"),
        *(f"--workdir={workdir}", f"--config.seed={seed}", *options),
    ]
    print(" ".join(command[2:]), flush=True)
    subprocess.run(command, check=True)


def read(workdir: Path) -> dict[str, Any]:
    """Curve and held-out rewards of a finished run."""
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(line) for line in lines]
    heldout = json.loads((workdir / "heldout.json").read_text(encoding="utf-8"))
    return {
        "reward": [line["reward/mean"] for line in metrics],
        "length": [line["rollout/length_mean"] for line in metrics],
        "entropy": [line["policy/entropy"] for line in metrics],
        "rollouts": sum(line["group/rollouts"] for line in metrics),
        "seconds": sum(line["time/step_s"] for line in metrics),
        **{name: heldout[name] for name in ("before", "after")},
    }


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: mean over seeds and, for the mean reward, every seed."""
    columns = ("recipe", "before", "after, by seed", *KINDS, "rollouts")
    rows = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for recipe, runs in found.items():
        before = statistics.mean(r["before"]["heldout/mean"] for r in runs)
        seeds = ", ".join(f"{r['after']['heldout/mean']:.3f}" for r in runs)
        means = [statistics.mean(r["after"][f"heldout/{kind}"] for r in runs) for kind in KINDS]
        figures = " | ".join(f"{value:.3f}" for value in means)
        rollouts = statistics.mean(r["rollouts"] for r in runs)
        rows.append(f"| {recipe} | {before:.3f} | {seeds} | {figures} | {rollouts:.0f} |")
    return "\n".join(rows)


def smooth(values: list[float], width: int = 5) -> list[float]:
    """Running mean of the last `width` values."""
    return [statistics.mean(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]


def plot(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Reward, length and entropy over steps; thin lines are seeds, thick ones their mean."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for axis, (name, title) in zip(
        axes,
        (
            ("reward", "reward of sampled completions"),
            ("length", "completion length (tokens)"),
            ("entropy", "entropy (nats per token)"),
        ),
        strict=True,
    ):
        for color, (recipe, runs) in enumerate(found.items()):
            for one in runs:
                axis.plot(smooth(one[name]), color=f"C{color}", alpha=0.25, linewidth=0.8)
            mean = [
                statistics.mean(values) for values in zip(*(r[name] for r in runs), strict=True)
            ]
            axis.plot(smooth(mean), color=f"C{color}", linewidth=2, label=recipe)
        axis.set_title(title)
        axis.set_xlabel("step")
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    """Parses, runs, reports."""
    parser = argparse.ArgumentParser(description="Compare recipes at tiny size.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--plot", type=Path, help="write the curves to this file")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    options = [f"--config.run.steps={args.steps}", "--config.algo.updates_per_rollout=2"]
    found: dict[str, list[dict[str, Any]]] = {recipe: [] for recipe in args.recipes}
    for seed in args.seeds:
        for recipe in args.recipes:
            name = RECIPES[recipe].replace(",", "-")
            workdir = args.out / f"{name}-{args.steps}-{seed}"
            run(RECIPES[recipe], seed, workdir, options)
            found[recipe].append(read(workdir))
    print(table(found))
    if args.plot:
        plot(found, args.plot)
    if args.json:
        args.json.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
