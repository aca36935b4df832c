"""Builds: what comes out, that it can be interrupted anywhere, and that nothing is lost or cut."""

import io
import json
import re
import shutil

import pytest
from PIL import Image

from converters.tiny_tokenizer import tiny_config, write_sidecars
from vlaa_jax.data.builds.build import BuildSettings, build, iter_rejects
from vlaa_jax.data.samples.preprocessor import Preprocessor
from vlaa_jax.data.sources.built import BuiltRecords
from vlaa_jax.data.sources.record_file import load_records
from vlaa_jax.data.sources.table import open_source
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.schema import UserError


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory):
    out = tmp_path_factory.mktemp("hf")
    ids = write_sidecars(out, max_pixels=112 * 112)
    (out / "config.json").write_text(json.dumps(tiny_config(ids)))
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), n_train=40, n_heldout=5, n_sft=20)


def build_from(file, images, out, hf_dir, settings, **options):
    source = open_source(file, images, kind=settings.kind, box_space=settings.box_space)
    return build(source, out, hf_dir, settings, **options)


SMALL = {"shard_records": 12, "shard_images": 9}


@pytest.mark.parametrize("kind", ["grpo", "sft"])
def test_a_build_holds_the_records_the_image_bytes_and_true_lengths(data, hf_dir, tmp_path, kind):
    file = data.grpo if kind == "grpo" else data.sft
    manifest = build(
        open_source(file, data.images, kind=kind),
        tmp_path / "b",
        hf_dir,
        BuildSettings(kind, **SMALL),
    )
    originals = load_records(file, kind=kind)
    built = BuiltRecords(tmp_path / "b")
    built.verify()
    assert len(built) == len(originals) == manifest["kept"] and manifest["rejected"] == 0
    assert sum(s["count"] for s in manifest["image_shards"]) == len(originals)
    reader, image_tokens, patches = Preprocessor.from_dir(hf_dir), 0, 0
    for original, record in zip(originals, built, strict=True):
        assert record == original and record.place == original.place
        assert built.encoded_images(record) == tuple(
            (data.images / path).read_bytes() for path in original.images
        )
        images = built.images(record)
        encoded = reader.encode(record, images, with_answer=kind == "sft")
        assert record.lengths == (encoded.length, tuple(image.size for image in images))
        image_tokens += encoded.n_image_tokens
        patches += sum(len(p) for p in encoded.patches)
    counts = manifest["sources"].values()
    assert sum(c["tokens"] for c in counts) == sum(r.lengths.tokens for r in built)
    assert sum(c["image_tokens"] for c in counts) == image_tokens
    assert sum(c["patches"] for c in counts) == patches


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 1}, "is a build of format 1, this version reads format 2"),
        ({"format": 3}, "is a build of format 3, this version reads format 2"),
        ({"format": None}, "is a build of format None"),
        *(
            ({name: gone}, f"{name!r} is missing or malformed")
            for name in ("settings", "golds_checked", "record_shards", "image_shards", "kept")
            for gone in (None, "x")
        ),
        ({"settings": {"kind": "grpo"}}, "'box_space' is missing"),
        ({"record_shards": [{"name": "records-00000.array_record"}]}, "'bytes' is missing"),
        ({"image_shards": [1]}, "'image_shards' is missing or malformed"),
    ],
)
def test_a_manifest_of_another_format_or_with_gaps_gets_one_line(tmp_path, change, words):
    whole = {
        **{"format": 2, "settings": {"kind": "grpo", "box_space": "normalized"}, "kept": 0},
        **{"golds_checked": True, "record_shards": [], "image_shards": []},
    }
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(whole))
    assert len(BuiltRecords(tmp_path)) == 0
    changed = {k: v for k, v in {**whole, **change}.items() if v is not None}
    file.write_text(json.dumps(changed))
    with pytest.raises(UserError) as refused:
        BuiltRecords(tmp_path)
    message = str(refused.value)
    assert message.startswith(f"{tmp_path}") and words in message and "build again" in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["[]", "2", "null", '"x"'])
