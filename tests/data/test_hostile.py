"""One file with everything a hostile or broken release could hold: check and build name each item.

Nothing outside the image root may be read, nothing may crash, and only the good records survive.
"""

import io
import json
import struct
import zlib

import pytest
from PIL import Image

from converters.tiny_tokenizer import tiny_config, write_sidecars
from vlaa_jax.data.builds.build import BuildSettings, build, iter_rejects
from vlaa_jax.data.judging.check import check
from vlaa_jax.data.judging.judge import Judge
from vlaa_jax.data.loaders.loader import Order, prompt_loader
from vlaa_jax.data.sources.built import BuiltRecords
from vlaa_jax.data.sources.table import open_source
from vlaa_jax.policy.checked import load_checked
from vlaa_jax.policy.prompts import Encoder
from vlaa_jax.policy.reading import Reading
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.schema import UserError
from vlaa_jax.settings.shared import PromptSettings

SECRET = b"outside-the-root-" * 8
GOOD = {"question": "How many?", "gt": "3", "verifier_type": "digit", "image": "clevr_math/a.png"}
BOX = {**GOOD, "verifier_type": "iou", "question": "Give the box."}
TOO_LONG = "x" * 10_000_000
HOSTILE = {
    "truncated": ({**GOOD, "image": "clevr_math/cut.jpg"}, "damaged"),
    "zero-byte": ({**GOOD, "image": "clevr_math/empty.png"}, "empty file"),
    "bomb": ({**GOOD, "image": "clevr_math/bomb.png"}, "limit of pixels"),
    "strip": ({**GOOD, "image": "clevr_math/strip.png"}, "too narrow"),
    "text": ({**GOOD, "image": "clevr_math/page.png"}, "known format"),
    "outside": ({**GOOD, "image": "clevr_math/link.png"}, "leaves the image root"),
    "linked-folder": ({**GOOD, "image": "clevr_math/up/secret.png"}, "leaves the image root"),
    "dots": ({**GOOD, "image": "clevr_math/../../secret.png"}, "leaves the image root"),
    "missing": ({**GOOD, "image": "clevr_math/none.png"}, "does not exist"),
    "nan-number": ({**BOX, "gt": [0.1, float("nan"), 0.5, 0.6]}, "not finite"),
    "nan-text": ({**BOX, "gt": "[0.1, nan, 0.5, 0.6]"}, "non-finite box"),
    "box-outside": (
        {**BOX, "gt": "[100, 10, 500, 20]", "meta": {"box_space": "original_pixels"}},
        "lies outside the image",
    ),
    "long-field": ({**GOOD, "question": TOO_LONG}, "more than"),
    "long-meta": ({**GOOD, "meta": TOO_LONG}, "more than"),
    "deep": ({**GOOD, "meta": "[" * 10_000}, "nested too deeply"),
    "code": ({**GOOD, "meta": "__import__('os').system('true')"}, "neither JSON nor"),
    "surrogate": ({**GOOD, "meta": {"x": "\ud800"}}, "a lone surrogate"),
    "bytes-in-meta": ({**GOOD, "meta": "{'a': b'x'}"}, "type bytes"),
    "set-in-meta": ({**GOOD, "meta": "{'a': {1, 2}}"}, "type set"),
    "key-in-meta": ({**GOOD, "meta": "{'a': {(1, 2): 3}}"}, "key of type tuple"),
    "deep-meta": ({**GOOD, "meta": json.loads('{"a":' * 600 + "1" + "}" * 600)}, "levels deep"),
    "formula": ({**GOOD, "verifier_type": "math", "gt": r"\frac{1}{"}, "cannot parse the gold"),
    "structure": ({**GOOD, "question": "see <|image_pad|>"}, "special token"),
    "unscorable": ({**GOOD, "gt": "many"}, ""),
}
LINES = {name: line for line, name in enumerate(HOSTILE, start=3)}
"""Two good records come first."""


def png(data, width, height):
    def chunk(kind, body):
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    folder = root / "images/clevr_math"
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(folder / "a.png")
    photo = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(photo, "JPEG")
    (folder / "jpeg.png").write_bytes(photo.getvalue())
    (folder / "cut.jpg").write_bytes(photo.getvalue()[:-900])
    (folder / "empty.png").write_bytes(b"")
    (folder / "bomb.png").write_bytes(png(zlib.compress(b"\0" * 100), 60_000, 60_000))
    Image.new("RGB", (1, 100_000)).save(folder / "strip.png")
    (folder / "page.png").write_text("<html>not found</html>")
    secret = io.BytesIO()
    Image.new("RGB", (40, 30), "blue").save(secret, "PNG")
    (root / "secret.png").write_bytes(secret.getvalue() + SECRET)
    (folder / "link.png").symlink_to(root / "secret.png")
    (folder / "up").symlink_to(root)
    good = [{**GOOD, "id": "good"}, {**GOOD, "id": "jpeg", "image": "clevr_math/jpeg.png"}]
    lines = [json.dumps(record).encode() for record in good]
    lines += [json.dumps({**record, "id": name}).encode() for name, (record, _) in HOSTILE.items()]
    lines.append(json.dumps({**GOOD, "id": "good", "question": "again?"}).encode())
    lines.append(json.dumps({**GOOD, "id": "bytes"}).encode().replace(b"many", b"m\xff\xfe"))
    (root / "grpo.json").write_bytes(b"\n".join(lines))
    hf = root / "hf"
    hf.mkdir()
    (hf / "config.json").write_text(json.dumps(tiny_config(write_sidecars(hf))))
    return root


@pytest.fixture(scope="module")
def reward():
    with MixedReward() as reward:
        yield reward


def test_check_lists_every_item_with_its_reason(place, reward):
    found = []
    report = check(
        open_source(place / "grpo.json", place / "images", kind="grpo"),
        Judge(reward.gold_problems, kind="grpo"),
        on_reject=found.append,
    )
    assert not report.clean and report.problems == len(found)
    by_line = {reject.line: reject for reject in found}
    assert len(by_line) == len(found) == len(HOSTILE) - 1 + 2
    for name, line in LINES.items():
        if name == "structure":  # only a tokenizer knows: see the build
            continue
        assert HOSTILE[name][1] in by_line[line].reason, name
        # A record over the limit of bytes is never parsed, so that its id is not known.
        assert by_line[line].id == ("" if "long" in name else name)
        assert f"grpo.json: line {line}" in str(by_line[line])
        assert "\n" not in str(by_line[line])
    assert "used before" in by_line[len(HOSTILE) + 3].reason
    assert "not UTF-8" in by_line[len(HOSTILE) + 4].reason


def test_build_keeps_the_good_ones_and_reads_nothing_outside(place, reward, tmp_path):
    manifest = build(
        open_source(place / "grpo.json", place / "images", kind="grpo"),
        tmp_path / "b",
        place / "hf",
        BuildSettings("grpo"),
        gold_problems=reward.gold_problems,
    )
    assert [record.id for record in BuiltRecords(tmp_path / "b")] == ["good", "jpeg"]
    assert (manifest["kept"], manifest["rejected"]) == (2, len(HOSTILE) + 2)
    by_line = {reject.line: reject for reject in iter_rejects(tmp_path / "b")}
    assert all(HOSTILE[name][1] in by_line[line].reason for name, line in LINES.items())
    for file in (tmp_path / "b").iterdir():
        assert SECRET not in file.read_bytes()


def test_training_sorts_out_every_item_before_the_first_step(place, reward):
    """Headers only: damage behind one is met when the image comes up, and stops in one line."""
    data = PromptSettings(bad_records="skip")
    encoder = Encoder(Reading.of(str(place / "hf"), data), data)
    usable, rejects = load_checked(
        place / "grpo.json", place / "images", encoder, gold_problems=reward.gold_problems
    )
    assert [record.id for record in usable] == ["good", "jpeg", "truncated"]
    by_line = {reject.line: reject for reject in rejects}
    assert len(by_line) == len(rejects) == len(HOSTILE) - 1 + 2
    for name, line in LINES.items():
        if name != "truncated":
            assert HOSTILE[name][1] in by_line[line].reason and by_line[line].field != "?", name
    order = Order(shuffle=False, epochs=1)
    with prompt_loader(usable, usable.images, batch_size=1, order=order) as loader:
        assert [next(loader)[0][0].id for _ in range(2)] == ["good", "jpeg"]
        with pytest.raises(UserError, match=r"^record 'truncated': image .* is damaged.*$"):
            next(loader)


def unlike_good(record):
    return {name for name, value in record.items() if GOOD.get(name) != value}
