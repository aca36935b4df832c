"""What a disk refuses becomes one line, and nothing half-written has a final name.

The disks are real: a tmpfs of a few pages where this user may mount one, else a limit on the size
of files, which the system enforces by the same door.
"""

import errno
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import safetensors.numpy
import tensorstore

from full_disks import mounted, resize
from vlaa_jax import disk
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.evaluate.ledger import Ledger
from vlaa_jax.schema import UserError
from vlaa_jax.train.board import Board


@pytest.fixture
def no_large_files():
    """Files may have 8 KiB; the system's signal about it is ignored, as Python does by itself."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_file_is_whole_or_not_there(small_disk):
    (small_disk / "kept").write_text("old")
    for name in ("new", "kept"):
        with pytest.raises(OSError) as told:
            disk.write_bytes(small_disk / name, bytes(2**20))
        assert (told.value.errno, told.value.filename) == (errno.ENOSPC, str(small_disk / name))
    assert {path.name: path.read_text() for path in small_disk.iterdir()} == {"kept": "old"}
    disk.write_text(small_disk / "kept", "new")
    assert (small_disk / "kept").read_text() == "new"


def test_what_is_appended_is_appended_whole(small_disk):
    with open(small_disk / "lines", "ab", buffering=0) as file:
        disk.append(file, b"one\n")
        with pytest.raises(OSError, match="No space left"):
            disk.append(file, bytes(2**20))
        disk.append(file, b"two\n")
    assert (small_disk / "lines").read_bytes() == b"one\ntwo\n"


def test_a_ledger_is_as_before_and_goes_on(small_disk):
    with Ledger(small_disk / "replies.jsonl") as ledger:
        ledger.append({"n": 1})
        with pytest.raises(UserError, match=r"replies\.jsonl: No space left on device; free some"):
            ledger.append({"text": "x" * 2**20})
        ledger.append({"n": 2})
    assert Ledger(small_disk / "replies.jsonl").records == [{"n": 1}, {"n": 2}]


def test_tensorboard_says_it_at_once(small_disk):
    board = Board(small_disk / "tensorboard", 0)
    with disk_error_in_one_line(small_disk):
        for step in range(100):
            board.samples(step, [("x", None, "y" * 10_000)])


@contextmanager
def disk_error_in_one_line(place):
    with (
        pytest.raises(UserError, match=r"No space left on device; free some space; then$"),
        disk.refusals(place, "then"),
    ):
        yield


@pytest.mark.usefixtures("no_large_files")
def test_a_limit_on_files_is_told_too(tmp_path):
    told = pytest.raises(UserError, match=r"a\.json: File too large; raise the limit .*; then$")
    with told, disk.refusals(tmp_path, "then"):
        disk.write_json(tmp_path / "a.json", ["x" * 10_000])
    assert not list(tmp_path.iterdir())


def libraries(place):
    """Writers of other people, each in its own language."""
    array = np.random.default_rng(0).normal(size=2**18)
    yield lambda: safetensors.numpy.save_file({"a": array}, place / "a.safetensors")
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{place}/zarr/"}}
    store = tensorstore.open(spec, create=True, dtype="float64", shape=array.shape).result()
    yield lambda: store.write(array).result()


def test_what_other_libraries_say_of_a_full_disk_is_understood(small_disk):
    for write in libraries(small_disk):
        with disk_error_in_one_line(small_disk):
            write()


def test_an_error_of_our_own_stays_one(tmp_path):
    with pytest.raises(ZeroDivisionError), disk.refusals(tmp_path, "then"):
        print(1 / 0)
    with pytest.raises(ConnectionResetError), disk.refusals(tmp_path, "then"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    with pytest.raises(KeyError), disk.refusals(tmp_path, "then"):
        raise KeyError("x") from None


def test_it_is_found_behind_others(tmp_path):
    full = OSError(errno.EDQUOT, "quota", str(tmp_path / "x"))
    group = ExceptionGroup("of threads", [ValueError("a"), full])
    behind = RuntimeError("it failed")
    behind.__cause__ = group
    assert disk.refusal(behind) == disk.Refusal(
        str(tmp_path / "x"), "Disk quota exceeded", "free some of the quota"
    )


def test_the_ledger_of_the_pipeline_keeps_every_reply(small_disk):
    """SQLite rolls back what did not fit."""
    script = f"""
import asyncio, json, sys
from pathlib import Path
from vlaa_jax.pipeline.ledger import Entry, Ledger, Reply
from vlaa_jax.schema import UserError
ledger = Ledger(Path({str(small_disk / "ledger.sqlite")!r}))
async def fill():
    for n in range(1000):
        await ledger.record(Entry(n.to_bytes(4, "big"), "s", "x", "m", Reply("y" * 20_000)))
        print(n, flush=True)
try:
    asyncio.run(fill())
except UserError as error:
    sys.exit(str(error))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (
        "cannot be written (database or disk is full); every earlier reply is kept" in done.stderr
    )
    count = len(done.stdout.splitlines())
    assert count
    (small_disk.parent / "grown").mkdir()
    for file in small_disk.glob("ledger*"):  # to where there is room
        (small_disk.parent / "grown" / file.name).write_bytes(file.read_bytes())
    from vlaa_jax.pipeline.ledger import Ledger as Replies

    again = Replies(small_disk.parent / "grown" / "ledger.sqlite")
    assert all(again.get(n.to_bytes(4, "big")) for n in range(count))
    again.close()


def test_scores_that_a_full_disk_does_not_take_end_in_one_line(small_disk, tmp_path):
    line = '{"verifier_type": "digit", "gt": 3, "response": "<answer>3</answer>"}\n'
    (tmp_path / "said.jsonl").write_text(line * 3000)
    with open(small_disk / "scores", "w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "vlaa_jax.rewards", str(tmp_path / "said.jsonl")],
            **{"stdout": out, "stderr": subprocess.PIPE, "text": True},
        )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: standard output: No space left on device; free some space; run the command again"
    ]


def test_who_told_of_a_full_disk_without_a_way_out_gets_one(tmp_path):
    def refused(cause):
        with disk.refusals(tmp_path, "then"):
            raise UserError("x: cannot be written") from cause

    with pytest.raises(UserError, match=r"^x: cannot be written; free some space; then$"):
        refused(OSError(errno.ENOSPC, "full"))
    with pytest.raises(UserError, match=r"^x: cannot be written$"):
        refused(ValueError("other"))
    with pytest.raises(UserError, match=r"^x: cannot be written$"):
        refused(FileNotFoundError(errno.ENOENT, "no", "x"))


def test_a_build_keeps_its_shards_and_goes_on(tmp_path):
    paths = write_dataset(tmp_path / "data", n_train=100, n_heldout=1, n_sft=1)
    words = [sys.executable, "-m", "vlaa_jax.data", "build", str(paths.grpo)]
    words += [f"--images={paths.images}", "--checkpoint=embedded"]
    words += ["--shard-records=50", "--shard-images=10"]
    with mounted(tmp_path / "disk", 300) as place:
        full = subprocess.run([*words, f"--out={place / 'b'}"], capture_output=True, text=True)
        assert full.returncode == 2
        end = "free some space; what is whole is kept, the same command goes on"
        assert full.stderr.splitlines()[-1].endswith(f"No space left on device; {end}")
        assert "Traceback" not in full.stderr
        assert list((place / "b").glob("*.array_record"))
        resize(place, 20_000)
        for out in (place / "b", tmp_path / "whole"):
            subprocess.run([*words, f"--out={out}"], check=True, capture_output=True)
        whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
        assert {path.name: path.read_bytes() for path in (place / "b").iterdir()} == whole
