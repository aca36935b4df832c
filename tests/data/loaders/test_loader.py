"""Order, host slices, resume and clean-up of the loaders."""

import threading
from collections import Counter
from dataclasses import replace

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from vlaa_jax.data.loaders.loader import Order, ordered, prompt_loader, records_digest
from vlaa_jax.data.sources.record_file import RecordFile, load_records
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.schema import Record, UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    paths = write_dataset(tmp_path_factory.mktemp("data"), n_train=25, n_heldout=5, n_sft=20)
    return load_records(paths.grpo, kind="grpo"), RecordFile(paths.grpo, paths.images).images


def names(batch):
    return [record.id for record, _ in batch]


def fake(count, sources=("a",)):
    return [
        Record(
            f"r{i}", "q", (f"{sources[i % len(sources)]}/x.png",), source=sources[i % len(sources)]
        )
        for i in range(count)
    ]


def test_batches_hold_records_and_decoded_images(data):
    records, opener = data
    with prompt_loader(records, opener, batch_size=4, order=Order(shuffle=False)) as loader:
        batch = next(loader)
    assert names(batch) == [r.id for r in records[:4]]
    assert all(image.mode == "RGB" for _, images in batch for image in images)


def test_every_epoch_is_whole_and_has_its_own_order(data):
    records, opener = data
    with prompt_loader(records, opener, batch_size=5, order=Order(seed=3)) as loader:
        epochs = [[n for _ in range(5) for n in names(next(loader))] for _ in range(2)]
    assert all(Counter(e) == Counter(r.id for r in records) for e in epochs)
    assert epochs[0] != epochs[1] != [r.id for r in records]
    with prompt_loader(records, opener, batch_size=5, order=Order(seed=4)) as loader:
        assert names(next(loader)) != epochs[0][:5]


@pytest.mark.parametrize("batches_before", [1, 4, 5, 7])
def test_restored_state_gives_the_same_next_batches(data, batches_before):
    records, opener = data
    order = Order(seed=1)
    with prompt_loader(records, opener, batch_size=5, order=order) as loader:
        for _ in range(batches_before):
            next(loader)
        state = loader.get_state()
        expected = [next(loader) for _ in range(6)]
    with prompt_loader(records, opener, batch_size=5, order=order, threads=0) as other:
        other.set_state(state)
        found = [next(other) for _ in range(6)]
        other.set_state(state)
        again = names(next(other))
    assert [names(b) for b in found] == [names(b) for b in expected]
    assert again == names(expected[0])
    for a, b in zip(expected, found, strict=True):
        for (_, images), (_, others) in zip(a, b, strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(images, others, strict=True))


