"""Packed rows: nothing lost, nothing cut, exact resume, hosts and threads do not matter."""

import json
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from converters.tiny_tokenizer import tiny_config, write_sidecars
from vlaa_jax.data.builds.build import BuildSettings, build
from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.loaders.loader import Order
from vlaa_jax.data.loaders.rows import Samples, row_budget, row_loader
from vlaa_jax.data.rows.batches import BatchLayout, collate_rows
from vlaa_jax.data.rows.packing import PackBudget
from vlaa_jax.data.samples.preprocessor import Preprocessor
from vlaa_jax.data.sources.built import BuiltRecords
from vlaa_jax.data.sources.record_file import RecordFile, load_records
from vlaa_jax.data.sources.table import open_source
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.data.text.chat import Chat
from vlaa_jax.schema import UserError

BUDGET = PackBudget(tokens_per_row=256, rows_per_shard=2, rows_per_bin=8, bins_per_shard=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    paths = write_dataset(root, n_train=5, n_heldout=5, n_sft=48)
    hf = root / "hf"
    (hf).mkdir()
    (hf / "config.json").write_text(json.dumps(tiny_config(write_sidecars(hf))))
    records = load_records(paths.sft, kind="sft")
    return records, paths, Chat.from_dir(hf), ImageProcessor.from_dir(hf), hf


def make(world, records=None, **options):
    all_records, paths, chat, processor, _ = world
    options = {"budget": BUDGET, **options}
    images = options.pop("images", RecordFile(paths.sft, paths.images).images)
    samples = Samples(records or all_records, images, Preprocessor(chat, processor))
    return row_loader(samples, **options)


def samples_of(batch):
    """Token ids of every sample of a batch, cut out by its segment ids."""
    found = []
    for ids, segments in zip(batch.ids_BT, batch.segment_ids_BT, strict=True):
        found += [tuple(ids[segments == s]) for s in range(1, segments.max() + 1)]
    return found


def arrays(batch):
    return [*batch[:-1], *batch.vision]


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(arrays(a), arrays(b), strict=True))


def test_an_epoch_holds_every_sample_whole_and_once(world):
    records, paths, chat, processor, _ = world
    images = RecordFile(paths.sft, paths.images).images
    encoded = [
        Preprocessor(chat, processor).encode(r, images(r), with_answer=True) for r in records
    ]
    with make(world, order=Order(epochs=1)) as loader:
        batches = list(loader)
    expected = Counter(tuple(e.ids_T) for e in encoded)
    assert Counter(s for b in batches for s in samples_of(b)) == expected
    assert sum(int(b.loss_mask_BT.sum()) for b in batches) == sum(
        e.loss_mask_T.sum() for e in encoded
    )
    units = sum(int((b.unit_src_BT >= 0).sum()) for b in batches)
    assert units == sum(e.n_image_tokens for e in encoded)
    patches = sum(int((b.vision.seg_id_SQ > 0).sum()) for b in batches)
    assert patches == 4 * units
    assert {b.ids_BT.shape for b in batches} == {(2, 256)}
    assert len({b.vision.patches_SR64C.shape for b in batches}) == 1


def test_a_batch_is_what_plain_encoding_and_collation_give(world):
    records, paths, chat, processor, _ = world
    images = RecordFile(paths.sft, paths.images).images
    by_ids = {}
    for record in records:
        encoded = Preprocessor(chat, processor).encode(record, images(record), with_answer=True)
        by_ids[tuple(encoded.ids_T)] = encoded
    with make(world) as loader:
        batch = next(loader)
    rows = []
    for ids, segments in zip(batch.ids_BT, batch.segment_ids_BT, strict=True):
        rows.append([by_ids[tuple(ids[segments == s])] for s in range(1, segments.max() + 1)])
    plain = collate_rows(
        rows, BatchLayout(pad_id=chat.pad_id, rows_per_bin=8, bins_per_shard=2), tokens_per_row=256
    )
    assert equal(batch, plain)


def consumed(batches):
    return sum(int(batch.segment_ids_BT.max(-1).sum()) for batch in batches)


@pytest.mark.parametrize("order", [Order(seed=2), Order(seed=2, epochs=1)])
def test_restored_state_gives_bitwise_the_same_batches(world, order):
    with make(world, order=order) as loader:
        states, batches = [loader.get_state()], []
        while order.epochs or consumed(batches) <= len(world[0]) + 5:  # into the second epoch
            try:
                batches.append(next(loader))
            except StopIteration:
                break
            states.append(json.loads(json.dumps(loader.get_state())))
    assert len(batches) >= 5
    whole = [consumed(batches[:i]) >= len(world[0]) for i in range(len(batches))]
    boundary = whole.index(True) if True in whole else len(batches)
    for at in (0, 3, boundary - 1, min(boundary, len(batches) - 1)):
        with make(world, order=order, threads=0) as other:
            other.set_state(states[at])
            again = [next(other) for _ in range(min(3, len(batches) - at))]
        assert all(equal(a, b) for a, b in zip(again, batches[at:], strict=False))