def test_a_manifest_that_is_no_mapping_gets_one_line(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="holds no finished build"):
        BuiltRecords(tmp_path)


def test_an_image_used_twice_is_stored_once(data, hf_dir, tmp_path):
    raw = json.loads(data.grpo.read_text())[:6]
    raw = [*raw, *({**r, "id": f"again-{i}"} for i, r in enumerate(raw))]
    raw.append({**raw[0], "id": "both", "image": [raw[0]["image"], raw[1]["image"]]})
    (tmp_path / "r.json").write_text(json.dumps(raw))
    build(
        open_source(tmp_path / "r.json", data.images, kind="grpo"),
        tmp_path / "b",
        hf_dir,
        BuildSettings("grpo"),
    )
    built = BuiltRecords(tmp_path / "b")
    assert len(built) == 13
    assert sum(s["count"] for s in built.manifest["image_shards"]) == 6
    assert built.encoded_images(built[-1]) == tuple(
        (data.images / raw[n]["image"].lstrip("/")).read_bytes() for n in (0, 1)
    )
    assert len(built.images(built[12])) == 2


def test_rejects_are_counted_listed_and_left_out(data, hf_dir, tmp_path):
    raw = json.loads(data.grpo.read_text())[:8]
    long = raw[2]["question"] + " please" * 300
    bad = [
        {**raw[0], "question": "again"},
        {**raw[1], "id": "gone", "image": "a/none.png"},
        {**raw[2], "id": "long", "question": long},
        {**raw[3], "id": "gold", "gt": "unscorable"},
        {**raw[4], "id": "token", "question": "see <|image_pad|>"},
        {**raw[5], "id": "kind", "verifier_type": "colour"},
    ]
    (tmp_path / "r.json").write_text(json.dumps([*raw, *bad]))
    settings = BuildSettings("grpo", max_tokens=200)

    def gold_problems(requests):
        return ["cannot be scored" if r.gt == "unscorable" else None for r in requests]

    out = tmp_path / "b"
    manifest = build(
        open_source(tmp_path / "r.json", data.images, kind=settings.kind),
        out,
        hf_dir,
        settings,
        gold_problems=gold_problems,
    )
    assert (manifest["read"], manifest["kept"], manifest["rejected"]) == (14, 8, 6)
    reasons = {r.index: f"{r.field}: {r.reason}" for r in iter_rejects(out)}
    assert list(reasons) == list(range(8, 14))
    expected = [
        "id: used before",
        "image: image 'a/none.png' does not exist",
        r"question: \d+ tokens \(\d+ of images\) are over the limit of 200",
        "gt: cannot be scored",
        "question: the text contains the special token",
        "verifier_type: 'colour' is none of",
    ]
    assert all(re.match(*pair) for pair in zip(expected, reasons.values(), strict=True))
    assert [r.id for r in BuiltRecords(out)] == [r["id"] for r in raw]


@pytest.mark.parametrize("stop_after", [0, 7, 12, 13, 30, 39])
def test_an_interrupted_build_ends_with_the_same_bytes(data, hf_dir, tmp_path, stop_after):
    settings = BuildSettings("grpo", **SMALL)
    calls = 0

    def interrupted(requests):
        nonlocal calls
        for _ in requests:
            calls += 1
            if calls > stop_after:
                raise KeyboardInterrupt
        return whole(requests)

    def whole(requests):
        return [None] * len(requests)

    args = (data.grpo, data.images)
    with pytest.raises(KeyboardInterrupt):
        build_from(*args, tmp_path / "a", hf_dir, settings, gold_problems=interrupted)
    with pytest.raises(UserError, match="no finished build"):
        BuiltRecords(tmp_path / "a")
    build_from(*args, tmp_path / "a", hf_dir, settings, gold_problems=whole)
    build_from(*args, tmp_path / "b", hf_dir, settings, gold_problems=whole)
    names = sorted(p.name for p in (tmp_path / "a").iterdir() if p.suffix != ".partial")
    assert names == sorted(p.name for p in (tmp_path / "b").iterdir())
    assert all(
        (tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names
    )


def test_a_finished_shard_is_not_written_again(data, hf_dir, tmp_path):
    settings = BuildSettings("grpo", **SMALL)
    build(open_source(data.grpo, data.images, kind=settings.kind), tmp_path / "b", hf_dir, settings)
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "b").glob("*.array_record")}
    build(open_source(data.grpo, data.images, kind=settings.kind), tmp_path / "b", hf_dir, settings)
    assert times == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "b").glob("*.array_record")}


