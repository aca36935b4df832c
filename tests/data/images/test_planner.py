"""The planner: every unit once, windows as HF's, ladder shapes, deterministic, never over a bin."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlaa_jax.data.images.bins import UNITS_PER_ROW, BinPacker, pack_shards, rows_needed, unit_count
from vlaa_jax.data.images.planner import gather_patches, ladder, plan_vision
from vlaa_jax.schema import UserError

sides = st.integers(1, 12).map(lambda n: 2 * n)
grids = st.tuples(st.integers(1, 3), sides, sides)
batches = st.lists(st.lists(grids, max_size=5), min_size=1, max_size=3)
window_sizes = st.sampled_from([4, 2, 0])


def unit_table(plan, n_shards):
    """Per shard: [slots] index of the unit in each slot of its bins, -1 = empty."""
    src = plan.src_SR64.reshape(n_shards, -1, 4)
    assert ((src[..., 0] % 4 == 0) | (src[..., 0] == -1)).all()
    real = src[..., :1] >= 0
    np.testing.assert_array_equal(src, np.where(real, src[..., :1] + np.arange(4), -1))
    return np.where(real[..., 0], src[..., 0] // 4, -1)


def test_ladder_has_two_significant_bits():
    rungs = sorted({ladder(n) for n in range(1, 300)})
    assert rungs == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384]
    assert all(ladder(n) >= n for n in range(1, 300))
    assert all(ladder(r) == r for r in rungs)
    assert ladder(3, minimum=5) == 6
    assert ladder(0, minimum=1) == 1
    with pytest.raises(ValueError, match="at least 1"):
        ladder(0, minimum=0)


@settings(max_examples=80, deadline=None)
@given(batches, window_sizes)
def test_every_unit_is_placed_once_and_found_again(shards, window_units):
    plan = plan_vision(shards, window_units)
    table = unit_table(plan, len(shards))
    for shard, images in enumerate(shards):
        n = sum(unit_count(g) for g in images)
        np.testing.assert_array_equal(np.sort(table[shard][table[shard] >= 0]), np.arange(n))
        start = 0
        for grid, slots in zip(images, plan.units[shard], strict=True):
            np.testing.assert_array_equal(table[shard][slots], start + np.arange(unit_count(grid)))
            assert len(set(slots // (plan.rows_per_bin * UNITS_PER_ROW))) == 1, "crosses a bin"
            start += unit_count(grid)


@settings(max_examples=80, deadline=None)
@given(batches, window_sizes)
def test_groups_and_coordinates_follow_from_the_grid(shards, window_units):
    """win_id and seg_id partition the patches of a bin as the definition says, slot by slot."""
    plan = plan_vision(shards, window_units)
    S, R, _ = plan.src_SR64.shape
    empty = plan.src_SR64 == -1
    np.testing.assert_array_equal(plan.win_id_SR64 == 0, empty)
    np.testing.assert_array_equal(plan.seg_id_SQ.reshape(S, R, 64) == 0, empty)
    assert not plan.pos_hw_SR642[empty].any()
    for s in range(S):
        shard = s // plan.bins_per_shard
        truth = [
            (i, f, r, c)
            for i, (t, h, w) in enumerate(shards[shard])
            for f in range(t)
            for ur in range(h // 2)
            for uc in range(w // 2)
            for r in (2 * ur, 2 * ur + 1)
            for c in (2 * uc, 2 * uc + 1)
        ]
        frames, windows = {}, {}
        for row in range(R):
            for slot in range(64):
                patch = plan.src_SR64[s, row, slot]
                if patch < 0:
                    continue
                i, f, r, c = truth[patch]
                assert tuple(plan.pos_hw_SR642[s, row, slot]) == (r, c)
                frames.setdefault((i, f), set()).add(int(plan.seg_id_SQ[s, row * 64 + slot]))
                if window_units:
                    key = (i, f, r // (2 * window_units), c // (2 * window_units))
                    windows.setdefault(key, set()).add((row, int(plan.win_id_SR64[s, row, slot])))
        for groups in (frames, windows):
            assert all(len(ids) == 1 for ids in groups.values()), "a group has two ids or rows"
            assert len({next(iter(ids)) for ids in groups.values()}) == len(groups), "ids shared"


def hf_windows(grid_list):
    """Window membership from transformers: a set of frozensets of unit indices, and the inverse."""
    torch = pytest.importorskip("torch")
    from transformers.vision_utils import get_vision_window_index

    grid = torch.tensor(grid_list)
    index, cu = get_vision_window_index(grid, spatial_merge_size=2, window_size=112, patch_size=14)[
        :2
    ]
    index, cu = np.asarray(index), np.unique(np.asarray(cu)) // 4
    return {frozenset(index[a:b].tolist()) for a, b in itertools.pairwise(cu)}


@pytest.mark.parametrize(
    "grid_list",
    [
        [(1, 6, 10)],
        [(1, 8, 8), (1, 2, 30), (1, 16, 24)],
        [(2, 4, 6), (1, 34, 46)],
        [(1, 2, 2), (3, 18, 10), (1, 58, 86), (1, 6, 12)],
    ],
)
def test_windows_are_those_of_transformers(grid_list):
    plan = plan_vision([grid_list])
    table = unit_table(plan, 1)[0].reshape(plan.bins_per_shard, -1)
    win = plan.win_id_SR64.reshape(plan.bins_per_shard, -1, 4)[..., 0]
    ours = {
        frozenset(table[s][win[s] == w].tolist())
        for s in range(plan.bins_per_shard)
        for w in range(1, win[s].max() + 1)
    }
    assert ours == hf_windows(grid_list)


@settings(max_examples=60, deadline=None)
@given(grids)
def test_rows_lie_between_the_least_possible_and_one_window_each(grid):
    windows = grid[0] * -(-grid[1] // 8) * -(-grid[2] // 8)
    assert -(-unit_count(grid) // 16) <= rows_needed(grid) <= windows
    assert rows_needed(grid, 0) == -(-unit_count(grid) // 16)


def test_rows_of_known_sizes():
    """Rows and waste published for these sizes: 476x644 takes 25 rows, 308x476 12, 756x1036 63."""
    assert [rows_needed((1, h, w)) for h, w in [(34, 46), (22, 34), (54, 74), (64, 80)]] == [
        25,
        12,
        63,
        80,
    ]


def test_small_images_share_rows():
    """GeoQA-sized images (18 units) waste 44 % of two rows each when alone."""
    plan = plan_vision([[(1, 6, 12)] * 16])
    assert plan.src_SR64.shape[0] * plan.rows_per_bin <= 24


def test_text_only_batches_have_one_empty_bin_a_shard():
    plan = plan_vision([[], []], rows_per_bin=8)
    assert plan.src_SR64.shape == (2, 8, 64)
    assert (plan.src_SR64 == -1).all()
    patches = gather_patches(plan, [[], []])
    assert patches.shape == (2, 8, 64, 588) and patches.dtype == np.uint8 and not patches.any()
    assert plan_vision([[]]).src_SR64.shape == (1, 4, 64)


def test_same_input_same_plan_and_shapes_from_the_ladder():
    rng = np.random.default_rng(0)
    shards = [[(1, *(2 * rng.integers(1, 30, 2)).tolist()) for _ in range(20)] for _ in range(2)]
    one, two = plan_vision(shards), plan_vision(shards)
    np.testing.assert_array_equal(one.src_SR64, two.src_SR64)
    assert ladder(one.rows_per_bin) == one.rows_per_bin
    assert ladder(one.bins_per_shard) == one.bins_per_shard


def test_what_does_not_fit_is_refused_in_words():
    with pytest.raises(UserError, match=r"1x34x46 patches needs 25 vision rows.*a bin has 16"):
        plan_vision([[(1, 34, 46)]], rows_per_bin=16)
    with pytest.raises(UserError, match="do not fit into 2 vision bins of 32 rows"):
        plan_vision([[(1, 34, 46)] * 3], rows_per_bin=32, bins_per_shard=2)
    with pytest.raises(ValueError, match="even rows"):
        plan_vision([[(1, 3, 4)]])


@settings(max_examples=60, deadline=None)
@given(st.lists(grids, max_size=30), window_sizes, st.integers(1, 3))
def test_what_the_packer_takes_the_planner_can_place(images, window_units, bins):
    packer = BinPacker(rows_per_bin=40, n_bins=bins, window_units=window_units)
    taken = [g for g in images if packer.add([g])]
    assert pack_shards([taken], 40, window_units, bins) is not None
    plan = plan_vision([taken], window_units, rows_per_bin=40, bins_per_shard=bins)
    assert plan.src_SR64.shape == (bins, 40, 64)


def test_a_refused_sample_leaves_the_packer_as_it_was():
    packer = BinPacker(rows_per_bin=32, n_bins=2)
    assert not packer.add([(1, 34, 46)] * 3)
    assert packer.add([(1, 34, 46)] * 2)
    assert not packer.add([(1, 34, 46)])
    assert packer.add([(1, 8, 8)])


def test_gathered_patches_lie_where_the_plan_says():
    shards = [[(1, 6, 10), (2, 4, 6)], [(1, 8, 8)]]
    rng = np.random.default_rng(1)
    images = [
        [rng.normal(size=(4 * unit_count(g), 12)).astype(np.float32) for g in s] for s in shards
    ]
    plan = plan_vision(shards)
    out = gather_patches(plan, images)
    for s in range(out.shape[0]):
        flat = np.concatenate(images[s // plan.bins_per_shard])
        expected = np.where(plan.src_SR64[s][..., None] >= 0, flat[plan.src_SR64[s]], 0)
        np.testing.assert_array_equal(out[s], expected)
    with pytest.raises(ValueError, match=r"\(48, 12\) given where 60 of 12 numbers are planned"):
        gather_patches(plan, [[images[0][1], images[0][1]], images[1]])
