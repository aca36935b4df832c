"""The TFDS builder: round trip, rejects, and no TensorFlow."""

import json
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from vlaa_jax.data.loader import Order, prompt_loader
from vlaa_jax.data.records import load_records
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.data.tfds_builder import TfdsRecords, VlaaThinking
from vlaa_jax.schema import UserError


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), n_train=20, n_heldout=10, n_sft=10)


def prepare(config, manual_dir, data_dir):
    builder = VlaaThinking(config=config, data_dir=data_dir)
    download = tfds.download.DownloadConfig(manual_dir=manual_dir)
    builder.download_and_prepare(download_config=download)
    return builder


@pytest.mark.parametrize("config", ["grpo", "sft"])
def test_records_and_image_bytes_come_back(paths, tmp_path, config):
    builder = prepare(config, paths.root, tmp_path)
    splits = {"grpo": {"train": paths.grpo, "heldout": paths.heldout}, "sft": {"train": paths.sft}}
    assert set(builder.info.splits) == set(splits[config])
    for split, file in splits[config].items():
        source = tfds.data_source(f"vlaa_thinking/{config}", data_dir=tmp_path, split=split)
        found, originals = TfdsRecords(source), load_records(file, kind=config)
        assert len(found) == len(originals)
        for record, original in zip(found, originals, strict=True):
            meta = dict(record.meta)
            files = [(paths.images / path).read_bytes() for path in original.images]
            assert list(meta.pop("encoded")) == files
            assert meta == dict(original.meta)
            expected = {**vars(original), "meta": 0, "caption": original.caption or None}
            assert {**vars(record), "meta": 0} == expected


def test_grain_reads_it(paths, tmp_path):
    prepare("grpo", paths.root, tmp_path)
    source = tfds.data_source("vlaa_thinking/grpo", data_dir=tmp_path, split="train")
    records = TfdsRecords(source)
    options = {"batch_size": 4, "order": Order(seed=1)}
    loader = prompt_loader(records, records.images, **options)
    plain = prompt_loader(load_records(paths.grpo), paths.images, **options)
    with loader, plain:
        for _ in range(6):
            pairs = list(zip(next(loader), next(plain), strict=True))
            assert all(a[0].id == b[0].id for a, b in pairs)
            assert all(x == y for a, b in pairs for x, y in zip(a[1], b[1], strict=True))


def test_bad_records_are_left_out_and_listed(paths, tmp_path):
    manual = tmp_path / "manual"
    manual.mkdir()
    (manual / "images").symlink_to(paths.images)
    raw = json.loads(paths.grpo.read_text())
    bad = [{**raw[0], "id": "gone", "image": "a/none.png"}, {**raw[1], "gt": ""}, raw[2]]
    (manual / "train-grpo.json").write_text(json.dumps([*raw, *bad]))
    builder = prepare("grpo", manual, tmp_path / "data")
    assert builder.info.splits["train"].num_examples == 20
    assert [r.field for r in builder.rejects] == ["image", "gt", "id"]
    with pytest.raises(UserError, match="holds none of VLAA-Thinking-SFT-126K"):
        prepare("sft", manual, tmp_path / "data")
    with pytest.raises(UserError, match="no such image folder"):
        prepare("sft", tmp_path, tmp_path / "data")


def test_tensorflow_is_never_imported(paths, tmp_path):
    script = f"""
import sys
import tensorflow_datasets as tfds
from vlaa_jax.data.tfds_builder import VlaaThinking
builder = VlaaThinking(config="grpo", data_dir={str(tmp_path)!r})
builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir={str(paths.root)!r}))
assert "tensorflow" not in sys.modules
print(len(builder.as_data_source(split="train")))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == "20"
