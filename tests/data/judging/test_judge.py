"""One judge: check, build, the TFDS builder and training say the same of the same records."""

import json
from dataclasses import replace

import jax
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from configs import grpo, sft
from vlaa_jax.data.builds.build import BuildSettings, build, iter_rejects
from vlaa_jax.data.builds.tfds_builder import VlaaThinking
from vlaa_jax.data.commands.cli import run
from vlaa_jax.data.judging.check import check
from vlaa_jax.data.sources.table import open_source
from vlaa_jax.parallel.mesh import make_mesh
from vlaa_jax.policy.checked import RowCheck, load_checked
from vlaa_jax.policy.pretrained import open_pretrained
from vlaa_jax.policy.prompts import Encoder
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.schema import UserError
from vlaa_jax.settle import settle

PHOTOS = [(1600, 1200), (3000, 2000), (640, 480), (480, 1100), (4000, 60), (31, 33)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photos of a laptop's kind, and a record of each kind of mistake."""
    root = tmp_path_factory.mktemp("photos")
    (root / "images/mine").mkdir(parents=True)
    for number, size in enumerate(PHOTOS):
        Image.effect_noise(size, 40).convert("RGB").save(root / f"images/mine/{number}.jpg")
    base = {"question": "How many dogs are there?", "gt": 2, "verifier_type": "digit"}
    good = [{**base, "id": f"g{i}", "image": f"mine/{i}.jpg"} for i in range(len(PHOTOS))]
    one = good[0]
    bad = [
        {**one, "id": "gold", "gt": "many"},
        {**one, "id": "gone", "image": "mine/none.jpg"},
        {**one, "id": "both", "image": "mine/none.jpg", "gt": "many"},
        {**one, "id": "long", "question": "very " * 900},
        {**one, "id": "token", "question": "see <|im_end|>"},
        {**one, "id": "g0"},
        {**one, "id": "empty", "question": ""},
        {**one, "id": "url", "image": "https://x.org/a.jpg"},
    ]
    (root / "VLAA-Thinking-GRPO-25K.json").write_text(json.dumps([*good, *bad]))
    (root / "good.json").write_text(json.dumps(good))
    return root


EXPECTED = [
    ("gold", "gt"),
    ("gone", "image"),
    ("both", "image"),
    ("long", "question"),
    ("token", "question"),
    ("g0", "id"),
    ("empty", "question"),
    ("url", "image"),
]


@pytest.fixture(scope="module")
def reward():
    with MixedReward() as reward:
        yield reward


@pytest.fixture(scope="module")
def encoder():
    settings = settle(grpo.get_config("small").to_dict())
    mesh = make_mesh(devices=jax.devices()[:1])
    data = replace(settings.data, bad_records="skip")
    return Encoder(open_pretrained(settings.model, data, mesh), data)


def test_everybody_says_the_same(place, encoder, reward, tmp_path):
    file, images = place / "VLAA-Thinking-GRPO-25K.json", place / "images"
    golds, limit = reward.gold_problems, encoder.data.max_prompt_tokens
    hf_dir = encoder.reading.sidecars
    _, trained = load_checked(file, images, encoder, gold_problems=golds)
    assert [(r.id, r.field) for r in trained] == EXPECTED

    listed = []
    check(open_source(file, images, kind="grpo"), encoder.judge(golds), on_reject=listed.append)
    first = {reject.index: reject for reject in reversed(listed)}
    assert sorted(first.values(), key=lambda r: r.index) == trained
    assert [r.field for r in listed if r.id == "both"] == ["image", "gt"]  # check tells all

    settings = BuildSettings(
        "grpo", limit, max_pixels=encoder.data.max_pixels, system_prompt=encoder.data.system_prompt
    )
    source = open_source(file, images, kind="grpo")
    build(source, tmp_path / "b", hf_dir, settings, gold_problems=golds)
    built = [replace(r, reason="") for r in iter_rejects(tmp_path / "b")]
    assert built == [replace(r, reason="") for r in trained]  # they name the limit otherwise

    options = {"gold_problems": golds, "checkpoint": hf_dir, "max_tokens": limit}
    builder = VlaaThinking(config="grpo", data_dir=tmp_path / "t", **options)
    download = tfds.download.DownloadConfig(manual_dir=place)
    builder.download_and_prepare(download_config=download)
    assert [(r.id, r.field) for r in builder.rejects] == EXPECTED


def test_all_bad_records_are_told_at_once_with_counts(place, encoder):
    strict = Encoder(encoder.reading, replace(encoder.data, bad_records="stop"))
    with pytest.raises(UserError) as refused:
        load_checked(place / "VLAA-Thinking-GRPO-25K.json", place / "images", strict)
    said = str(refused.value)
    assert "record 6 (id 'gold'): field 'gt'" in said and "\n" not in said
    assert "8 records cannot be used (by field: " in said and "image 3" in said


@pytest.mark.parametrize("config", [grpo, sft])
def test_the_small_variant_takes_photos_of_any_size(place, encoder, config):
    settings = settle(config.get_config("small").to_dict())
    path = place / "good.json"
    if config is sft:
        raw = [{**r, "answer": "<answer> 2 </answer>"} for r in json.loads(path.read_text())]
        path = place / "sft.json"
        path.write_text(json.dumps(raw))
    task = Encoder if config is grpo else RowCheck
    usable, rejects = load_checked(path, place / "images", task(encoder.reading, settings.data))
    assert len(usable) == len(PHOTOS) and not rejects
    assert all(record.lengths.image_sizes == (PHOTOS[record.place],) for record in usable)


def test_check_prints_budgets_that_hold_all_of_it(place, encoder, capsys):
    argv = ["check", str(place / "good.json"), f"--images={place / 'images'}", "--quiet"]
    argv += ["--checkpoint=embedded", "--max-pixels=100000"]
    assert run(argv) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "fits into" in x]
    flags = dict(word.removeprefix("--config.data.").split("=") for word in line.split()[-3:])
    budgets = {name: int(value) for name, value in flags.items()}
    assert set(budgets) == {"max_pixels", "vision_rows_per_bin", "max_prompt_tokens"}
    tight = replace(encoder.data, bad_records="stop", system_prompt="", **budgets)
    mesh = make_mesh(devices=jax.devices()[:1])
    settings = settle(grpo.get_config("small").to_dict())
    fitted = Encoder(open_pretrained(settings.model, tight, mesh), tight)
    assert len(load_checked(place / "good.json", place / "images", fitted)[0]) == len(PHOTOS)
    rows = budgets["vision_rows_per_bin"] - 2
    assert run([*argv, f"--vision-rows={rows}"]) == 1
    assert f"over data.vision_rows_per_bin={rows}" in capsys.readouterr().out
