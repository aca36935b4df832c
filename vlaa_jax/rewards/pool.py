"""Worker processes that can be killed: for code that may hang, like symbolic mathematics.

Signals cannot interrupt such code off the main thread, and a thread cannot be stopped at all, so
each task runs in a process with a deadline, after which the process is killed and replaced. The
pool may be used from any thread, keeps order, survives crashes of its workers, and leaves no
process behind: not on ``close``, not at exit, not on Ctrl-C, and not when this process is killed.
"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

from vlaa_jax.loop_thread import LoopThread

START_PAUSE_S = 0.05
"""Before a task for which no process could be started is left to another one."""

CLOSED = "the pool is closed"


@dataclass(frozen=True)
class Outcome:
    """What became of one task: a value, or an error that says why there is none."""

    value: Any = None
    error: str | None = None
    timed_out: bool = False
    pool_failed: bool = False
    """The error is not the task's: no process for it, or a pool that broke or is closed."""


class KillablePool:
    """Runs ``module:function`` on JSON values in processes that are killed when they overrun.

    One that nobody uses any more is closed.

    Args:
        task: ``"package.module:function"``; imported in the children only. The module's
            ``warm_up()``, where it has one, runs once before any task.
        workers: number of processes.
        timeout_s: CPU seconds a task may take in its worker, so that a busy host fails none.
        patience: wall time it may take, as a multiple of that: for tasks that wait, not compute.
        memory_mb: address space a worker may use, in MiB; beyond it a task fails with MemoryError.
        recycle_after: tasks after which a worker is replaced, so that caches cannot grow for ever.
    """

    def __init__(
        self,
        task: str,
        *,
        workers: int = 2,
        timeout_s: float = 5.0,
        patience: float = 20.0,
        memory_mb: int = 4096,
        recycle_after: int = 5_000,
    ) -> None:
        if workers < 1 or not timeout_s > 0 or not patience >= 1:
            raise ValueError("a pool needs at least one worker and a timeout above 0 seconds")
        self.workers: set[_Worker] = set()
        self._task, self._memory_mb, self._recycle_after = task, memory_mb, recycle_after
        self._limits = timeout_s, patience
        self._closed = ""  # why no more tasks are taken
        self._lock = threading.Lock()  # of the loop, which the first task starts
        self._loop: LoopThread | None = None
        # On the loop: free places for a process, each with the process where it has one.
        self._free: asyncio.Queue[_Worker | None] = asyncio.Queue()
        for _ in range(workers):
            self._free.put_nowait(None)

    def start(self) -> None:
        """Start the processes now, in the background, rather than with the first tasks."""
        for _ in range(self._free.qsize()):
            self._submit(b"")

    def submit(self, item: Any) -> "Future[Outcome]":
        """Queue one JSON-able item; the future always resolves to an Outcome."""
        return self._submit(json.dumps(item).encode() + b"\n")

    def map(self, items: Iterable[Any]) -> list[Outcome]:
        """Outcomes of all items, in their order. Blocks; callable from any thread."""
        futures = [self.submit(item) for item in items]
        return [future.result() for future in futures]

    def close(self) -> None:
        """Kill every process. Tasks still queued or running resolve to an error."""
        with self._lock:
            self._closed = self._closed or CLOSED
        if self._loop is not None:
            self._finalizer()

    def __enter__(self) -> "KillablePool":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _submit(self, line: bytes) -> "Future[Outcome]":
        told: Future[Outcome] = Future()
        told.set_running_or_notify_cancel()

        def tell(done: "Future[Outcome]") -> None:
            try:
                told.set_result(done.result())
            except CancelledError:
                told.set_result(self._refusal())
            except Exception as error:  # whatever breaks, nobody waits for ever
                told.set_result(Outcome(error=f"the pool broke: {error}", pool_failed=True))

        with self._lock:
            if self._loop is None and not self._closed:
                self._loop = loop = LoopThread("killable-pool")
                self._finalizer = weakref.finalize(self, _end, os.getpid(), loop, self.workers)
        try:
            if self._closed or self._loop is None:
                raise CancelledError
            self._loop.submit(self._run(line)).add_done_callback(tell)
        except CancelledError:
            told.set_result(self._refusal())
        return told

    def _refusal(self) -> Outcome:
        return Outcome(error=self._closed or CLOSED, pool_failed=True)

    async def _run(self, line: bytes) -> Outcome:
        """Run one task where there is a place; no line is no task, and only starts a process."""
        while True:
            worker = await self._free.get()
            kept: _Worker | None = None
            try:
                worker = worker or await self._started()
                if self._closed or worker is None:
                    return self._refusal()
                outcome = await worker.run(line, *self._limits) if line else Outcome()
                if outcome.error is None and worker.done < self._recycle_after:
                    kept = worker
                return outcome
            except OSError as error:  # out of processes or memory: it may pass
                if not line or not self.workers:
                    said = f"no process for the task: {error.strerror}"
                    return Outcome(error=said, pool_failed=True)
                await asyncio.sleep(START_PAUSE_S)
            finally:
                if worker is not None and kept is None:
                    self._retire(worker)
                self._free.put_nowait(kept)

    async def _started(self) -> "_Worker | None":
        """A worker that has imported the task; None where the pool is closed, or breaks by this.

        Raises:
            OSError: there is no process to be had.
        """
        if self._closed:
            return None
        worker = _Worker(self._task, self._memory_mb)
        self.workers.add(worker)
        problem = (await worker.reply()).error
        if problem is None:
            return worker
        self._closed = f"the pool broke: cannot start workers for {self._task}: {problem}"
        self._retire(worker)
        return None

    def _retire(self, worker: "_Worker") -> None:
        self.workers.discard(worker)
        worker.end()


