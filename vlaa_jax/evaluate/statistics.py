"""Intervals, paired differences and spread of scores whose parts are not all independent.

Units of a cluster (variants of one question, questions of one problem) move together; the variance
of a mean is that of the clusters' sums. Sources: Miller, "Adding Error Bars to Evals" (arXiv
2411.00640) for clustered and paired errors; Wilson (1927) for shares; Chen et al. (arXiv
2107.03374) for pass@k.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from vlaa_jax.evaluate.nouns import Unit

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval, all in percent."""

    value: float
    low: float
    high: float
    units: int
    clusters: int


@dataclass(frozen=True)
class Difference:
    """A paired difference of two runs in percentage points."""

    value: float
    low: float
    high: float
    p_value: float
    pairs: int


@dataclass(frozen=True)
class Spread:
    """How a score varies over samples of the same run, in percent."""

    mean: float
    deviation: float
    least: float
    most: float
    samples: int


def estimate(units: Sequence[Unit], level: float = LEVEL) -> Estimate | None:
    """The mean of the known units and its interval; None without any.

    Independent units worth 0 or 1 get Wilson's interval, which holds near 0 and 100 %; others get
    Student's t over clusters, cut to [0, 100]. Clusters that are all alike show no spread; then the
    bounds are what a share of clusters not seen yet could make of the mean.
    """
    known = [unit for unit in units if unit.known]
    if not known:
        return None
    values = np.array([unit.value for unit in known])
    clusters = len({unit.cluster for unit in known})
    if clusters == len(known) and set(values.tolist()) <= {0.0, 1.0}:
        low, high = _wilson(float(values.mean()), len(values), level)
    else:
        low, high = _clustered_bounds(known, values, clusters, level, (0.0, 1.0))
    value = 100 * float(values.mean())
    # At 0 and 100 % rounding would leave the value outside by 1e-14.
    bounds = min(max(0.0, 100 * float(low)), value), max(min(100.0, 100 * float(high)), value)
    return Estimate(value, *bounds, len(known), clusters)


def paired_difference(
    ours: Sequence[Unit], baseline: Sequence[Unit], level: float = LEVEL
) -> Difference | None:
    """Ours minus the baseline over the units that both know; None with fewer than two clusters.

    The p-value is two-sided, of Student's t over clusters of differences; of the sign test where
    all clusters differ alike.
    """
    theirs = {unit.key: unit for unit in baseline if unit.known}
    pairs = [
        Unit(unit.key, unit.value - theirs[unit.key].value, unit.cluster)
        for unit in ours
        if unit.known and unit.key in theirs
    ]
    clusters = len({pair.cluster for pair in pairs})
    if clusters < 2:
        return None
    values = np.array([pair.value for pair in pairs])
    mean, error = float(values.mean()), _clustered_error(pairs, values)
    low, high = _clustered_bounds(pairs, values, clusters, level, (-1.0, 1.0))
    if error == 0:  # nothing to divide by: how likely so many equal signs are
        p_value = 1.0 if mean == 0 else 2.0 ** (1 - clusters)
    else:
        p_value = float(2 * special.stdtr(clusters - 1, -abs(mean) / error))
    return Difference(100 * mean, 100 * low, 100 * high, p_value, len(pairs))


def spread(scores: Sequence[float]) -> Spread | None:
    """Mean, standard deviation and range of a score over samples; None without any."""
    if not scores:
        return None
    values = np.array(scores)
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Spread(
        float(values.mean()), deviation, float(values.min()), float(values.max()), len(values)
    )


def pass_at_k(hits: Mapping[str, Sequence[bool]], k: int) -> float | None:
    """Chance in percent that one of k samples is right, without bias; None where k is too large."""
    if not hits or any(len(samples) < k for samples in hits.values()):
        return None
    missed = [
        math.comb(len(samples) - sum(samples), k) / math.comb(len(samples), k)
        for samples in hits.values()
    ]
    return 100 * (1 - sum(missed) / len(missed))


def agreement(hits: Mapping[str, Sequence[bool]]) -> float | None:
    """Share in percent of questions whose samples are all right or all wrong."""
    if not hits:
        return None
    return 100 * sum(len(set(samples)) == 1 for samples in hits.values()) / len(hits)


def _wilson(share: float, number: int, level: float) -> tuple[float, float]:
    z = float(special.ndtri(0.5 + level / 2))
    scale = 1 / (1 + z * z / number)
    middle = scale * (share + z * z / (2 * number))
    reach = scale * z * math.sqrt(share * (1 - share) / number + z * z / (4 * number**2))
    return middle - reach, middle + reach


def _clustered_bounds(
    units: Sequence[Unit],
    values: np.ndarray,
    clusters: int,
    level: float,
    extremes: tuple[float, float],
) -> tuple[float, float]:
    """Bounds of a mean whose values lie between the extremes."""
    mean, (least, most) = float(values.mean()), extremes
    if clusters < 2:
        return least, most
    if error := _clustered_error(units, values):
        reach = _t_quantile(level, clusters - 1) * error
        return mean - reach, mean + reach
    alike, _ = _wilson(1.0, clusters, level)
    return alike * mean + (1 - alike) * least, alike * mean + (1 - alike) * most


def _clustered_error(units: Sequence[Unit], values: np.ndarray) -> float:
    """Standard error of a mean; with every unit for itself it is the usual one."""
    names = {name: place for place, name in enumerate(dict.fromkeys(u.cluster for u in units))}
    sums = np.zeros(len(names))
    np.add.at(sums, [names[unit.cluster] for unit in units], values - values.mean())
    clusters = len(names)
    if clusters < 2:
        return 0.0
    return float(np.sqrt(clusters / (clusters - 1) * (sums**2).sum()) / len(values))


def _t_quantile(level: float, freedom: int) -> float:
    return float(special.stdtrit(freedom, 0.5 + level / 2))
