"""Worker processes that can be killed: for code that may hang, like symbolic mathematics.

Signals cannot interrupt such code off the main thread, and a thread cannot be stopped at all, so
each task runs in a process with a deadline, after which the process is killed and replaced. The
pool may be used from any thread, keeps order, survives crashes of its workers, and leaves no
process behind: not on ``close``, not at exit, not on Ctrl-C, and not when this process is killed.
"""

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

START_PAUSE_S = 0.05
"""Before a task for which no process could be started is left to another worker."""


@dataclass(frozen=True)
class Outcome:
    """What became of one task: a value, or an error that says why there is none."""

    value: Any = None
    error: str | None = None
    timed_out: bool = False
    pool_failed: bool = False
    """The error is not the task's: no process for it, or a pool that broke or is closed."""


class _Job(NamedTuple):
    line: bytes
    future: "Future[Outcome]"


class _Terms(NamedTuple):
    task: str
    workers: int
    timeout_s: float
    patience: float
    memory_mb: int
    recycle_after: int


class KillablePool:
    """Runs ``module:function`` on JSON values in processes that are killed when they overrun.

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
        terms = _Terms(task, workers, timeout_s, patience, memory_mb, recycle_after)
        self._crew = _Crew(terms)
        self._finalizer = weakref.finalize(self, self._crew.close)

    def start(self) -> None:
        """Start the processes now, in the background, rather than with the first task."""
        self._crew.start()

    def submit(self, item: Any) -> "Future[Outcome]":
        """Queue one JSON-able item; the future always resolves to an Outcome."""
        job = _Job(json.dumps(item).encode() + b"\n", Future())
        job.future.set_running_or_notify_cancel()
        self._crew.start()
        self._crew.queue(job)
        return job.future

    def map(self, items: Iterable[Any]) -> list[Outcome]:
        """Outcomes of all items, in their order. Blocks; callable from any thread."""
        futures = [self.submit(item) for item in items]
        return [future.result() for future in futures]

    def close(self) -> None:
        """Kill every process. Tasks still queued or running resolve to an error."""
        self._finalizer()

    def __enter__(self) -> "KillablePool":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Crew:
    """A thread for each worker. It holds no pool, so that one nobody uses any more is closed."""

    def __init__(self, terms: _Terms) -> None:
        self._terms = terms
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of all below; who holds it does not wait
        self._closed = ""  # why no more tasks are taken
        self._threads: list[threading.Thread] = []
        self._owner = os.getpid()
        self.workers: set[_Worker] = set()

    # -- called from any thread

    def start(self) -> None:
        with self._lock:
            if self._closed or self._threads:
                return
            for _ in range(self._terms.workers):
                thread = threading.Thread(target=self._run, name="killable-pool", daemon=True)
                self._threads.append(thread)
                thread.start()

    def queue(self, job: _Job) -> None:
        with self._lock:
            if not self._closed:
                self._jobs.put(job)
                return
        job.future.set_result(Outcome(error=self._closed, pool_failed=True))

    def close(self) -> None:
        if os.getpid() != self._owner:  # a forked copy must not end its parent's pool
            return
        self._stop("the pool is closed")
        with self._lock:
            for worker in self.workers:
                worker.process.kill()  # its thread sees that, and reaps it
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _stop(self, reason: str) -> None:
        """Take no more tasks: the threads refuse those in the queue, and end."""
        with self._lock:
            if not self._closed:
                self._closed = reason
                for _ in self._threads:
                    self._jobs.put(None)

    # -- the thread of one worker

    def _run(self) -> None:
        worker = None
        with contextlib.suppress(Exception):  # where it stays, the first task says so
            worker = self._started()
        for job in iter(self._jobs.get, None):
            try:
                worker = self._serve(job, worker)
            except Exception as error:
                self._stop(f"the pool broke: {error}")
                if not job.future.done():  # whatever breaks, nobody waits for ever
                    self.queue(job)
        if worker is not None:
            self._retire(worker)

    def _serve(self, job: _Job, worker: "_Worker | None") -> "_Worker | None":
        """Run one task; the worker for the next, where it can take one."""
        try:
            worker = worker or self._started()
        except OSError as error:  # out of processes or memory: it may pass
            if self.workers:
                time.sleep(START_PAUSE_S)
                self.queue(job)
            else:
                said = f"no process for the task: {error.strerror}"
                job.future.set_result(Outcome(error=said, pool_failed=True))
            return None
        if worker is None:
            self.queue(job)  # which refuses it
            return None
        outcome = worker.run(job.line)
        if outcome.error is not None and self._closed:
            outcome = Outcome(error=self._closed, pool_failed=True)
        job.future.set_result(outcome)
        if outcome.error is None and worker.done < self._terms.recycle_after:
            return worker
        self._retire(worker)
        return None

    def _started(self) -> "_Worker | None":
        """A worker that has imported the task; None where the pool is closed, or breaks by this.

        Raises:
            OSError: there is no process to be had.
        """
        with self._lock:
            if self._closed:
                return None
            worker = _Worker(self._terms)
            self.workers.add(worker)
        problem = worker.reply(None).error
        if problem is None:
            return worker
        self._stop(f"the pool broke: cannot start workers for {self._terms.task}: {problem}")
        self._retire(worker)
        return None

    def _retire(self, worker: "_Worker") -> None:
        with self._lock:
            self.workers.discard(worker)
        worker.end()


class _Worker:
    """One process, and the socket to it."""

    def __init__(self, terms: _Terms) -> None:
        self.done, self._terms = 0, terms
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._channel, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "vlaa_jax.rewards.worker", str(theirs.fileno())),
                    *(str(os.getpid()), terms.task, str(terms.memory_mb)),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches us alone; we end the children
            )

    def run(self, line: bytes) -> Outcome:
        self.done += 1
        clock = _Clock(self.process.pid, self._terms.timeout_s, self._terms.patience)
        try:
            self._channel.settimeout(None)
            self._channel.sendall(line)
        except OSError:  # it died before it had the task
            return Outcome(error="the worker died", pool_failed=True)
        return self.reply(clock)

    def reply(self, clock: "_Clock | None") -> Outcome:
        """What the process says next, waited for as long as a clock allows."""
        said = bytearray()
        while not said.endswith(b"\n"):
            self._channel.settimeout(clock.next_look() if clock else None)
            try:
                piece = self._channel.recv(1 << 16)
            except TimeoutError:
                if clock and clock.is_over():
                    return Outcome(error=f"timed out after {clock.limit_s:g} s", timed_out=True)
                continue
            except OSError:
                piece = b""
            if not piece:
                return Outcome(error="the worker died")
            said += piece
        answer = json.loads(bytes(said))
        return Outcome(answer.get("value"), answer.get("error"))

    def end(self) -> None:
        """Kill the process and reap it."""
        self.process.kill()
        self.process.wait()
        self._channel.close()


class _Clock:
    """When a task has overrun: by its worker's CPU time, or in any case by the clock."""

    def __init__(self, pid: int, limit_s: float, patience: float) -> None:
        self._pid, self.limit_s = pid, limit_s
        self._used_before = _cpu_seconds(pid) or 0.0
        self._look = time.monotonic() + limit_s
        self._last = time.monotonic() + limit_s * patience

    def next_look(self) -> float:
        """Seconds until it may have."""
        return max(0.001, self._look - time.monotonic())

    def is_over(self) -> bool:
        """Whether it has; else the next look is when the CPU time that is left may be used up."""
        used, now = _cpu_seconds(self._pid), time.monotonic()
        left = 0.0 if used is None else self.limit_s - (used - self._used_before)
        self._look = min(now + left, self._last)
        return left <= 0 or now >= self._last


def _cpu_seconds(pid: int) -> float | None:
    """CPU time that a process has used; None where the system does not tell (not Linux)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