def test_output_does_not_depend_on_threads(world):
    runs = []
    for threads in (0, 1, 3):
        with make(world, threads=threads) as loader:
            runs.append([next(loader) for _ in range(4)])
    for run in runs[1:]:
        assert all(equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_partition_the_epoch(world, hosts):
    records, paths, chat, processor, _ = world
    images = RecordFile(paths.sft, paths.images).images
    found = Counter()
    for host in range(hosts):
        order = Order(epochs=1, places=(host,), batch=hosts)
        with make(world, order=order) as loader:
            found.update(s for b in loader for s in samples_of(b))
    assert found == Counter(
        tuple(Preprocessor(chat, processor).encode(r, images(r), with_answer=True).ids_T)
        for r in records
    )


def test_hosts_lay_out_the_shards_of_one_batch_and_share_its_state(world):
    """Whatever shards a host has, its arrays are those parts of what a single host lays out."""
    budget = replace(BUDGET, n_shards=4, rows_per_shard=1, bins_per_shard=2)
    with make(world, budget=budget) as loader:
        whole = [next(loader) for _ in range(3)]
        state = loader.get_state()
    for shards in ([0, 1], [1, 3], [2]):
        with make(world, budget=budget, shards=shards) as loader:
            part = [next(loader) for _ in range(3)]
            assert loader.get_state() == state
        for batch, own in zip(whole, part, strict=True):
            for full, array in zip(arrays(batch), arrays(own), strict=True):
                split = np.split(full, 4)
                assert np.array_equal(array, np.concatenate([split[k] for k in shards]))


def test_a_build_gives_the_batches_of_its_records(world, tmp_path):
    _, paths, chat, processor, hf = world
    build(
        open_source(paths.sft, paths.images, kind="sft"), tmp_path / "b", hf, BuildSettings("sft")
    )
    built = BuiltRecords(tmp_path / "b")
    with make(world) as plain, make(world, records=built, images=built.images) as from_build:
        assert all(equal(next(plain), next(from_build)) for _ in range(3))
    small = replace(processor, max_pixels=56 * 56)
    loader = row_loader(Samples(built, built.images, Preprocessor(chat, small)), BUDGET)
    with loader, pytest.raises(UserError, match="build again"):
        next(loader)


def test_images_stay_in_the_shard_of_their_row(world):
    budget = replace(BUDGET, n_shards=2, rows_per_shard=1, bins_per_shard=2)
    with make(world, budget=budget) as loader:
        batch = next(loader)
    bins, rows = batch.vision.seg_id_SQ.shape[0], batch.vision.patches_SR64C.shape[1]
    per_shard = bins // 2 * rows * 16
    assert batch.unit_src_BT.shape == (2, 256)
    assert batch.unit_src_BT.max() < per_shard
    for shard in range(2):
        used = batch.unit_src_BT[shard][batch.unit_src_BT[shard] >= 0]
        assert len(set(used.tolist())) == len(used)
        filled = batch.vision.seg_id_SQ[shard * bins // 2 : (shard + 1) * bins // 2] > 0
        assert filled.sum() == 4 * len(used)


def test_budget_fits_and_what_can_never_fit_is_named(world):
    records, paths, chat, processor, _ = world
    images = RecordFile(paths.sft, paths.images).images
    samples = Samples(records, images, Preprocessor(chat, processor))
    budget = row_budget(samples, PackBudget(384, 2))
    with make(world, budget=budget) as loader:
        batch = next(loader)
    assert batch.ids_BT.shape == (2, 384) and (batch.segment_ids_BT == 0).mean() < 0.15
    with pytest.raises(UserError, match="over tokens_per_row 64"):
        row_budget(samples, PackBudget(64, 2))
    loader = make(world, budget=replace(BUDGET, tokens_per_row=64), order=Order(shuffle=False))
    with loader, pytest.raises(UserError, match=r"record '.*': \d+ tokens are over tokens_per_row"):
        list(zip(range(9), loader, strict=False))


@pytest.mark.parametrize("kind", ["file", "build"])
def test_a_large_image_behind_the_sample_is_known_to_the_budget(world, tmp_path, kind):
    _, paths, chat, processor, hf = world
    opener = RecordFile(paths.sft, paths.images).images
    raw = [json.loads(line) for line in paths.sft.read_text().splitlines()]
    big = paths.images / "coco/big.png"
    Image.new("RGB", (112, 112), "red").save(big)
    both = {**raw[0], "id": "four", "image": ["coco/big.png"] * 4, "question": "?", "answer": "!"}
    raw += [{**raw[0], "id": "big", "image": "coco/big.png"}, both]
    (tmp_path / "r.json").write_text(json.dumps(raw))
    records, images = load_records(tmp_path / "r.json", kind="sft"), opener
    if kind == "build":
        build(
            open_source(tmp_path / "r.json", paths.images, kind="sft"),
            tmp_path / "b",
            hf,
            BuildSettings("sft"),
        )
        records = BuiltRecords(tmp_path / "b")
        images = records.images
    order = Order(shuffle=False, epochs=1)
    samples = Samples(records, images, Preprocessor(chat, processor))
    budget = row_budget(samples, PackBudget(384, 2), order=order, sample=16)
    with row_loader(samples, budget, order=order) as loader:
        assert consumed(list(loader)) == len(raw)
    many = {**raw[0], "id": "long", "question": "very " * 400}
    (tmp_path / "r.json").write_text(json.dumps([*raw, many]))
    with pytest.raises(UserError, match=r"record 'long': .* over tokens_per_row 384"):
        records = load_records(tmp_path / "r.json", kind="sft")
        samples = Samples(records, opener, Preprocessor(chat, processor))
        row_budget(samples, PackBudget(384, 2), order=order, sample=16)


def test_close_leaves_no_thread(world):
    before = threading.active_count()
    for _ in range(3):
        with make(world, threads=3) as loader:
            assert next(loader).ids_BT.shape == (2, 256)
    assert threading.active_count() <= before
