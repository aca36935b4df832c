"""Intervals against a bootstrap and against simulated truth; differences, pass@k."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest

from vlaa_jax.evaluate import statistics
from vlaa_jax.evaluate.nouns import Unit


def _clusters(values_CV: np.ndarray) -> list[Unit]:
    return [
        Unit(f"{c}-{v}", float(value), str(c))
        for c, row in enumerate(values_CV)
        for v, value in enumerate(row)
    ]


def _draw(rng: np.random.Generator, clusters: int, size: int) -> np.ndarray:
    """Hits of clusters whose questions share a chance of being right; the mean chance is 0.4."""
    chance_C = rng.beta(0.8, 1.2, clusters)
    return (rng.random((clusters, size)) < chance_C[:, None]).astype(float)


def _coverage(estimates: list[statistics.Estimate], truth: float) -> float:
    return float(np.mean([one.low <= truth <= one.high for one in estimates]))


def test_a_clustered_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [statistics.estimate(_clusters(_draw(rng, 60, 6))) for _ in range(1_200)]
    assert 0.93 <= _coverage(found, 40.0) <= 0.97
    naive = [
        statistics.estimate([Unit(u.key, u.value, u.key) for u in _clusters(_draw(rng, 60, 6))])
        for _ in range(200)
    ]
    assert _coverage(naive, 40.0) < 0.8, "without clusters the interval must be too narrow here"


@pytest.mark.parametrize(("share", "number"), [(0.4, 1_000), (0.05, 447), (0.97, 788)])
def test_an_interval_of_independent_hits_covers_the_truth(share, number):
    rng = np.random.default_rng(1)
    draws = (rng.random((2_000, number)) < share).astype(float)
    found = []
    for hits in draws:
        low, high = statistics._wilson(float(hits.mean()), number, 0.95)
        found.append(low <= share <= high)
    assert 0.93 <= np.mean(found) <= 0.97
    units = [Unit(str(i), hit, str(i)) for i, hit in enumerate(draws[0])]
    assert statistics.estimate(units).low == pytest.approx(
        100 * statistics._wilson(draws[0].mean(), number, 0.95)[0]
    )


def test_a_clustered_interval_is_that_of_a_bootstrap_over_clusters():
    rng = np.random.default_rng(2)
    values_CV = _draw(rng, 200, 5)
    means = [values_CV[rng.integers(0, 200, 200)].mean() for _ in range(4_000)]
    low, high = np.percentile(means, [2.5, 97.5])
    found = statistics.estimate(_clusters(values_CV))
    assert found.low == pytest.approx(100 * low, abs=0.6)
    assert found.high == pytest.approx(100 * high, abs=0.6)
    assert (found.units, found.clusters) == (1000, 200)


def test_paired_differences_are_those_of_the_pairs():
    # Differences by hand: 1, 0, 1, 0, -1, 1: mean 1/3, standard deviation sqrt(0.6667), n = 6;
    # t = 0.3333 / (0.8165 / 2.4495) = 1.0 with 5 degrees of freedom: p = 0.3632.
    ours = [1, 0, 1, 1, 0, 1]
    theirs = [0, 0, 0, 1, 1, 0]
    pair = [
        [Unit(str(i), float(v), str(i)) for i, v in enumerate(values)] for values in (ours, theirs)
    ]
    found = statistics.paired_difference(*pair)
    assert found.value == pytest.approx(100 / 3)
    assert found.p_value == pytest.approx(0.3632, abs=1e-4)
    assert found.pairs == 6
    assert statistics.paired_difference(pair[0], pair[0]).p_value == 1.0
    assert statistics.paired_difference(pair[0][:1], pair[1]) is None


def test_p_values_of_equal_runs_are_uniform_enough():
    rng = np.random.default_rng(3)
    values = []
    for _ in range(600):
        a, b = (_clusters(_draw(rng, 60, 4)) for _ in range(2))
        values.append(statistics.paired_difference(a, b).p_value)
    assert 0.03 <= np.mean(np.array(values) < 0.05) <= 0.075
    assert 0.42 <= np.mean(np.array(values) < 0.5) <= 0.58


def test_pass_at_k_is_the_share_of_all_subsets():
    hits = {"a": [True, False, False, False], "b": [True, True, False, False], "c": [False] * 4}
    for k in (1, 2, 4):
        by_hand = np.mean(
            [np.mean([any(s) for s in itertools.combinations(h, k)]) for h in hits.values()]
        )
        assert statistics.pass_at_k(hits, k) == pytest.approx(100 * by_hand)
    assert statistics.pass_at_k(hits, 5) is None
    assert statistics.agreement(hits) == pytest.approx(100 / 3)


def test_units_that_are_not_known_are_left_out():
    units = [Unit("a", 1.0, "a"), Unit("b", 0.0, "b", known=False)]
    assert statistics.estimate(units).value == 100.0
    assert statistics.estimate(units[1:]) is None


@pytest.mark.parametrize("clusters", [2, 5, 40])
def test_clusters_that_are_all_alike_leave_room_for_those_not_seen(clusters):
    same = [Unit(str(i), 1.0, str(i // 2)) for i in range(2 * clusters)]
    other = [Unit(unit.key, 0.0, unit.cluster) for unit in same]
    low = statistics.estimate([Unit(str(i), 1.0, str(i)) for i in range(clusters)]).low
    assert statistics.estimate(same).low == pytest.approx(low) and low < 100
    gain = statistics.paired_difference(same, other)
    assert gain.low < gain.value == gain.high == 100
    assert gain.p_value == pytest.approx(binomtest(clusters, clusters).pvalue)
    none = statistics.paired_difference(same, same)
    assert none.low < none.value == 0 < none.high and none.p_value == 1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_interval_holds_its_value_to_the_last_digit(share):
    """Wilson's lower bound of 0 of 3 is 6e-17 as it is computed."""
    for number in range(1, 200):
        found = statistics.estimate([Unit(str(i), share, str(i)) for i in range(number)])
        assert 0 <= found.low <= found.value <= found.high <= 100