@pytest.mark.parametrize("damage", ["delete", "truncate"])
@pytest.mark.parametrize("name", ["records-00001", "images-00000"])
def test_a_damaged_shard_is_written_again(data, hf_dir, tmp_path, name, damage):
    args = (data.grpo, data.images, tmp_path / "b", hf_dir, BuildSettings("grpo", **SMALL))
    build_from(*args)
    before = {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}
    shard = tmp_path / f"b/{name}.array_record"
    if damage == "delete":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(UserError, match="run the build again"):
        BuiltRecords(tmp_path / "b")
    build_from(*args)
    BuiltRecords(tmp_path / "b").verify()
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}


def test_images_that_come_later_are_taken_in(data, hf_dir, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(data.images, images)
    records = load_records(data.grpo, kind="grpo")
    late = [images / records[i].images[0] for i in (3, 20)]
    kept = [path.read_bytes() for path in late]
    late[0].unlink()
    late[1].write_bytes(b"")
    args = (tmp_path / "b", hf_dir, BuildSettings("grpo", **SMALL))
    assert build_from(data.grpo, images, *args)["rejected"] == 2
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "b").glob("images*.array_record")}
    for path, content in zip(late, kept, strict=True):
        path.write_bytes(content)
    assert build_from(data.grpo, images, *args)["rejected"] == 0
    redone = {n for n, t in times.items() if (tmp_path / "b" / n).stat().st_mtime_ns != t}
    assert redone == {"images-00000.array_record", "images-00002.array_record"}
    build_from(data.grpo, images, tmp_path / "new", *args[1:])
    for path in (tmp_path / "new").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_a_build_that_is_being_changed_is_no_finished_build(data, hf_dir, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(data.images, images)
    missing = images / load_records(data.grpo, kind="grpo")[3].images[0]
    content = missing.read_bytes()
    missing.unlink()
    args = (data.grpo, images, tmp_path / "b", hf_dir, BuildSettings("grpo", **SMALL))
    build_from(*args, gold_problems=lambda requests: [None] * len(requests))
    missing.write_bytes(content)

    def interrupted(requests):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_from(*args, gold_problems=interrupted)
    with pytest.raises(UserError, match="no finished build"):
        BuiltRecords(tmp_path / "b")


@pytest.mark.parametrize(
    ("limit", "image", "question", "answer", "field"),
    [(90, 4, 1, 1, "image"), (90, 1, 300, 1, "question"), (90, 1, 1, 300, "answer")],
)
def test_an_over_long_sample_names_its_longest_part(
    data, hf_dir, tmp_path, limit, image, question, answer, field
):
    raw = json.loads(data.sft.read_text().splitlines()[0])
    raw |= {"image": [raw["image"]] * image, "question": "q " * question, "answer": "a " * answer}
    (tmp_path / "r.json").write_text(json.dumps([raw]))
    settings = BuildSettings("sft", max_tokens=limit)
    build(
        open_source(tmp_path / "r.json", data.images, kind=settings.kind),
        tmp_path / "b",
        hf_dir,
        settings,
    )
    assert [r.field for r in iter_rejects(tmp_path / "b")] == [field]


def test_special_tokens_name_their_field(data, hf_dir, tmp_path):
    raw = json.loads(data.sft.read_text().splitlines()[0])
    bad = [{**raw, "id": field, field: "see <|image_pad|>"} for field in ("question", "answer")]
    (tmp_path / "r.json").write_text(json.dumps(bad))
    args = (tmp_path / "r.json", data.images)
    build_from(*args, tmp_path / "b", hf_dir, BuildSettings("sft"))
    assert [r.field for r in iter_rejects(tmp_path / "b")] == ["question", "answer"]
    settings = BuildSettings("sft", system_prompt="<|im_end|>")
    with pytest.raises(UserError, match="system prompt contains the special token"):
        build_from(*args, tmp_path / "c", hf_dir, settings)


def test_boxes_get_the_space_of_their_source(data, hf_dir, tmp_path):
    raw = json.loads(data.grpo.read_text())
    boxed = [{**r, "meta": None} for r in raw if r["verifier_type"] == "iou"]
    for record in boxed:
        record.pop("box_space", None)  # as released
    (tmp_path / "r.json").write_text(json.dumps(boxed))
    settings = BuildSettings("grpo", box_space={"VG": "normalized_square"})
    args = (tmp_path / "r.json", data.images, tmp_path / "b", hf_dir)
    for _ in range(2):  # the second run knows the build as its own
        build_from(*args, settings)
    spaces = {(r.source, r.box_space) for r in BuiltRecords(tmp_path / "b")}
    assert spaces == {("coco", "normalized"), ("vg", "normalized_square")}
    with pytest.raises(UserError, match="build of other records, settings"):
        build_from(*args, BuildSettings("grpo"))


def test_folders_that_cannot_be_used_are_refused(data, hf_dir, tmp_path):
    out = tmp_path / "b"
    build(open_source(data.grpo, data.images, kind="grpo"), out, hf_dir, BuildSettings("grpo"))
    words = r"other records, settings or checkpoint \(settings\.max_tokens was \d+, is 64\)"
    with pytest.raises(UserError, match=words):
        build(
            open_source(data.grpo, data.images, kind="grpo"),
            out,
            hf_dir,
            BuildSettings("grpo", max_tokens=64),
        )
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("")
    with pytest.raises(UserError, match="is not empty"):
        build(
            open_source(data.grpo, data.images, kind="grpo"),
            tmp_path / "full",
            hf_dir,
            BuildSettings("grpo"),
        )
    with pytest.raises(UserError, match="kind must be"):
        BuildSettings("rl")
    shard = out / "records-00000.array_record"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match="missing or incomplete"):
        BuiltRecords(out)
    shard.write_bytes(shard.read_bytes() + b"x")
    with pytest.raises(UserError, match="differs from its digest"):
        BuiltRecords(out).verify()