def _end(owner: int, loop: LoopThread, workers: "set[_Worker]") -> None:
    """Close what a pool holds; a forked copy must not end its parent's."""
    if os.getpid() == owner:
        loop.close()
        while workers:
            workers.pop().end()


class _Worker:
    """One process, and the socket to it."""

    def __init__(self, task: str, memory_mb: int) -> None:
        self.done = 0
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        command = [sys.executable, "-P", "-m", "vlaa_jax.rewards.worker", str(theirs.fileno())]
        with theirs:
            self.process = subprocess.Popen(
                [*command, str(os.getpid()), task, str(memory_mb)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches us alone; we end the children
            )

    async def run(self, line: bytes, limit_s: float, patience: float) -> Outcome:
        """What the process makes of a task, within a limit of CPU time, or in any case of time."""
        self.done += 1
        used_before = _cpu_seconds(self.process.pid) or 0.0
        last, left = time.monotonic() + limit_s * patience, limit_s
        try:
            await asyncio.get_running_loop().sock_sendall(self._channel, line)
        except OSError:  # it died before it had the task
            return Outcome(error="the worker died", pool_failed=True)
        reply = asyncio.ensure_future(self.reply())
        try:
            while not (await asyncio.wait([reply], timeout=max(left, 0.001)))[0]:
                used = _cpu_seconds(self.process.pid)
                left = 0.0 if used is None else limit_s - (used - used_before)
                left = min(left, last - time.monotonic())
                if left <= 0:
                    return Outcome(error=f"timed out after {limit_s:g} s", timed_out=True)
            return reply.result()
        finally:
            reply.cancel()

    async def reply(self) -> Outcome:
        """What the process says next."""
        loop, said = asyncio.get_running_loop(), bytearray()
        with contextlib.suppress(OSError):
            while piece := await loop.sock_recv(self._channel, 1 << 16):
                said += piece
                if piece.endswith(b"\n"):
                    answer = json.loads(said)
                    return Outcome(answer.get("value"), answer.get("error"))
        return Outcome(error="the worker died")

    def end(self) -> None:
        """Kill the process and reap it."""
        self.process.kill()
        self.process.wait()
        self._channel.close()


def _cpu_seconds(pid: int) -> float | None:
    """CPU time that a process has used; None where the system does not tell (not Linux)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
