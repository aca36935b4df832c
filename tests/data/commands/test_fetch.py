"""The fetch command against a local server that speaks the hub's file API."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
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
    """A hub whose files a test may change; `.asked` counts what was downloaded."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *unused):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = self.path.split("?")[0]
            if "/tree/" in path:
                entries = [
                    {"type": "file", "path": name, "size": len(data), "oid": COMMIT}
                    for name, data in server.files.items()
                ]
                return self.reply(json.dumps(entries).encode(), body)
            if path.startswith(f"/api/datasets/{REPO}"):
                files = [{"rfilename": name} for name in server.files]
                told = {"id": REPO, "sha": COMMIT, "siblings": files}
                return self.reply(json.dumps(told).encode(), body)
            name = path.rpartition("/resolve/")[2].partition("/")[2]
            if name not in server.files:
                self.send_error(404)
                return None
            if body:
                server.asked.append(name)
            return self.reply(server.files[name], body)

        def reply(self, data, body):
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", hashlib.sha256(data).hexdigest())
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked = {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetched(hub, out, *options):
    port = hub.server_address[1]
    env = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{port}"}
    env |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(out.parent / "home")}
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