def test_pixel_limits_decide_the_lengths(data, hf_dir, tmp_path):
    big, small = tmp_path / "big", tmp_path / "small"
    build(
        open_source(data.grpo, data.images, kind="grpo"),
        big,
        hf_dir,
        BuildSettings("grpo", max_pixels=168 * 168),
    )
    build(
        open_source(data.grpo, data.images, kind="grpo"),
        small,
        hf_dir,
        BuildSettings("grpo", max_pixels=56 * 56),
    )
    pairs = list(zip(BuiltRecords(big), BuiltRecords(small), strict=True))
    assert all(a.lengths.tokens > b.lengths.tokens for a, b in pairs)
    with Image.open(io.BytesIO(BuiltRecords(big).encoded_images(pairs[0][0])[0])) as image:
        assert image.size == pairs[0][0].lengths.image_sizes[0]


def test_records_of_text_alone_are_built(hf_dir, tmp_path):
    file = tmp_path / "text.json"
    lines = [
        {"id": str(i), "question": f"what is {i} + 1?", "answer": str(i + 1)} for i in range(3)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = build(
        open_source(file, tmp_path, kind="sft"), tmp_path / "b", hf_dir, BuildSettings("sft")
    )
    assert manifest["kept"] == 3
    built = BuiltRecords(tmp_path / "b")
    built.verify()
    assert [(record.images, built.images(record)) for record in built] == [((), ())] * 3
