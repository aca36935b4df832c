"""Packing: nothing lost, nothing cut, both budgets kept, deterministic, well filled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlaa_jax.data.images.bins import unit_count
from vlaa_jax.data.images.planner import plan_vision
from vlaa_jax.data.rows.packing import PackBudget, Packer, fit_budget, pack
from vlaa_jax.schema import UserError

BUDGET = PackBudget(
    tokens_per_row=128, rows_per_shard=2, n_shards=2, rows_per_bin=6, bins_per_shard=2
)
sides = st.integers(1, 8).map(lambda n: 2 * n)
grid_lists = st.lists(st.tuples(st.just(1), sides, sides), max_size=3)
streams = st.lists(st.tuples(st.integers(1, 64), grid_lists), max_size=60)


def with_text(stream):
    """Token counts that include the image tokens, as real samples have them."""
    out = []
    for i, (text, grids) in enumerate(stream):
        n = text + sum(unit_count(g) for g in grids)
        out.append((i, n, grids))
    return out


@settings(max_examples=80, deadline=None)
@given(streams, st.sampled_from([4, 0]), st.sampled_from([1.0, 1.5, 3.0]))
def test_every_sample_goes_whole_into_one_row(stream, window_units, lookahead):
    budget = PackBudget(128, 2, 2, 6, 2, window_units=window_units, lookahead=lookahead)
    samples = []
    for sample in with_text(stream):
        if budget.problem(sample[1], sample[2]) is None:
            samples.append(sample)
    size = {i: (n, grids) for i, n, grids in samples}
    seen = []
    for batch in pack(samples, budget):
        assert len(batch.rows) == 4
        seen += [i for row in batch.rows for i in row]
        assert all(sum(size[i][0] for i in row) <= 128 for row in batch.rows)
        shards = [
            [g for row in batch.rows[s : s + 2] for i in row for g in size[i][1]] for s in (0, 2)
        ]
        plan = plan_vision(shards, window_units, rows_per_bin=6, bins_per_shard=2)
        assert np.count_nonzero(plan.src_SR64 >= 0) == batch.n_patches
        assert batch.n_tokens == sum(size[i][0] for row in batch.rows for i in row) > 0
    assert sorted(seen) == sorted(size)


def test_rows_can_be_planned_where_order_matters():
    """Placed in order of text length these images fit two bins; in row order they need a third."""
    images = [
        *[(69, 16, 4), (70, 12, 8), (75, 8, 10), (69, 12, 12), (89, 6, 4), (68, 12, 10)],
        *[(31, 6, 10), (20, 10, 10), (23, 8, 8), (70, 4, 14), (65, 8, 8), (57, 2, 4), (47, 2, 16)],
    ]
    stream = [(i, n, [(1, h, w)]) for i, (n, h, w) in enumerate(images)]
    seen = []
    budget = PackBudget(100, 8, 1, rows_per_bin=4, bins_per_shard=2, lookahead=1.0)
    for batch in pack(stream, budget):
        in_rows = [i for row in batch.rows for i in row]
        plan_vision([[stream[i][2][0] for i in in_rows]], rows_per_bin=4, bins_per_shard=2)
        seen += in_rows
    assert sorted(seen) == list(range(13))


def mix(n, seed=0):
    """Image sizes in the manner of the released data, with text around them."""
    shapes = [(22, 34), (32, 32), (34, 46), (40, 60), (42, 58), (6, 12), (16, 16)]
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        grid = (1, *shapes[rng.integers(len(shapes))])
        out.append((i, unit_count(grid) + int(80 + rng.gamma(3, 120)), [grid]))
    return [s for s in out if s[1] <= 2048]


def test_same_stream_same_batches():
    budget = PackBudget(2048, 4, 1, 48, 3)
    one = [batch.rows for batch in pack(mix(200), budget)]
    assert one == [batch.rows for batch in pack(mix(200), budget)]


def test_refeeding_what_waits_resumes_exactly():
    budget, samples = PackBudget(2048, 4, 1, 48, 3), mix(300)
    whole = [b.rows for b in pack(samples, budget)]
    packer, head = Packer(budget), []
    stream = iter(samples)
    while len(head) < 5:
        batch = packer.add(*next(stream))
        if batch is not None:
            head.append(batch.rows)
    again = [*(samples[i] for i in packer.waiting), *stream]
    assert head + [b.rows for b in pack(again, budget)] == whole


def test_a_fitted_budget_fills_both_sides():
    samples = mix(400)
    budget = fit_budget([(n, grids) for _, n, grids in samples], PackBudget(2048, rows_per_shard=8))
    batches = list(pack(mix(600, seed=1), budget))[:-2]
    assert np.mean([b.n_tokens for b in batches]) / budget.tokens > 0.9
    assert np.mean([b.n_patches for b in batches]) / budget.patches > 0.9


def test_text_only_needs_no_vision_budget():
    budget = fit_budget([(100, []), (900, [])], PackBudget(1024, rows_per_shard=2))
    assert (budget.rows_per_bin, budget.bins_per_shard) == (4, 1)
    assert [b.rows for b in pack([("a", 900, []), ("b", 100, [])], budget)] == [[["a", "b"], []]]


def test_the_longest_waiting_sample_comes_next():
    """A sample that fits badly is not passed over for ever."""
    budget = PackBudget(100, 1)
    stream = [("odd", 51, [])] + [(f"half{i}", 50, []) for i in range(20)]
    rows = [batch.rows[0] for batch in pack(stream, budget)]
    assert rows[0] == ["odd"], "by size alone, pairs of halves would always come first"
    assert [len(row) for row in rows[1:]] == [2] * 10


@pytest.mark.parametrize(
    ("tokens", "grids", "message"),
    [
        (129, [], "sample 7: 129 tokens are over tokens_per_row 128"),
        (10, [(1, 34, 46)], "sample 7: an image needs 25 vision rows, over rows_per_bin 6"),
        (10, [(1, 18, 18)] * 3, "sample 7: 3 images do not fit into 2 vision bins of 6 rows"),
    ],
)
def test_what_can_never_fit_is_refused(tokens, grids, message):
    with pytest.raises(UserError, match=message):
        Packer(BUDGET).add(7, tokens, grids, "sample 7")


def test_nonsense_budgets_are_refused():
    with pytest.raises(UserError, match="tokens_per_row must be at least 1"):
        PackBudget(0, 1)
    with pytest.raises(UserError, match="lookahead"):
        PackBudget(1, 1, lookahead=0.5)


def test_a_budget_must_hold_every_sample():
    with pytest.raises(UserError, match="more images than the vision budget"):
        fit_budget([(2000, [(1, 40, 40)] * 40), (2000, [])], PackBudget(2048, rows_per_shard=1))