def test_orbax_saves_and_restores_the_position(data, tmp_path):
    records, opener = data
    with prompt_loader(records, opener, batch_size=4) as loader:
        next(loader)
        with ocp.CheckpointManager(tmp_path / "ckpt") as manager:
            manager.save(
                0, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(loader.iterator))
            )
            manager.wait_until_finished()
            expected = names(next(loader))
            with prompt_loader(records, opener, batch_size=4) as other:
                manager.restore(
                    0,
                    args=ocp.args.Composite(
                        data=grain.checkpoint.CheckpointRestore(other.iterator)
                    ),
                )
                assert names(next(other)) == expected


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_share_one_stream(hosts):
    records = fake(64)
    whole = [r.id for r, _ in zip(iter(ordered(records, Order(seed=5))), range(128), strict=False)]
    parts = []
    for host in range(hosts):
        order = Order(seed=5, places=(host,), batch=hosts)
        stream = ordered(records, order)
        parts.append([stream[i].id for i in range(128 // hosts)])
    assert [parts[i % hosts][i // hosts] for i in range(128)] == whole
    assert Counter(whole[:64]) == Counter(r.id for r in records)


@pytest.mark.parametrize("places", [(0, 1), (1, 3), (2,)])
def test_a_host_gets_its_places_of_every_batch(data, places):
    records, opener = data
    whole = [r.id for r, _ in zip(iter(ordered(records, Order(seed=5))), range(40), strict=False)]
    order = Order(seed=5, places=places, batch=4)
    wanted = [[whole[start + place] for place in places] for start in range(0, 40, 4)]
    with prompt_loader(records, opener, batch_size=len(places), order=order) as loader:
        assert [names(next(loader)) for _ in range(10)] == wanted
    with pytest.raises(ValueError, match="not all in a batch"):
        Order(places=(0, 4), batch=4)


def test_output_does_not_depend_on_threads(data):
    records, opener = data
    runs = []
    for threads in (0, 1, 4):
        with prompt_loader(records, opener, batch_size=5, threads=threads) as loader:
            runs.append([names(next(loader)) for _ in range(8)])
    assert runs[0] == runs[1] == runs[2]


def test_sources_mix_by_weight():
    records = fake(90, ("a", "b", "c"))
    stream = ordered(records, Order(source_weights={"a": 3, "b": 1, "c": 0}))
    drawn = Counter(stream[i].source for i in range(400))
    assert drawn == {"a": 300, "b": 100}
    first = [stream[i].id for i in range(40) if stream[i].source == "a"]
    assert len(set(first)) == 30
    with pytest.raises(UserError, match="no records of d; sources present: a, b, c"):
        ordered(records, Order(source_weights={"d": 1}))
    with pytest.raises(ValueError, match="epochs"):
        Order(source_weights={"a": 1}, epochs=2)


def test_a_weight_is_for_all_spellings_of_a_source():
    records = fake(90, ("VG", "vg", "coco"))
    stream = ordered(records, Order(source_weights={"Vg": 3, "coco": 1}))
    drawn = [stream[i] for i in range(240)]  # three epochs of one, two of the other
    assert Counter(r.source for r in drawn) == {"VG": 90, "vg": 90, "coco": 60}
    assert {r.id for r in drawn} == {r.id for r in records}
    with pytest.raises(UserError, match="no records of gqa; sources present: VG, coco, vg"):
        ordered(records, Order(source_weights={"gqa": 1}))
    with pytest.raises(ValueError, match="'vg' twice"):
        Order(source_weights={"VG": 1, "vg": 2})


@pytest.mark.parametrize(
    "change", [{"id": "x"}, {"gt": "x"}, {"question": "x"}, {"images": ("x",)}, {"source": "x"}]
)
def test_the_digest_tells_other_records_and_another_order(change):
    records = fake(6, ("a", "b"))
    digest = records_digest(records)
    assert len(digest) == 64 and digest == records_digest(fake(6, ("a", "b")))
    assert digest == records_digest([replace(r, meta={"x": 1}, lengths=(1, ())) for r in records])
    others = [*records[:3], replace(records[3], **change), *records[4:]]
    for different in (others, records[:5], records[::-1]):
        assert records_digest(different) != digest


def test_finite_epochs_end_and_keep_the_rest(data):
    records, opener = data
    order = Order(epochs=1)
    with prompt_loader(records, opener, batch_size=10, order=order) as loader:
        assert [len(b) for b in loader] == [10, 10, 5]


def test_a_missing_image_stops_with_one_line(data):
    records, opener = data
    bad = [*records[:3], Record("gone", "q", ("clevr_math/none.png",), source="clevr_math")]
    loader = prompt_loader(bad, opener, batch_size=4, order=Order(shuffle=False))
    with loader, pytest.raises(UserError, match=r"record 'gone'.*none\.png"):
        next(loader)
    with pytest.raises(UserError, match="no records"):
        prompt_loader([], opener, batch_size=1)


def test_close_leaves_no_thread(data):
    records, opener = data
    before = threading.active_count()
    for _ in range(5):
        loader = prompt_loader(records, opener, batch_size=4, threads=3)
        next(loader)
        loader.close()
    assert threading.active_count() <= before
