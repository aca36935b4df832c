"""Every reply that was ever paid for, found by the content of its request.

A SQLite file in WAL mode. A reply is committed before anybody sees it, so a process that is killed
loses at most the calls that were in flight. A call that failed is a state of its own: it is listed
and counted, and the next run asks again. Many replies that arrive together share one commit.
"""

import asyncio
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlaa_jax.schema import UserError

FORMAT = 1
_BUSY_MS = 60_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls(
    key BLOB PRIMARY KEY,      -- digest of the request, see request.py
    step TEXT NOT NULL,
    sample TEXT NOT NULL,      -- id of the sample that asked first
    model TEXT NOT NULL,
    state TEXT NOT NULL,       -- done or failed
    reply TEXT,                -- JSON of a Reply where done
    error TEXT,                -- kind and message where failed
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cost REAL NOT NULL,        -- US dollars
    latency_s REAL NOT NULL,
    at REAL NOT NULL           -- seconds since 1970
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches(
    id TEXT PRIMARY KEY,       -- the provider's id
    place TEXT NOT NULL,       -- base URL
    keys TEXT NOT NULL,        -- JSON list of request digests, hexadecimal
    state TEXT NOT NULL        -- open or collected
) WITHOUT ROWID;
"""
_INSERT = "INSERT OR REPLACE INTO calls VALUES(?,?,?,?,?,?,?,?,?,?,?,?)"


@dataclass(frozen=True)
class Reply:
    """What a served model answered."""

    text: str
    reasoning: str = ""
    """Content of a reasoning field beside the text, where the server has one."""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    value: float | None = None
    """The measured number of a request that asks for one."""


@dataclass(frozen=True)
class Entry:
    """One row to be recorded."""

    key: bytes
    step: str
    sample: str
    model: str
    reply: Reply | None
    error: str = ""
    cost: float = 0.0
    latency_s: float = 0.0

    def row(self) -> tuple[Any, ...]:
        """Values in the order of the table."""
        reply = self.reply
        text = None if reply is None else json.dumps(reply.__dict__, ensure_ascii=False)
        tokens = (0, 0) if reply is None else (reply.prompt_tokens, reply.completion_tokens)
        state = "failed" if reply is None else "done"
        head = (self.key, self.step, self.sample, self.model, state, text, self.error or None)
        return (*head, *tokens, self.cost, self.latency_s, time.time())


@dataclass(frozen=True)
class StepCost:
    """What a step has cost since the work directory was begun."""

    calls: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class Ledger:
    """Opens the store, creating it where it is missing.

    Lookups may come from the event loop's thread only; ``record`` is a coroutine of that loop.

    Args:
        path: the file.
        base: another ledger that is looked into and never written, and that nobody writes
            meanwhile: what a worker on another machine starts from.

    Raises:
        UserError: the file is no ledger, or of another version.
    """

    def __init__(self, path: Path, base: Path | None = None) -> None:
        self.path = path
        self._queue: list[tuple[Entry, asyncio.Future[None]]] = []
        self._flushing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        try:
            self._reads = _connect(path)
            self._base = None if base is None else _connect_fixed(base)
            self._writes = self._thread.submit(_connect, path).result()
            found = self._reads.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, FORMAT):
                raise UserError(f"{path}: ledger of format {found}, this version reads {FORMAT}")
            self._reads.executescript(f"{_SCHEMA} PRAGMA user_version={FORMAT};")
        except sqlite3.Error as error:
            self._thread.shutdown()
            raise UserError(f"{path}: cannot be used as a ledger ({error})") from None

    def get(self, key: bytes) -> Reply | None:
        """The recorded answer to a request; None where there is none or the call failed."""
        query = "SELECT reply FROM calls WHERE key=? AND state='done'"
        rows = self._rows(query, key)
        if not rows and self._base is not None:
            rows = self._rows(query, key, at=self._base)
        try:
            return Reply(**json.loads(rows[0][0])) if rows else None
        except (ValueError, TypeError):
            raise UserError(f"{self.path}: is damaged (the reply to {key.hex()})") from None

    def _rows(self, query: str, *values: Any, at: sqlite3.Connection | None = None) -> list[Any]:
        try:
            return (at or self._reads).execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise UserError(f"{self.path}: cannot be read ({error})") from None

    def knows(self, key: bytes) -> bool:
        """Whether a call was recorded, with an answer or as failed."""
        return bool(self._rows("SELECT 1 FROM calls WHERE key=?", key))

    async def record(self, entry: Entry) -> None:
        """Write a row; returns once it is committed."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((entry, written))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        await asyncio.shield(written)

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            batch, self._queue = self._queue, []
            try:
                rows = [entry.row() for entry, _ in batch]
                await loop.run_in_executor(self._thread, self._commit, rows)
            except Exception as error:  # whatever it is: nobody is to wait for ever
                reason = UserError(
                    f"{self.path}: cannot be written ({error}); every earlier reply is kept, the "
                    "same command asks for the rest when there is room"
                )
                for _, written in batch:
                    written.set_exception(reason)
            else:
                for _, written in batch:
                    written.set_result(None)

    def _commit(self, rows: Sequence[tuple[Any, ...]]) -> None:
        with self._writes:
            self._writes.executemany(_INSERT, rows)

    def costs(self) -> dict[str, StepCost]:
        """Calls, tokens and dollars per step, of all runs of the work directory."""
        query = """SELECT step, SUM(state='done'), SUM(state='failed'), SUM(prompt_tokens),
            SUM(completion_tokens), SUM(cost) FROM calls GROUP BY step"""
        return {step: StepCost(*values) for step, *values in self._rows(query)}

    def spent(self) -> float:
        """Dollars of all runs, those of the base included."""
        query = "SELECT TOTAL(cost) FROM calls"
        return float(sum(self._rows(query, at=at)[0][0] for at in (self._reads, self._base) if at))

    def absorb(self, folder: Path) -> None:
        """Take over the rows of other ledgers in a folder, and remove them."""
        for path in sorted(folder.glob("*.sqlite")):
            Ledger(path).close()  # brings in what a killed worker left in its log

            def take(path: Path = path) -> None:
                self._writes.execute("ATTACH ? AS other", (str(path),))
                with self._writes:
                    # An answer is worth more than a failure, whoever has it. Without its "main"
                    # a name may mean the other's table.
                    self._writes.execute(
                        "INSERT OR REPLACE INTO main.calls SELECT * FROM other.calls AS o WHERE"
                        " o.state='done' OR o.key NOT IN (SELECT key FROM main.calls)"
                    )
                self._writes.execute("DETACH other")

            self._thread.submit(take).result()
            for left in folder.glob(f"{path.name}*"):
                left.unlink()
        # Whoever reads this file as a base does not look into its log.
        checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)"
        self._thread.submit(lambda: self._writes.execute(checkpoint).fetchall()).result()

    def failures(self) -> Iterator[Mapping[str, str]]:
        """The calls that failed when they were last asked."""
        query = "SELECT step, sample, model, error FROM calls WHERE state='failed' ORDER BY 1, 2"
        for row in self._rows(query):
            yield dict(zip(("step", "sample", "model", "error"), row, strict=True))

    def add_batch(self, batch_id: str, place: str, keys: Sequence[bytes]) -> None:
        """Note a batch that the provider has taken, so that it is collected whatever happens."""
        names = json.dumps([key.hex() for key in keys])
        self._batch_row(
            "INSERT OR REPLACE INTO batches VALUES(?,?,?,'open')", batch_id, place, names
        )

    def close_batch(self, batch_id: str) -> None:
        """Note that all replies of a batch are recorded."""
        self._batch_row("UPDATE batches SET state='collected' WHERE id=?", batch_id)

    def _batch_row(self, statement: str, *values: str) -> None:
        def write() -> None:
            with self._writes:
                self._writes.execute(statement, values)

        self._thread.submit(write).result()

    def open_batches(self, place: str) -> list[tuple[str, list[bytes]]]:
        """Batches of one endpoint that were handed in and not collected: id and request digests."""
        query = "SELECT id, keys FROM batches WHERE place=? AND state='open' ORDER BY id"
        rows = self._rows(query, place)
        return [(name, [bytes.fromhex(key) for key in json.loads(keys)]) for name, keys in rows]

    def close(self) -> None:
        """Close the file; what was recorded is in it."""
        self._thread.submit(self._writes.close).result()
        self._thread.shutdown()
        self._reads.close()
        if self._base is not None:
            self._base.close()


def _connect_fixed(path: Path) -> sqlite3.Connection:
    """For reading a file that does not change: needs no locks, which not all file systems have."""
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    return sqlite3.connect(uri, uri=True, check_same_thread=False)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    connection.execute("PRAGMA journal_mode=WAL")
    # Enough against a killed process; a power cut may cost the last commits, not the file.
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection
