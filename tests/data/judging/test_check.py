"""The checker: every kind of bad image, gold and record is counted once, and nothing is hung on."""

import json
import os
import struct
import zlib
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from one_image import inspect_image
from vlaa_jax.data.judging.check import PUBLISHED, UNREADABLE, check
from vlaa_jax.data.judging.judge import Judge
from vlaa_jax.data.sources.record_file import load_records
from vlaa_jax.data.sources.table import open_source
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.schema import UserError


def png_header(width, height):
    """A PNG that claims a size and holds almost no data."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def hostile(tmp_path):
    """An image root with one good image and every bad one we know."""
    root = tmp_path / "images"
    (root / "a").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(root / "a/good.png")
    data = (root / "a/good.png").read_bytes()
    Image.effect_noise((64, 64), 50).convert("RGB").save(root / "a/whole.jpg")
    (root / "a/cut.jpg").write_bytes((root / "a/whole.jpg").read_bytes()[:-900])
    (root / "a/empty.png").write_bytes(b"")
    (root / "a/bomb.png").write_bytes(png_header(60_000, 60_000))
    Image.new("RGB", (1, 100_000)).save(root / "a/narrow.png")
    (root / "a/text.png").write_text("<html>not found</html>")
    (tmp_path / "outside.png").write_bytes(data)
    (root / "a/link.png").symlink_to(tmp_path / "outside.png")
    (root / "a/dir.png").mkdir()
    os.mkfifo(root / "a/pipe.png")
    (root / "a/loop.png").symlink_to(root / "a/loop.png")
    return root


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("good", "found"),
        ("empty", "corrupt"),
        ("bomb", "corrupt"),
        ("narrow", "corrupt"),
        ("text", "corrupt"),
        ("link", "missing"),
        ("dir", "missing"),
        ("pipe", "missing"),
        ("loop", "missing"),
        ("none", "missing"),
    ],
)
def test_hostile_images_get_a_status_and_a_reason(hostile, name, status):
    facts = inspect_image(hostile, f"a/{name}.png")
    assert facts.status == status
    assert bool(facts.reason) == (status != "found") and "\n" not in facts.reason


def test_a_cut_jpeg_is_corrupt_and_a_jpeg_under_a_wrong_name_is_not(hostile):
    assert inspect_image(hostile, "a/cut.jpg").status == "corrupt"
    (hostile / "a/wrong.png").write_bytes((hostile / "a/whole.jpg").read_bytes())
    assert inspect_image(hostile, "a/wrong.png") == ("found", "", (64, 64), b"", "RGB")


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    path=st.text(max_size=20)
    | st.sampled_from(["../x", "/etc/passwd", "a/../../b", "\0", "a" * 5000])
)
def test_no_path_leaves_the_root(hostile, path):
    facts = inspect_image(hostile, path, keep=True)
    assert facts.status == "missing" and facts.data == b""


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cut=st.integers(0, 400), noise=st.binary(max_size=8), at=st.integers(0, 300))
def test_damaged_files_never_crash(hostile, cut, noise, at):
    data = bytearray((hostile / "a/good.png").read_bytes())
    data[at : at + len(noise)] = noise
    (hostile / "a/x.png").write_bytes(bytes(data[: max(0, len(data) - cut)]))
    facts = inspect_image(hostile, "a/x.png")
    assert facts.status in ("found", "corrupt") and "\n" not in facts.reason


def test_table_counts_every_problem_by_source(hostile, tmp_path):
    base = {"question": "q", "gt": "3", "verifier_type": "digit"}
    names = ["good", "good", "empty", "none", "link"]
    raw = [{**base, "id": i, "image": f"a/{name}.png"} for i, name in enumerate(names)]
    raw += [
        {**base, "id": 0, "image": "a/good.png"},
        {**base, "id": 10, "image": "../secret.png"},
        {**base, "id": 11, "image": "a/good.png", "gt": "many"},
        {**base, "id": 12, "image": "b/none.png", "verifier_type": "iou", "gt": "[NaN, 0, 1, 1]"},
    ]
    (tmp_path / "r.json").write_text(json.dumps(raw))
    listed, sizes = [], {}

    def gold_problems(requests):
        sizes.update({request.id: request.image_size for request in requests})
        return [None if r.gt.isdigit() else f"{r.gt!r} is no digit" for r in requests]

    report = check(
        open_source(tmp_path / "r.json", hostile, kind="grpo"),
        Judge(gold_problems, kind="grpo"),
        on_reject=listed.append,
    )
    a, b, unread = report.rows["a"], report.rows["b"], report.rows[UNREADABLE]
    for row, counts in ((a, (6, 1, 4, 1, 2, 1)), (b, (1, 1, 1, 0, 1, 0))):
        columns = ("records", "bad golds", "images", "found", "missing", "corrupt")
        assert tuple(row[column] for column in columns) == counts
    assert sizes["0"] == (40, 30) and sizes["2"] is None  # of images that could be read
    assert unread["refused"] == 2 and not report.clean
    assert report.problems == len(listed) == 8
    assert all(r.index >= 0 and r.reason for r in listed)
    table = report.table()
    assert "published" in table and "6,499" not in table  # these are no sources of VLAA
    assert [line.split()[0] for line in table.splitlines()[1:]][-1] == "total"


def test_embedded_data_is_clean_and_a_missing_root_is_said(tmp_path):
    paths = write_dataset(tmp_path, n_train=20, n_heldout=5, n_sft=10)
    assert check(open_source(paths.grpo, paths.images, kind="grpo"), Judge(kind="grpo")).clean
    report = check(open_source(paths.sft, paths.images, kind="sft"), Judge(kind="sft"), whole=False)
    assert report.clean and sum(row["records"] for row in report.rows.values()) == 10
    with pytest.raises(UserError, match="no such image folder"):
        check(open_source(paths.grpo, tmp_path / "nowhere"), Judge())
    record = replace(load_records(paths.grpo)[0], gt="x")
    assert record.gt == "x"


def test_published_counts_add_up_to_the_paper():
    assert sum(PUBLISHED["sft"].values()) == 126_413
    assert sum(PUBLISHED["grpo"].values()) == 25_195
