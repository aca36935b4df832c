"""The fetch command against a local server that speaks the hub's file API."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from hub_server import environment_of, hub_of

ROOT = Path(__file__).parents[3]
REPO = "UCSC-VLAA/VLAA-Thinking"


def archive(*members):
    """A tar of (name, content), or (name, None) for a link to /etc/passwd."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def hub():
    with hub_of(REPO) as server:
        yield server


def fetched(hub, out, *options):
    env = {**environment_of(hub, out.parent / "home"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "vlaa_jax.data", "fetch", f"--out={out}", *options]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def test_records_and_images_land_where_records_expect_them_and_are_fetched_once(hub, tmp_path):
    pixels = b"not really a png"
    hub.files |= {
        "VLAA-Thinking-GRPO-25K.json": b"[]",
        "README.md": b"words",
        "images/clevr_math.tar": archive(
            ("clevr_math/images/1.png", pixels), ("clevr_math/notes.txt", b"left out")
        ),
    }
    out = tmp_path / "data"
    done = fetched(hub, out)
    assert done.returncode == 0, done.stderr
    assert (out / "images/clevr_math/images/1.png").read_bytes() == pixels
    assert not (out / "images/clevr_math/notes.txt").exists()
    assert "VLAA-Thinking-GRPO-25K.json" in done.stdout
    assert "coco/train2017: unpack http" in done.stdout and "vg/VG_100K" in done.stdout
    assert sorted(hub.asked) == ["VLAA-Thinking-GRPO-25K.json", "images/clevr_math.tar"]
    again = fetched(hub, out)
    assert again.returncode == 0, again.stderr
    assert hub.asked.count("images/clevr_math.tar") == 1


@pytest.mark.parametrize("name", ["../outside.png", "/tmp/outside.png", "a/link.png"])
def test_an_archive_writes_nothing_outside_of_its_folder(hub, tmp_path, name):
    content = None if "link" in name else b"x"
    hub.files |= {"r.json": b"[]", "a.tar": archive((name, content))}
    done = fetched(hub, tmp_path / "data")
    assert done.returncode == 2 and "no plain file below the archive's root" in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert not (tmp_path / "outside.png").exists()


def test_a_data_set_that_is_none_and_a_damaged_archive_get_one_line(hub, tmp_path):
    hub.files["notes.md"] = b"words"
    done = fetched(hub, tmp_path / "a")
    assert done.returncode == 2 and "holds no file of records" in done.stderr
    hub.files |= {"r.json": b"[]", "broken.tar": b"no archive at all" * 100}
    done = fetched(hub, tmp_path / "b")
    assert done.returncode == 2 and "is no sound archive" in done.stderr
    assert "Traceback" not in done.stderr
