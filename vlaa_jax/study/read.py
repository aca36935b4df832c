"""What the commands of a study left behind: units, outputs and curves of every cell."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlaa_jax.evaluate.nouns import Unit
from vlaa_jax.evaluate.report.write import read_units
from vlaa_jax.foreign import own_file
from vlaa_jax.pipeline.split import AHA_CUES
from vlaa_jax.settings.study import BASE
from vlaa_jax.study.execute import DONE
from vlaa_jax.study.grid import Cell, Step

PAPER_CUES = ("alternatively", "double-check", "i should check", "wait")
"""Counted during training in the paper's Figure 7."""
CUES = tuple(dict.fromkeys((*PAPER_CUES, *AHA_CUES)))
CURVES = ("reward/mean", "rollout/length_mean", "reward/extracted_frac", "train/loss")


@dataclass(frozen=True)
class Found:
    """What one arm of one model with one seed came to.

    Attributes:
        cell: whose it is.
        units: by evaluation and column, a column being a benchmark or a verifier type.
        outputs: of held-out evaluations, by evaluation.
        controls: of benchmark evaluations, by evaluation and benchmark.
        curves: of its last training stage, by metric, over steps.
        cues: outputs of that stage that hold a cue, by cue.
        rollouts: how many outputs were looked through.
    """

    cell: Cell
    units: dict[str, dict[str, list[Unit]]] = field(default_factory=dict)
    outputs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    controls: dict[str, dict[str, Mapping[str, Any]]] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    cues: Counter[str] = field(default_factory=Counter)
    rollouts: int = 0


def read_cells(grid: Sequence[Step], became: Mapping[str, str]) -> dict[Cell, Found]:
    """Everything of the arms that were evaluated, in the order of the grid."""
    found: dict[Cell, Found] = {}
    for step in grid:
        if step.evaluation and became.get(step.name) == DONE:
            if step.cell not in found:
                found[step.cell] = _trained(step)
            _evaluated(found[step.cell], step)
    return found


def _trained(step: Step) -> Found:
    if step.cell.arm == BASE:
        return Found(step.cell)
    # An evaluation's directory is evaluations/CELL/NAME, its run's is runs/CELL.
    study = step.workdir.parents[len(step.cell.place.parts) + 1]
    run = study / "runs" / step.cell.place
    cues, rollouts = count_cues(run / "rollouts")
    return Found(step.cell, curves=read_curves(run / "metrics.jsonl"), cues=cues, rollouts=rollouts)


def _evaluated(found: Found, step: Step) -> None:
    name = step.evaluation
    found.units[name] = read_units(step.workdir / "units.json")
    outputs = step.workdir / "outputs.jsonl"
    summary = step.workdir / "summary.json"
    if summary.exists():
        with own_file(summary):
            kept = json.loads(summary.read_text(encoding="utf-8"))["benchmarks"]
            found.controls[name] = {one["benchmark"]: one for one in kept}
    elif outputs.exists():
        found.outputs[name] = list(_lines(outputs))


def read_curves(path: Path) -> dict[str, list[float]]:
    """Metrics of a run by name, in the order of its steps."""
    curves: dict[str, list[float]] = {}
    if path.exists():
        for line in _lines(path):
            for name in CURVES:
                if name in line:
                    curves.setdefault(name, []).append(float(line[name]))
    return curves


def count_cues(folder: Path) -> tuple[Counter[str], int]:
    """Completions of a run's rollout files that hold each cue, and how many there are."""
    cues: Counter[str] = Counter()
    count = 0
    for path in sorted(folder.glob("[0-9]*.jsonl")):
        for line in _lines(path):
            count += 1
            text = str(line["completion"]).lower()
            cues.update(cue for cue in CUES if cue in text)
    return cues, count


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):  # the last may have been cut off
                with own_file(path):
                    values = json.loads(line)
                yield values
