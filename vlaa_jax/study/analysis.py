"""What a study shows: values with intervals, paired differences, and the controls.

Values are in percent. An arm's interval is Student's t over seeds. Its difference to the reference
arm is paired question by question within each seed, and given twice: with errors clustered by
question (how sure it is for these trained models) and over seeds (how sure it is for the recipe).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from vlaa_jax.evaluate.nouns import Unit
from vlaa_jax.evaluate.statistics import (
    Difference,
    Estimate,
    estimate,
    paired_difference,
    pass_at_k,
)
from vlaa_jax.settings.study import StudySettings
from vlaa_jax.study.grid import Cell
from vlaa_jax.study.heldout import HIT
from vlaa_jax.study.read import Found

MEAN = "mean"
BINS = 5


@dataclass(frozen=True)
class Value:
    """One column of an arm under one evaluation.

    Attributes:
        mean: over seeds, with its interval over seeds.
        per_seed: by seed.
        difference: to the reference arm, errors clustered by question; None for itself.
        over_seeds: the same difference, the seeds being the units; None with one seed.
        relative: that difference in percent of the reference's mean.
    """

    mean: Estimate
    per_seed: Mapping[int, float]
    difference: Difference | None = None
    over_seeds: Difference | None = None
    relative: float | None = None


@dataclass(frozen=True)
class Controls:
    """What a mean hides, in percent of the outputs of all seeds; None where it is not known."""

    outputs: int
    right: float | None
    wrong: float | None
    truncated: float | None
    not_extracted: float | None
    """No answer found, though the output ended."""
    without_format: float | None
    """The mean reward where the answer format is not asked for."""
    length: float | None
    """Tokens, mean."""
    matched: float | None
    """Difference to the reference at equal lengths, in percentage points."""
    pass_at: Mapping[int, float | None]


@dataclass(frozen=True)
class Arm:
    """An arm of a model over all its seeds."""

    model: str
    name: str
    seeds: tuple[int, ...]
    values: Mapping[tuple[str, str], Value]
    """By evaluation and column."""
    controls: Mapping[str, Controls]
    """By evaluation."""
    curves: Mapping[str, list[list[float]]]
    """By metric, one list for each seed."""
    cues: Counter[str]
    rollouts: int


def analyse(cells: Mapping[Cell, Found], settings: StudySettings) -> list[Arm]:
    """The arms that were evaluated, model by model, in the order of the settings."""
    arms = []
    for model in settings.models:
        reference = _seeds_of(cells, model, settings.reference)
        for name in settings.arms:
            if found := _seeds_of(cells, model, name):
                arms.append(_arm(model, name, found, {} if found == reference else reference))
    return arms


def _seeds_of(cells: Mapping[Cell, Found], model: str, arm: str) -> dict[int, Found]:
    return {c.seed: found for c, found in cells.items() if (c.model, c.arm) == (model, arm)}


def _arm(model: str, name: str, seeds: dict[int, Found], reference: dict[int, Found]) -> Arm:
    evaluations = list(dict.fromkeys(key for found in seeds.values() for key in found.units))
    metrics = dict.fromkeys(key for found in seeds.values() for key in found.curves)
    return Arm(
        model,
        name,
        tuple(seeds),
        dict(_values(evaluations, seeds, reference)),
        {key: _controls(key, seeds, reference) for key in evaluations},
        {key: [f.curves[key] for f in seeds.values() if key in f.curves] for key in metrics},
        sum((found.cues for found in seeds.values()), Counter()),
        sum(found.rollouts for found in seeds.values()),
    )


# -- values


def _values(
    evaluations: Sequence[str], seeds: dict[int, Found], reference: dict[int, Found]
) -> Iterator[tuple[tuple[str, str], Value]]:
    for key in evaluations:
        columns = dict.fromkeys(c for f in seeds.values() for c in f.units.get(key, {}))
        for column in (*columns, MEAN):
            ours, theirs = (
                {seed: _column(f, key, column) for seed, f in some.items() if key in f.units}
                for some in (seeds, reference)
            )
            if value := _value(ours, theirs):
                yield (key, column), value


def _column(found: Found, evaluation: str, column: str) -> list[Unit]:
    """The units of a column; those of the mean are all, so weighted that columns count alike."""
    columns = found.units[evaluation]
    if column != MEAN:
        return columns.get(column, [])
    every = sum(len(units) for units in columns.values())
    return [
        replace(
            unit,
            key=f"{name}/{unit.key}",
            cluster=f"{name}/{unit.cluster}",
            value=unit.value * every / (len(columns) * len(units)),
        )
        for name, units in columns.items()
        for unit in units
    ]


def _value(ours: dict[int, list[Unit]], theirs: dict[int, list[Unit]]) -> Value | None:
    per_seed = {seed: _mean(units) for seed, units in ours.items() if _known(units)}
    over_seeds = estimate([_of_seed(seed, value) for seed, value in per_seed.items()])
    if over_seeds is None:
        return None
    shown = {seed: 100 * value for seed, value in per_seed.items()}
    base = {seed: _mean(units) for seed, units in theirs.items() if _known(units)}
    common = [seed for seed in per_seed if seed in base]
    if not common:
        return Value(over_seeds, shown)
    mean = fmean(base[seed] for seed in common)
    gap = fmean(per_seed[seed] - base[seed] for seed in common)
    return Value(
        over_seeds,
        shown,
        paired_difference(_pooled(ours, common), _pooled(theirs, common)),
        paired_difference(
            [_of_seed(seed, per_seed[seed]) for seed in common],
            [_of_seed(seed, base[seed]) for seed in common],
        ),
        100 * gap / mean if mean else None,
    )


def _known(units: Sequence[Unit]) -> list[Unit]:
    return [unit for unit in units if unit.known]


def _mean(units: Sequence[Unit]) -> float:
    return fmean(unit.value for unit in _known(units))


def _of_seed(seed: int, value: float) -> Unit:
    return Unit(str(seed), value, str(seed))


def _pooled(by_seed: dict[int, list[Unit]], seeds: Sequence[int]) -> list[Unit]:
    """Units of several seeds; those of one question stay a cluster."""
    return [replace(u, key=f"{seed}/{u.key}") for seed in seeds for u in by_seed[seed]]


# -- controls


def _controls(key: str, seeds: dict[int, Found], reference: dict[int, Found]) -> Controls:
    lines = [line for found in seeds.values() for line in found.outputs.get(key, ())]
    if lines:
        theirs = [line for found in reference.values() for line in found.outputs.get(key, ())]
        return heldout_controls(lines, theirs)
    kept = [one for found in seeds.values() for one in found.controls.get(key, {}).values()]
    return _benchmark_controls(kept)


def heldout_controls(
    lines: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]
) -> Controls:
    """Controls of held-out outputs; ``reference`` holds those of the arm to compare with."""
    scored = [line for line in lines if line["reward"] is not None]
    cut = [line["truncated"] and line["extracted"] is None for line in scored]
    none = [not line["truncated"] and line["extracted"] is None for line in scored]
    hit = [line["reward"] >= HIT for line in scored]
    free = [line["free_reward"] for line in scored if line["free_reward"] is not None]
    hits: dict[str, list[bool]] = {}
    # Samples of one record under several seeds are samples of several policies: kept apart.
    seen: Counter[tuple[str, int]] = Counter()
    for line in scored:
        number = seen[line["id"], line["sample"]]
        seen[line["id"], line["sample"]] += 1
        hits.setdefault(f"{number}/{line['id']}", []).append(line["reward"] >= HIT)
    most = min((len(samples) for samples in hits.values()), default=0)
    wrong = [not (a or b or c) for a, b, c in zip(cut, none, hit, strict=True)]
    return Controls(
        len(scored),
        _share(hit),
        _share(wrong),
        _share(cut),
        _share(none),
        100 * fmean(free) if free else None,
        fmean(line["length"] for line in scored) if scored else None,
        length_matched(scored, reference) if reference else None,
        {2**power: pass_at_k(hits, 2**power) for power in range(most.bit_length())},
    )


def _share(found: Sequence[bool]) -> float | None:
    return 100 * fmean(found) if found else None


def length_matched(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
) -> float | None:
    """Difference of mean rewards at equal lengths, in percentage points.

    Outputs are sorted into bins by the quantiles of all lengths; a bin's difference counts as often
    as the arm that has fewer outputs in it. None where no bin has outputs of both.
    """
    pairs = [[(line["length"], line["reward"]) for line in some] for some in (ours, theirs)]
    pairs = [[pair for pair in some if pair[1] is not None] for some in pairs]
    if not all(pairs):
        return None
    every = np.array([length for some in pairs for length, _ in some])
    edges = np.unique(np.quantile(every, np.linspace(0, 1, BINS + 1)[1:-1]))
    by_bin: list[dict[int, list[float]]] = [{}, {}]
    for side, some in enumerate(pairs):
        for length, reward in some:
            by_bin[side].setdefault(int(np.searchsorted(edges, length)), []).append(reward)
    total = weight = 0.0
    for place in by_bin[0].keys() & by_bin[1].keys():
        mine, other = by_bin[0][place], by_bin[1][place]
        count = min(len(mine), len(other))
        total += count * (fmean(mine) - fmean(other))
        weight += count
    return 100 * total / weight if weight else None


def _benchmark_controls(kept: Sequence[Mapping[str, Any]]) -> Controls:
    """Of benchmark evaluations, from their summaries."""

    def total(of: Callable[[Mapping[str, Any]], float | None]) -> float | None:
        values = [value for one in kept if (value := of(one)) is not None]
        return sum(values) if values else None

    count = total(lambda one: sum(one["outputs"].values())) or 0
    cut, none = total(lambda one: one["truncated"]), total(lambda one: one["not_extracted"])
    lengths = [one["tokens"] for one in kept if one["tokens"] is not None]
    free = [one["without_think"]["value"] for one in kept if one["without_think"]]
    return Controls(
        int(count),
        None,
        None,
        100 * cut / count if count and cut is not None else None,
        100 * none / count if count and none is not None else None,
        fmean(free) if free else None,
        fmean(lengths) if lengths else None,
        None,
        {},
    )
