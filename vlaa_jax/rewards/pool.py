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

from vlaa_jax.rewards import worker as protocol


@dataclass(frozen=True)
class Outcome:
    """What became of one task: a value, or an error that says why there is none."""

    value: Any = None
    error: str | None = None
    timed_out: bool = False
    pool_failed: bool = False
    """The error is not the task's: no process for it, or a pool that broke or is closed."""


FORK_PAUSE_S = 0.05
"""Before a task for which no process could be started is given to another worker."""


class _Job(NamedTuple):
    line: bytes
    timeout_s: float
    future: "Future[Outcome]"


@dataclass(eq=False)
class _Worker:
    pid: int
    channel: socket.socket
    done: int = 0


class _ForkError(Exception):
    """The nursery could not start a process."""


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
        self.workers = workers
        self.timeout_s = timeout_s
        self._crew = _Crew(task, workers, patience, memory_mb, recycle_after)
        self._finalizer = weakref.finalize(self, self._crew.close)

    def start(self) -> None:
        """Start the processes now, in the background, rather than with the first task."""
        self._crew.start()

    def submit(self, item: Any, timeout_s: float | None = None) -> "Future[Outcome]":
        """Queue one JSON-able item; the future always resolves to an Outcome."""
        return self._crew.submit(item, timeout_s or self.timeout_s)

    def map(self, items: Iterable[Any], timeout_s: float | None = None) -> list[Outcome]:
        """Outcomes of all items, in their order. Blocks; callable from any thread."""
        futures = [self.submit(item, timeout_s) for item in items]
        return [future.result() for future in futures]

    def close(self) -> None:
        """Kill every process. Tasks still queued or running resolve to an error."""
        self._finalizer()

    def __enter__(self) -> "KillablePool":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Crew:
    """A nursery process, and a thread for each worker that it forks."""

    def __init__(
        self, task: str, size: int, patience: float, memory_mb: int, recycle_after: int
    ) -> None:
        self._task, self._size, self._patience = task, size, patience
        self._memory_mb, self._recycle_after = memory_mb, recycle_after
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # who holds it does not wait
        self._closed = ""  # the reason, once no more tasks are taken
        self._threads: list[threading.Thread] = []
        self._owner = os.getpid()
        self._talk = threading.Lock()  # one request to the nursery at a time
        self._control, self._theirs = socket.socketpair()
        self.nursery: subprocess.Popen[bytes] | None = None
        self.workers: set[_Worker] = set()

    # -- called from any thread

    def start(self) -> None:
        with self._lock:
            if not self._closed and not self._threads:
                self._threads = [
                    threading.Thread(target=self._run, name="killable-pool", daemon=True)
                    for _ in range(self._size)
                ]
                for thread in self._threads:
                    thread.start()

    def submit(self, item: Any, timeout_s: float) -> "Future[Outcome]":
        job = _Job(json.dumps(item).encode() + b"\n", timeout_s, Future())
        job.future.set_running_or_notify_cancel()
        self.start()
        self._queue(job)
        return job.future

    def close(self) -> None:
        if os.getpid() != self._owner:  # a forked copy must not end its parent's pool
            return
        self._stop("the pool is closed")
        if self.nursery is not None:
            self._end(self.nursery)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._control.close()
        self._theirs.close()

    def _queue(self, job: _Job) -> None:
        with self._lock:
            if self._closed:
                job.future.set_result(Outcome(error=self._closed, pool_failed=True))
            else:
                self._jobs.put(job)

    def _stop(self, reason: str) -> None:
        """Take no more tasks: the threads refuse those in the queue, and end."""
        with self._lock:
            if not self._closed:
                self._closed = reason
                for _ in self._threads:
                    self._jobs.put(None)

    def _end(self, nursery: "subprocess.Popen[bytes]") -> None:
        """Let the nursery kill and reap its workers, and make sure of it."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        try:
            nursery.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(nursery.pid, 9)
            nursery.wait()

    # -- the thread of a worker

    def _run(self) -> None:
        worker = None
        try:
            with self._talk:
                if self.nursery is None:
                    self._hatch()
        except Exception as error:
            self._stop(f"the pool broke: {error}")
        for job in iter(self._jobs.get, None):
            try:
                worker = self._serve(job, worker)
            except Exception as error:
                self._stop(f"the pool broke: {error}")
                if not job.future.done():
                    self._queue(job)  # which refuses it
        if worker is not None:
            worker.channel.close()

    def _serve(self, job: _Job, worker: _Worker | None) -> _Worker | None:
        """Run one task; the worker for the next, if it can take one."""
        if self._closed:
            self._queue(job)
            return worker
        try:
            worker = worker or self._fork()
        except _ForkError as error:
            if self.workers:  # one of these takes the task
                time.sleep(FORK_PAUSE_S)
                self._queue(job)
            else:
                said = f"no process for the task: {error}"
                job.future.set_result(Outcome(error=said, pool_failed=True))
            return None
        outcome = self._outcome(job, worker)
        worker.done += 1
        # First of all: whatever breaks below, nobody waits for ever.
        job.future.set_result(outcome)
        if outcome.error is None and worker.done < self._recycle_after:
            return worker
        self._retire(worker)
        return None

    def _outcome(self, job: _Job, worker: _Worker) -> Outcome:
        reply = bytearray()
        clock = _Clock(worker.pid, job.timeout_s, self._patience)
        try:
            worker.channel.settimeout(None)
            worker.channel.sendall(job.line)
            while not reply.endswith(b"\n"):
                worker.channel.settimeout(clock.next_look())
                try:
                    piece = worker.channel.recv(1 << 16)
                except TimeoutError:
                    if clock.is_over():
                        return Outcome(error=f"timed out after {job.timeout_s:g} s", timed_out=True)
                    continue
                if not piece:
                    raise ConnectionError
                reply += piece
        except OSError:
            if self._closed:
                return Outcome(error=self._closed, pool_failed=True)
            return Outcome(error="the worker died")
        said = json.loads(bytes(reply))
        return Outcome(said.get("value"), said.get("error"))

    # -- the nursery; whoever speaks to it holds ``_talk``

    def _hatch(self) -> None:
        """Start the nursery and wait until it has imported the task."""
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        with self._lock:
            if self._closed:
                return
            self.nursery = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", protocol.__name__, str(self._theirs.fileno())),
                    *(str(os.getpid()), self._task, str(self._memory_mb)),
                ],
                pass_fds=[self._theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches us alone; we end the children
            )
            self._theirs.close()
        state = self._control.recv(1)
        if state != protocol.READY:
            detail = self._control.recv(4000).decode(errors="replace") if state else "it died"
            raise RuntimeError(f"cannot start workers for {self._task}: {detail}")

    def _fork(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs, self._talk:
            socket.send_fds(self._control, [protocol.FORK], [theirs.fileno()])
            pid = protocol.receive_pid(self._control)
        if pid < 0:
            ours.close()
            raise _ForkError(os.strerror(-pid))
        worker = _Worker(pid, ours)
        self.workers.add(worker)
        return worker

    def _retire(self, worker: _Worker) -> None:
        self.workers.discard(worker)
        worker.channel.close()
        with self._talk:
            self._control.sendall(protocol.KILL + protocol.PID.pack(worker.pid))
            protocol.receive_pid(self._control)


class _Clock:
    """When a task has overrun: by its worker's CPU time, or in any case by the clock."""

    def __init__(self, pid: int, limit_s: float, patience: float) -> None:
        self._pid, self._limit_s = pid, limit_s
        self._used_before = _cpu_seconds(pid) or 0.0
        self._look = time.monotonic() + limit_s
        self._last = time.monotonic() + limit_s * patience

    def next_look(self) -> float:
        """Seconds until it may have."""
        return max(0.001, self._look - time.monotonic())

    def is_over(self) -> bool:
        """Whether it has; else the next look is when the CPU time that is left may be used up."""
        used, now = _cpu_seconds(self._pid), time.monotonic()
        left = 0.0 if used is None else self._limit_s - (used - self._used_before)
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
