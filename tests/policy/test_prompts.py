"""Records into training: what is refused before the first step; a build gives the same prompts."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

from vlaa_jax.data.builds.build import BuildSettings, build
from vlaa_jax.data.loaders.loader import Loader
from vlaa_jax.data.sources.table import open_source
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.parallel.mesh import make_mesh
from vlaa_jax.policy.checked import load_checked
from vlaa_jax.policy.pretrained import open_pretrained
from vlaa_jax.policy.prompts import Encoder
from vlaa_jax.policy.spread import Reader
from vlaa_jax.policy.usable import heldout_prompts, training_loader
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.schema import UserError
from vlaa_jax.settings.shared import ModelSettings, PromptSettings

DATA = PromptSettings(bad_records="skip", max_prompt_tokens=200)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), n_train=40, n_heldout=10, n_sft=5)


@pytest.fixture(scope="module")
def checkpoint():
    mesh = make_mesh(devices=jax.devices()[:1])
    return open_pretrained(ModelSettings(checkpoint="embedded"), DATA, mesh)


@pytest.fixture(scope="module")
def encoder(checkpoint):
    return Encoder(checkpoint, DATA)


@pytest.fixture(scope="module")
def built(paths, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("build")
    build(
        open_source(paths.grpo, paths.images, kind="grpo"),
        out,
        checkpoint.sidecars,
        BuildSettings("grpo"),
    )
    return out


def write(path, records):
    path.write_text(json.dumps(records))
    return path


def test_rejects_name_their_place_in_the_file(paths, encoder, tmp_path):
    raw = json.loads(paths.grpo.read_text())[:4]
    bad = [
        {**raw[0], "id": "refused", "question": ""},
        {**raw[0], "id": "gold", "verifier_type": "digit", "gt": "many"},
        {**raw[0], "id": "formula", "verifier_type": "math", "gt": r"\frac{1}{"},
        {**raw[0], "id": "image", "image": "a/none.png"},
        {**raw[0], "id": "long", "question": "very " * 300},
        {**raw[0], "id": "token", "question": "<|im_end|>"},
    ]
    mixed = [raw[0], *bad[:3], raw[1], *bad[3:], raw[2]]
    for form, line in (("array", None), ("lines", 1)):
        path = write(tmp_path / "r.json", mixed)
        if form == "lines":
            path.write_text("".join(json.dumps(record) + "\n" for record in mixed))
        usable, rejects = load_checked(path, paths.images, encoder)
        assert [r.id for r in usable] == [r["id"] for r in raw[:3]]
        found = [(r.index, r.line, r.id, r.field) for r in rejects]
        assert found == [
            (index, line and index + line, name, field)
            for index, name, field in [
                (1, "refused", "question"),
                (2, "gold", "gt"),
                (3, "formula", "gt"),
                (5, "image", "image"),
                (6, "long", "question"),
                (7, "token", "question"),
            ]
        ]
        assert all(r.file == str(path) for r in rejects)
    stop = Encoder(encoder.reading, replace(DATA, bad_records="stop"))
    with pytest.raises(UserError) as refused:
        load_checked(write(path, [raw[0], bad[1]]), paths.images, stop)
    assert str(refused.value).count(str(path)) == 1
    assert f"{path}: record 1 (id 'gold'): field 'gt'" in str(refused.value)
    with pytest.raises(UserError, match=r"no usable record is left; the first problem: .*'gold'"):
        load_checked(write(path, [bad[1]]), paths.images, encoder)


def test_prompts_leave_room_for_the_answer(paths, checkpoint, tmp_path):
    most = checkpoint.config.text.max_positions
    raw = json.loads(paths.grpo.read_text())[:2]
    raw[1]["question"] = "very " * 150
    path = write(tmp_path / "r.json", raw)
    data = replace(DATA, max_prompt_tokens=most)
    for answer, kept in ((most - 700, 2), (most - 600, 1)):
        usable, rejects = load_checked(path, paths.images, Encoder(checkpoint, data, answer))
        assert len(usable) == kept, [str(r) for r in rejects]
    said = f"over the limit of 600 (the model's max_position_embeddings={most} less {most - 600}"
    assert said in str(rejects[0])
    with pytest.raises(UserError, match=f"{most} new tokens leave no room for a prompt"):
        Encoder(checkpoint, data, most)


def test_an_image_larger_than_a_vision_bin_is_refused_before_the_first_step(paths, checkpoint):
    small = Encoder(checkpoint, replace(DATA, vision_rows_per_bin=1, max_prompt_tokens=500))
    usable, rejects = load_checked(paths.grpo, paths.images, small)
    assert usable
    assert rejects
    assert {r.field for r in rejects} == {"image"}
    assert all("over data.vision_rows_per_bin=1; raise it" in str(r) for r in rejects)


def test_boxes_in_resized_pixels_are_held_against_the_resized_image(paths, encoder, tmp_path):
    """400x300 pixels are read at 196x140 here, and at 392x308 under a higher limit."""
    images = tmp_path / "images"
    (images / "vg").mkdir(parents=True)
    Image.new("RGB", (400, 300)).save(images / "vg/a.png")
    common = {"verifier_type": "iou", "question": "Where?", "image": "vg/a.png"}
    boxes = {"out": [500, 500, 600, 600], "large": [250, 200, 300, 250], "in": [20, 20, 90, 90]}
    raw = [
        {**common, "id": name, "gt": str(box), "box_space": "resized_pixels"}
        for name, box in boxes.items()
    ]
    path = write(tmp_path / "r.json", raw)
    usable, rejects = load_checked(path, images, encoder)
    assert [r.id for r in usable] == ["in"]
    assert [(r.id, r.field) for r in rejects] == [("out", "gt"), ("large", "gt")]
    assert all("lies outside the image (resized_pixels)" in r.reason for r in rejects)

    settings = BuildSettings("grpo", max_pixels=400 * 400)
    with MixedReward() as reward:
        checks = {"gold_problems": reward.gold_problems}
        manifest = build(
            open_source(path, images, kind=settings.kind),
            tmp_path / "b",
            encoder.reading.sidecars,
            settings,
            **checks,
        )
        assert (manifest["kept"], manifest["rejected"], manifest["golds_checked"]) == (2, 1, True)
        for given in (checks, {}):
            usable, rejects = load_checked(tmp_path / "b", images, encoder, **given)
            assert [r.id for r in usable] == ["in"]
            assert [(r.id, r.field) for r in rejects] == [("large", "gt")]


def test_only_headers_are_read(paths, encoder, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(paths.images, images)
    raw = json.loads(paths.grpo.read_text())[:2]
    file = images / raw[0]["image"].lstrip("/")
    file.write_bytes(file.read_bytes()[:-60])
    path = write(tmp_path / "r.json", raw)
    usable, rejects = load_checked(path, images, encoder)
    assert len(usable) == 2 and not rejects
    with pytest.raises(UserError, match=f"record '{raw[0]['id']}': image .* is damaged"):
        heldout_prompts(usable, encoder)


def draw(path, paths, encoder, batches=5):
    usable, rejects = load_checked(path, paths.images, encoder)
    assert not rejects
    loader: Loader = training_loader(usable, encoder, batch=8, seed=3)
    with loader:
        return [next(loader) for _ in range(batches)]


def same(a, b):
    return (
        (a.record.id, a.record.gt, a.record.box_space)
        == (b.record.id, b.record.gt, b.record.box_space)
        and np.array_equal(a.encoded.ids_T, b.encoded.ids_T)
        and all(map(np.array_equal, a.encoded.patches, b.encoded.patches))
        and a.image_size == b.image_size
    )


def test_a_build_gives_the_prompts_of_its_file(paths, built, encoder):
    from_file, from_build = draw(paths.grpo, paths, encoder), draw(built, paths, encoder)
    for a, b in zip(from_file, from_build, strict=True):
        assert all(map(same, a, b)) and len(a) == len(b) == 8
    assert len({p.record.id for batch in from_file for p in batch}) == 40  # a whole epoch


def test_a_tfds_data_set_gives_the_prompts_of_its_file(paths, encoder, tmp_path):
    import tensorflow_datasets as tfds

    from vlaa_jax.data.builds.tfds_builder import VlaaThinking

    builder = VlaaThinking(config="grpo", data_dir=tmp_path)
    download = tfds.download.DownloadConfig(manual_dir=paths.root)
    builder.download_and_prepare(download_config=download)
    folder, nowhere = tmp_path / "vlaa_thinking/grpo", tmp_path / "nowhere"
    from_file, from_set = draw(paths.grpo, paths, encoder), draw(folder, paths, encoder)
    for a, b in zip(from_file, from_set, strict=True):
        assert all(map(same, a, b)) and len(a) == len(b) == 8
    held, rejects = load_checked(folder / "heldout", nowhere, encoder)
    assert len(heldout_prompts(held, encoder)) == 10 and not rejects


def test_a_build_needs_no_image_folder(built, encoder, tmp_path):
    usable, _ = load_checked(built, tmp_path / "nowhere", encoder)
    assert len(heldout_prompts(usable, encoder)) == 40


def test_builds_that_do_not_fit_the_run_are_refused(paths, built, encoder, checkpoint, tmp_path):
    build(
        open_source(paths.sft, paths.images, kind="sft"),
        tmp_path / "b",
        checkpoint.sidecars,
        BuildSettings("sft"),
    )
    with pytest.raises(UserError, match="is a build of kind 'sft'"):
        load_checked(tmp_path / "b", paths.images, encoder)
    with pytest.raises(UserError, match="holds no finished build"):
        load_checked(paths.images, paths.images, encoder)
    spaces = Encoder(checkpoint, replace(DATA, box_space="vg=normalized_square"))
    with pytest.raises(UserError, match=r"data\.box_space: .* was built with 'normalized'"):
        load_checked(built, paths.images, spaces)


def test_box_spaces_and_weights_come_from_the_settings(paths, checkpoint, tmp_path):
    raw = json.loads(paths.grpo.read_text())
    for record in raw:
        record.pop("box_space", None)
        record["meta"] = {}
    data = replace(DATA, box_space="VG=normalized_square", source_weights="vg=3,COCO=1")
    path = write(tmp_path / "r.json", raw)
    drawn = [p.record for batch in draw(path, paths, Encoder(checkpoint, data), 8) for p in batch]
    counts = {source: sum(r.source == source for r in drawn) for source in ("vg", "coco")}
    assert counts == {"vg": 48, "coco": 16}
    spaces = {(r.source, r.box_space) for r in drawn if r.verifier_type == "iou"}
    assert spaces == {("vg", "normalized_square"), ("coco", "normalized")}
    none = Encoder(checkpoint, replace(DATA, source_weights="gqa=1"))
    with pytest.raises(UserError, match="source_weights: no records of gqa; sources present: "):
        draw(path, paths, none)


def test_a_weight_draws_all_spellings_of_a_source(paths, checkpoint, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(paths.images / "vg", images / "vg")
    shutil.copytree(paths.images / "vg", images / "VG")
    raw = [r for r in json.loads(paths.grpo.read_text()) if r["image"].lstrip("/")[:3] == "vg/"]
    raw += [{**r, "id": f"{r['id']}-b", "image": r["image"].replace("vg/", "VG/")} for r in raw]
    path = write(tmp_path / "r.json", raw)
    encoder = Encoder(checkpoint, replace(DATA, source_weights="vg=1"))
    usable, _ = load_checked(path, images, encoder)
    with training_loader(usable, encoder, batch=len(raw), seed=0) as loader:
        drawn = [prompt.record for prompt in next(loader)]
    assert {r.source for r in drawn} == {"vg", "VG"}
    assert {r.id for r in drawn} == {r["id"] for r in raw}


def test_hosts_draw_the_parts_of_one_batch(paths, encoder, monkeypatch):
    """Two hosts that take turns in one process: whole where it is their shard, else in outline."""
    whole = draw(paths.grpo, paths, encoder, 3)
    usable, _ = load_checked(paths.grpo, paths.images, encoder)
    told = {}

    def load(host, gather):
        monkeypatch.setattr("vlaa_jax.parallel.hosts.count", lambda: 2)
        monkeypatch.setattr("vlaa_jax.parallel.hosts.index", lambda: host)
        monkeypatch.setattr("vlaa_jax.parallel.hosts.gather", gather)
        deal = HalfDeal(host)
        with training_loader(usable, encoder, batch=8, seed=3, deal=deal) as loader:
            batches = [next(loader) for _ in range(3)]
            assert loader.get_state() == {"next_index": 24}
            loader.set_state({"next_index": 8})
            assert all(a.record == b.record for a, b in zip(next(loader), batches[1], strict=True))
        return batches

    def listen(value, what=""):
        told.setdefault("heard", []).append(value)
        return [{str(p): [1, [], None] for p in range(4)}, value]

    load(1, listen)  # what host 1 would say
    heard = iter(told["heard"])
    mine = load(0, lambda value, what="": [value, next(heard)])
    for batch, spread in zip(whole, mine, strict=True):
        assert all(map(same, batch[:4], spread[:4]))
        for full, known in zip(batch[4:], spread[4:], strict=True):
            assert not known.whole and known.record == full.record
            assert known.encoded.length == full.encoded.length
            assert known.encoded.grids == full.encoded.grids
            assert known.image_size == full.image_size
        read = Reader(usable.images, encoder)(spread)
        assert all(map(same, batch, read))


class HalfDeal:
    """Host 0 has the first half of a batch, host 1 the second."""

    def __init__(self, host):
        self._host = host

    def owner_P(self, count):
        return np.arange(count) // (count // 2)

    def held(self, count):
        return np.flatnonzero(self.owner_P(count) == self._host).tolist()
