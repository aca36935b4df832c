import asyncio
import subprocess
import sys

import pytest

from vlaa_jax.pipeline.ledger import Entry, Ledger, Reply
from vlaa_jax.schema import UserError

REPLY = Reply("text ✓", "thought", "stop", 10, 5)


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


def record(ledger, *entries):
    async def run():
        await asyncio.gather(*(ledger.record(entry) for entry in entries))

    asyncio.run(run())


def test_a_recorded_reply_comes_back_whole(ledger):
    record(ledger, Entry(b"k", "caption", "id", "m", REPLY, cost=0.5))
    assert ledger.get(b"k") == REPLY
    assert ledger.get(b"other") is None


def test_a_failure_is_a_state_and_no_answer_and_an_answer_replaces_it(ledger):
    record(ledger, Entry(b"k", "caption", "id", "m", None, "server: HTTP 500"))
    assert ledger.get(b"k") is None and ledger.knows(b"k")
    assert [row["error"] for row in ledger.failures()] == ["server: HTTP 500"]
    record(ledger, Entry(b"k", "caption", "id", "m", REPLY))
    assert ledger.get(b"k") == REPLY
    assert not list(ledger.failures())


def test_costs_are_sums_over_rows(ledger):
    entries = [Entry(bytes([i]), "distil", "id", "m", REPLY, cost=0.25) for i in range(8)]
    record(ledger, *entries, Entry(b"f", "distil", "id", "m", None, "timeout"))
    cost = ledger.costs()["distil"]
    assert (cost.calls, cost.failed, cost.cost) == (8, 1, 2.0)
    assert (cost.prompt_tokens, cost.completion_tokens) == (80, 40)


def test_what_was_recorded_survives_a_kill(tmp_path):
    script = f"""
import asyncio, os, signal
from pathlib import Path
from vlaa_jax.pipeline.ledger import Entry, Ledger, Reply
async def main():
    ledger = Ledger(Path({str(tmp_path / "ledger.sqlite")!r}))
    for i in range(50):
        await ledger.record(Entry(bytes([i]), "s", "id", "m", Reply("x")))
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert all(ledger.get(bytes([i])) == Reply("x") for i in range(50))
    ledger.close()


@pytest.mark.parametrize("content", [b"this is no database, is it?" * 40, b"SQLite format 3\0" * 8])
def test_a_file_that_is_no_ledger_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "ledger.sqlite").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be used as a ledger"):
        Ledger(tmp_path / "ledger.sqlite")


def test_a_damaged_page_is_told_in_one_line(tmp_path):
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    record(ledger, *(Entry(bytes([i]), "s", "id", "m", Reply("x" * 900)) for i in range(200)))
    ledger.close()
    data = bytearray(path.read_bytes())
    data[3 * 4096 :] = b"\x77" * (len(data) - 3 * 4096)  # the head and the schema stay
    path.write_bytes(data)
    ledger = Ledger(path)
    for look in (lambda: [ledger.get(bytes([i])) for i in range(200)], ledger.costs, ledger.spent):
        with pytest.raises(UserError, match=r"ledger.sqlite: cannot be read"):
            look()
    ledger.close()


def test_a_row_that_cannot_be_written_is_told_and_nobody_waits_for_it(ledger):
    impossible = Entry(b"k", "s", "id", "m", Reply("x", prompt_tokens=1 << 70))

    async def run():
        await asyncio.wait_for(ledger.record(impossible), 5.0)

    with pytest.raises(UserError, match="cannot be written"):
        asyncio.run(run())
    record(ledger, Entry(b"l", "s", "id", "m", REPLY))
    assert ledger.get(b"l") == REPLY


def test_a_ledger_of_another_format_is_refused(tmp_path, ledger):
    ledger._reads.execute("PRAGMA user_version=99")
    with pytest.raises(UserError, match="format 99"):
        Ledger(tmp_path / "ledger.sqlite")


def test_ledgers_of_workers_are_absorbed_and_an_answer_outweighs_a_failure(tmp_path, ledger):
    record(ledger, Entry(b"a", "s", "id", "m", REPLY), Entry(b"b", "s", "id", "m", None, "timeout"))
    (tmp_path / "d").mkdir()
    worker = Ledger(tmp_path / "d" / "w.sqlite")
    entries = [Entry(key, "s", "id", "m", Reply("new")) for key in (b"b", b"c")]
    record(worker, Entry(b"a", "s", "id", "m", None, "timeout"), *entries)
    worker.close()
    ledger.absorb(tmp_path / "d")
    assert [ledger.get(key) for key in (b"a", b"b", b"c")] == [REPLY, Reply("new"), Reply("new")]
    assert not list((tmp_path / "d").iterdir())


def test_a_ledger_that_was_never_written_absorbs_too(tmp_path, ledger):
    (tmp_path / "d").mkdir()
    worker = Ledger(tmp_path / "d" / "w.sqlite")
    record(worker, Entry(b"a", "s", "id", "m", REPLY))
    worker.close()
    ledger.absorb(tmp_path / "d")
    assert ledger.get(b"a") == REPLY and not list((tmp_path / "d").iterdir())


def test_a_worker_reads_the_base_and_writes_its_own(tmp_path):
    base = Ledger(tmp_path / "base.sqlite")
    record(base, Entry(b"a", "s", "id", "m", REPLY, cost=1.5))
    base.close()
    worker = Ledger(tmp_path / "worker.sqlite", tmp_path / "base.sqlite")
    record(worker, Entry(b"b", "s", "id", "m", REPLY, cost=0.5))
    assert worker.get(b"a") == REPLY and worker.spent() == 2.0
    worker.close()
