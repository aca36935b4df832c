"""The TFDS builder: round trip, rejects, and no TensorFlow."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import tensorflow_datasets as tfds

from converters.tiny_tokenizer import tiny_config, write_sidecars
from vlaa_jax.data.builds.tfds_builder import VlaaThinking
from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.loaders.loader import Order, prompt_loader
from vlaa_jax.data.sources.record_file import RecordFile, load_records
from vlaa_jax.data.sources.table import open_source
from vlaa_jax.data.sources.tfds_set import TfdsRecords
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.rewards.mixed import MixedReward
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
        folder = tmp_path / "vlaa_thinking" / config / ("" if split == "train" else split)
        found, originals = open_source(folder), load_records(file, kind=config)
        assert type(found) is TfdsRecords and found.kind == config
        assert len(found) == len(originals)
        for record, original in zip(found, originals, strict=True):
            files = [(paths.images / path).read_bytes() for path in original.images]
            assert list(found.encoded_images(record)) == files
            assert record == replace(original, caption=original.caption or None)
    with pytest.raises(UserError, match="has no split 'nosuch'; there are"):
        open_source(builder.data_path / "nosuch")
    with pytest.raises(UserError, match=f"is a TFDS data set of kind '{config}'"):
        open_source(builder.data_path, kind="sft" if config == "grpo" else "grpo")


def test_grain_reads_it(paths, tmp_path):
    records = TfdsRecords(prepare("grpo", paths.root, tmp_path).data_path)
    options = {"batch_size": 4, "order": Order(seed=1)}
    loader = prompt_loader(records, records.images, **options)
    plain = prompt_loader(
        load_records(paths.grpo), RecordFile(paths.grpo, paths.images).images, **options
    )
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


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory):
    out = tmp_path_factory.mktemp("hf")
    (out / "config.json").write_text(json.dumps(tiny_config(write_sidecars(out))))
    return out


def test_a_registered_builder_judges_golds_and_lengths(paths, hf_dir, tmp_path):
    """As a user calls it: by name, through the registry of TFDS."""
    manual = tmp_path / "manual"
    manual.mkdir()
    (manual / "images").symlink_to(paths.images)
    raw = json.loads(paths.grpo.read_text())
    bad = [
        {**raw[0], "id": "formula", "verifier_type": "math", "gt": r"\frac{1}{"},
        {**raw[0], "id": "many", "verifier_type": "digit", "gt": "many"},
        {**raw[0], "id": "long", "question": "very " * 500},
        {**raw[0], "id": "token", "question": "<|im_end|>"},
        {**raw[0], "id": "gone", "image": "a/none.png"},
        {
            **{**raw[0], "id": "outside", "verifier_type": "iou", "gt": "[500, 500, 600, 600]"},
            "box_space": "resized_pixels",
        },
    ]
    (manual / "train-grpo.json").write_text(json.dumps([*bad, *raw]))
    requests = []

    with MixedReward() as reward:

        def gold_problems(asked):
            requests.extend(asked)
            return reward.gold_problems(asked)

        options = {
            "data_dir": tmp_path / "data",
            "gold_problems": gold_problems,
            "checkpoint": hf_dir,
            "max_tokens": 256,
            "box_space": {"vg": "normalized_square"},
        }
        builder = tfds.builder("vlaa_thinking/grpo", **options)
        download = tfds.download.DownloadConfig(manual_dir=manual)
        builder.download_and_prepare(download_config=download)
    assert type(builder) is VlaaThinking and builder.info.splits["train"].num_examples == 20
    listing = (builder.data_path / "rejects-train.jsonl").read_text()
    found = [json.loads(line) for line in listing.splitlines()]
    assert [(r["index"], r["id"], r["field"]) for r in found] == [
        (0, "formula", "gt"),
        (1, "many", "gt"),
        (2, "long", "question"),
        (3, "token", "question"),
        (4, "gone", "image"),
        (5, "outside", "gt"),
    ]
    assert [json.loads(reject.as_line()) for reject in builder.rejects] == found
    sizes = {request.id: request.image_size for request in requests}
    assert sizes["gone"] is None and all(v for k, v in sizes.items() if k != "gone")
    resize = ImageProcessor.from_dir(hf_dir).resized
    assert all(r.resized_size == (s and resize(*s)) for r in requests for s in [r.image_size])
    other_dir = tmp_path / "hf"
    shutil.copytree(hf_dir, other_dir)
    processor = json.loads((other_dir / "preprocessor_config.json").read_text())
    (other_dir / "preprocessor_config.json").write_text(json.dumps({**processor, "x": 1}))
    limit = {"max_tokens": 256}
    for other, words in (
        ({"box_space": "normalized"}, "prepared with box_space={'vg': 'normalized_square'}"),
        ({"checkpoint": hf_dir, "max_tokens": 128}, "prepared with max_tokens=256, not 128"),
        ({"checkpoint": hf_dir, **limit, "system_prompt": "x"}, "without a system prompt"),
        ({"checkpoint": other_dir, **limit}, "prepared with another checkpoint"),
    ):
        with pytest.raises(UserError, match=words):
            tfds.builder("vlaa_thinking/grpo", data_dir=tmp_path / "data", **other)
    tfds.builder("vlaa_thinking/grpo", **{**options, "box_space": {"VG": "normalized_square"}})
    again = tfds.builder("vlaa_thinking/grpo", data_dir=tmp_path / "data")
    assert len(TfdsRecords(again.data_path)) == 20


def test_a_set_that_was_prepared_bare_is_not_served_as_a_judged_one(paths, hf_dir, tmp_path):
    prepare("grpo", paths.root, tmp_path / "data")

    def reopen(**asked):
        return tfds.builder("vlaa_thinking/grpo", data_dir=tmp_path / "data", **asked)

    assert reopen().info.splits["train"].num_examples == 20
    assert reopen(box_space="normalized").info.splits["train"].num_examples == 20
    for asked, words in (
        ({"checkpoint": hf_dir}, "prepared without measuring its records"),
        ({"gold_problems": lambda requests: []}, "prepared without a check of its golds"),
        ({"box_space": {"vg": "normalized_square"}}, "prepared with box_space='normalized', not"),
    ):
        with pytest.raises(UserError, match=words):
            reopen(**asked)
    settings = reopen().data_path / "prepared.json"
    settings.write_text("[" * 1000)
    with pytest.raises(UserError, match=r"prepared\.json cannot be read"):
        reopen(checkpoint=hf_dir)
    settings.unlink()
    with pytest.raises(UserError, match="without measuring its records"):
        reopen(checkpoint=hf_dir)


def test_meta_that_json_cannot_hold_is_left_out(paths, tmp_path):
    manual = tmp_path / "manual"
    manual.mkdir()
    (manual / "images").symlink_to(paths.images)
    raw = json.loads(paths.grpo.read_text())[:2]
    bad = [
        {**raw[0], "id": str(i), "meta": m} for i, m in enumerate([{"x": "\ud800"}, "{'a': b'x'}"])
    ]
    (manual / "train-grpo.json").write_text(json.dumps([*raw, *bad]))
    builder = prepare("grpo", manual, tmp_path / "data")
    assert builder.info.splits["train"].num_examples == 2
    assert [r.field for r in builder.rejects] == ["meta", "meta"]


def test_tensorflow_is_never_imported(paths, tmp_path):
    script = f"""
import sys
import tensorflow_datasets as tfds
from converters.tiny_tokenizer import tiny_config, write_sidecars
from vlaa_jax.data.builds.tfds_builder import VlaaThinking
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
