"""Collation: everything a sample had can be read back from the batch, in its own shard."""

import numpy as np
import pytest
from PIL import Image

from vlaa_jax.data.images.planner import ladder
from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.rows.batches import BatchLayout, collate_prompts, collate_rows
from vlaa_jax.data.samples.preprocessor import Preprocessor
from vlaa_jax.schema import Record, UserError

PAD = 0
SIZES = [[(150, 97)], [], [(60, 300), (28, 28)], [(300, 200)], [(200, 140)], [(56, 84)]]


@pytest.fixture(scope="module")
def samples(chat):
    rng = np.random.default_rng(0)
    out = []
    for i, sizes in enumerate(SIZES):
        images = [
            Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes
        ]
        names = tuple(f"{n}.png" for n in range(len(images)))
        record = Record(f"r{i}", "word " * (3 * i), names, answer=f"<answer> {i} </answer>")
        out.append(Preprocessor(chat, ImageProcessor()).encode(record, images, with_answer=i % 2))
    return out


def units_of(vision, shard, n_shards):
    """The shard's patches as merged units: [slots, 4 * C]."""
    patches = vision.patches_SR64C
    bins = patches.shape[0] // n_shards
    return patches[shard * bins : (shard + 1) * bins].reshape(-1, 4 * patches.shape[-1])


def assert_units_are_the_samples(sample, unit_src_T, vision, shard, n_shards):
    """The gathered units behind the placeholders are the sample's own patches, in order."""
    np.testing.assert_array_equal(unit_src_T >= 0, sample.image_mask_T)
    if sample.patches:
        expected = np.concatenate(sample.patches)
        found = units_of(vision, shard, n_shards)[unit_src_T[sample.image_mask_T]]
        np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("n_shards", [1, 2, 3])
@pytest.mark.parametrize("window_units", [4, 0])
def test_prompts_come_back_whole(samples, n_shards, window_units):
    batch = collate_prompts(
        samples, BatchLayout(n_shards, pad_id=PAD, window_units=window_units), min_tokens=8
    )
    P, T = batch.ids_PT.shape
    assert P == 6 and ladder(T) == T
    assert batch.vision.patches_SR64C.shape[0] % n_shards == 0
    for i, sample in enumerate(samples):
        n = sample.length
        assert batch.length_P[i] == n and batch.rope_delta_P[i] == sample.rope_delta
        np.testing.assert_array_equal(batch.ids_PT[i, :n], sample.ids_T)
        np.testing.assert_array_equal(batch.positions_PT3[i, :n], sample.positions_T3)
        assert (batch.ids_PT[i, n:] == PAD).all() and (batch.unit_src_PT[i, n:] == -1).all()
        assert not batch.positions_PT3[i, n:].any()
        shard = i // (P // n_shards)
        assert_units_are_the_samples(
            sample, batch.unit_src_PT[i, :n], batch.vision, shard, n_shards
        )


def test_prompts_fill_up_with_empty_rows(samples):
    batch = collate_prompts(samples[:5], BatchLayout(4, pad_id=PAD))
    assert batch.ids_PT.shape == (8, 192)
    assert batch.length_P[5:].tolist() == [0, 0, 0] and (batch.unit_src_PT[5:] == -1).all()
    assert (
        collate_prompts(samples[:1], BatchLayout(2, pad_id=PAD), min_prompts=6).ids_PT.shape[0] == 6
    )


@pytest.mark.parametrize("n_shards", [1, 2])
def test_rows_come_back_whole(samples, n_shards):
    rows = [[samples[0], samples[1]], [samples[2]], [samples[3], samples[4], samples[5]], []]
    batch = collate_rows(rows, BatchLayout(n_shards, pad_id=PAD))
    assert batch.ids_BT.shape[0] == 4
    for b, row in enumerate(rows):
        assert batch.segment_ids_BT[b].max() == len(row)
        for number, sample in enumerate(row, start=1):
            here = batch.segment_ids_BT[b] == number
            np.testing.assert_array_equal(batch.ids_BT[b, here], sample.ids_T)
            np.testing.assert_array_equal(batch.positions_BT3[b, here], sample.positions_T3)
            np.testing.assert_array_equal(batch.loss_mask_BT[b, here], sample.loss_mask_T)
            shard = b // (4 // n_shards)
            assert_units_are_the_samples(
                sample, batch.unit_src_BT[b, here], batch.vision, shard, n_shards
            )
        empty = batch.segment_ids_BT[b] == 0
        assert (batch.unit_src_BT[b, empty] == -1).all() and not batch.loss_mask_BT[b, empty].any()


def test_fixed_shapes_are_kept(samples):
    fixed = {"rows_per_bin": 16, "bins_per_shard": 3}
    batch = collate_rows(
        [samples[:2], samples[3:4]], BatchLayout(2, pad_id=PAD, **fixed), tokens_per_row=512
    )
    assert batch.ids_BT.shape == (2, 512) and batch.vision.pos_hw_SR642.shape == (6, 16, 64, 2)
    text = collate_rows([samples[1:2], []], BatchLayout(2, pad_id=PAD, **fixed), tokens_per_row=512)
    assert text.vision.patches_SR64C.shape == batch.vision.patches_SR64C.shape


def test_rows_are_never_cut(samples):
    with pytest.raises(UserError, match="over tokens_per_row 64"):
        collate_rows([samples], BatchLayout(pad_id=PAD), tokens_per_row=64)
    with pytest.raises(ValueError, match="3 rows do not divide over 2"):
        collate_rows([[], [], []], BatchLayout(2, pad_id=PAD))
    with pytest.raises(ValueError, match="at least one prompt"):
        collate_prompts([], BatchLayout(pad_id=PAD))
