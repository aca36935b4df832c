"""Worker processes that can be killed: for code that may hang, like symbolic mathematics.

Signals cannot interrupt such code off the main thread, and a thread cannot be stopped at all, so
each task runs in a process with a deadline, after which the process is killed and replaced. The
pool may be used from any thread, keeps order, survives crashes of its workers, and leaves no
process behind: not on ``close``, not at exit, not on Ctrl-C, and not when this process is killed.
"""

import contextlib
import json
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from vlaa_jax.rewards import worker as protocol


@dataclass(frozen=True)
class Outcome:
    """What became of one task: a value, or an error that says why there is none."""

    value: Any = None
    error: str | None = None
    timed_out: bool = False
    pool_failed: bool = False
    """The error is not the task's: no process for it, or a pool that broke or is closed."""


@dataclass
class _Job:
    line: bytes
    timeout_s: float
    future: "Future[Outcome]"


@dataclass(eq=False)
class _Worker:
    pid: int
    channel: socket.socket
    job: _Job | None = None
    deadline: float = 0.0
    """When to look next whether it overran, by the monotonic clock."""
    last: float = 0.0
    """When it overran in any case."""
    used_s: float = 0.0
    """CPU seconds before its task."""
    reply: bytearray = field(default_factory=bytearray)
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
        self._dispatcher = _Dispatcher(task, workers, patience, memory_mb, recycle_after)
        self._finalizer = weakref.finalize(self, self._dispatcher.close)

    def start(self) -> None:
        """Start the processes now, in the background, rather than with the first task."""
        self._dispatcher.start()

    def submit(self, item: Any, timeout_s: float | None = None) -> "Future[Outcome]":
        """Queue one JSON-able item; the future always resolves to an Outcome."""
        return self._dispatcher.submit(item, timeout_s or self.timeout_s)

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


class _Dispatcher:
    """One thread that owns the nursery and all workers; everyone else only queues jobs."""

    def __init__(
        self, task: str, workers: int, patience: float, memory_mb: int, recycle_after: int
    ) -> None:
        self._patience = patience
        self._task, self._size = task, workers
        self._memory_mb, self._recycle_after = memory_mb, recycle_after
        self._jobs: deque[_Job] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._reason = "the pool is closed"
        self._owner = os.getpid()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_out.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._nursery: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    # -- called from any thread

    def start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name="killable-pool", daemon=True)
                self._thread.start()

    def submit(self, item: Any, timeout_s: float) -> "Future[Outcome]":
        future: Future[Outcome] = Future()
        future.set_running_or_notify_cancel()
        line = json.dumps(item).encode() + b"\n"
        self.start()
        with self._lock:
            if self._closing:
                future.set_result(Outcome(error=self._reason, pool_failed=True))
                return future
            self._jobs.append(_Job(line, timeout_s, future))
        self._wake()
        return future

    def close(self) -> None:
        if os.getpid() != self._owner:  # a forked copy must not end its parent's pool
            return
        with self._lock:
            self._closing = True
        self._wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        for end in (self._wake_in, self._wake_out):
            end.close()
        self._selector.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_in.send(b".")

    # -- the dispatcher thread

    def _run(self) -> None:
        try:
            self._selector.register(self._wake_out, selectors.EVENT_READ, None)
            self._hatch()
            while not self._closing:
                self._assign()
                self._wait()
        except Exception as error:
            self._reason = f"the pool broke: {error}"
        finally:
            self._end()

    def _hatch(self) -> None:
        """Start the nursery and wait until it has imported the task."""
        ours, theirs = socket.socketpair()
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        with theirs:
            self._nursery = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", protocol.__name__, str(theirs.fileno())),
                    *(str(os.getpid()), self._task, str(self._memory_mb)),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches us alone; we end the children
            )
        self._control = ours
        while not self._closing:
            ours.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                state = ours.recv(1)
                ours.settimeout(None)
                if state == protocol.READY:
                    return
                detail = ours.recv(4000).decode(errors="replace") if state else "it died"
                raise RuntimeError(f"cannot start workers for {self._task}: {detail}")

    def _assign(self) -> None:
        """Give waiting jobs to idle workers, forking new ones up to the pool's size."""
        while self._jobs and (self._idle or len(self._busy) < self._size):
            try:
                worker = self._idle.pop() if self._idle else self._fork()
            except _ForkError as error:
                if self._busy:
                    return  # one of these takes the job
                with self._lock:
                    job = self._jobs.popleft()
                reason = f"no process for the task: {error}"
                job.future.set_result(Outcome(error=reason, pool_failed=True))
                continue
            with self._lock:
                worker.job = self._jobs.popleft()
            self._busy.add(worker)
            limit, now = worker.job.timeout_s, time.monotonic()
            worker.used_s = _cpu_seconds(worker.pid) or 0.0
            worker.deadline, worker.last = now + limit, now + limit * self._patience
            try:
                worker.channel.sendall(worker.job.line)
            except OSError:  # it died before it had the task
                outcome = Outcome(error="the worker died", pool_failed=True)
                self._finish(worker, outcome, reusable=False)

    def _wait(self) -> None:
        """Handle replies, deaths and deadlines; return when there may be something to assign."""
        soonest = min((worker.deadline for worker in self._busy), default=None)
        patience = None if soonest is None else max(0.0, soonest - time.monotonic())
        for key, _ in self._selector.select(patience):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    self._wake_out.recv(4096)
            else:
                self._read(key.data)
        now = time.monotonic()
        for worker in [w for w in self._busy if w.deadline <= now]:
            limit = worker.job.timeout_s if worker.job else 0.0
            used = _cpu_seconds(worker.pid)
            left = 0.0 if used is None else limit - (used - worker.used_s)
            if left > 0 and now < worker.last:
                worker.deadline = min(now + left, worker.last)
                continue
            outcome = Outcome(error=f"timed out after {limit:g} s", timed_out=True)
            self._finish(worker, outcome, reusable=False)

    def _read(self, worker: _Worker) -> None:
        try:
            piece = worker.channel.recv(1 << 16)
        except OSError:
            piece = b""
        worker.reply += piece
        if not piece:
            self._finish(worker, Outcome(error="the worker died"), reusable=False)
        elif worker.reply.endswith(b"\n"):
            reply = json.loads(bytes(worker.reply))
            error = reply.get("error")
            self._finish(worker, Outcome(reply.get("value"), error), reusable=error is None)

    def _finish(self, worker: _Worker, outcome: Outcome, reusable: bool) -> None:
        job, worker.job = worker.job, None
        self._busy.discard(worker)
        worker.reply.clear()
        worker.done += 1
        if job is not None:  # first of all: whatever breaks below, nobody waits for ever
            job.future.set_result(outcome)
        if reusable and worker.done < self._recycle_after:
            self._idle.append(worker)
        else:
            self._retire(worker)

    def _fork(self) -> _Worker:
        assert self._control is not None
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [protocol.FORK], [theirs.fileno()])
            pid = self._confirmed_pid()
        if pid < 0:
            ours.close()
            raise _ForkError(os.strerror(-pid))
        worker = _Worker(pid, ours)
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return worker

    def _retire(self, worker: _Worker) -> None:
        assert self._control is not None
        self._selector.unregister(worker.channel)
        worker.channel.close()
        if worker in self._idle:
            self._idle.remove(worker)
        self._control.sendall(protocol.KILL + protocol.PID.pack(worker.pid))
        self._confirmed_pid()

    def _confirmed_pid(self) -> int:
        assert self._control is not None
        data = b""
        while len(data) < protocol.PID.size:
            piece = self._control.recv(protocol.PID.size - len(data))
            if not piece:
                raise RuntimeError("the nursery process died")
            data += piece
        pid: int = protocol.PID.unpack(data)[0]
        return pid

    def _end(self) -> None:
        """Let the nursery kill and reap its workers, make sure of it, and resolve what is left."""
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)
            self._control.close()
        if self._nursery is not None:
            try:
                self._nursery.wait(timeout=2.0)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._nursery.pid, 9)
                self._nursery.wait()
        for worker in [*self._busy, *self._idle]:
            worker.channel.close()
        with self._lock:
            self._closing = True
            jobs = [worker.job for worker in self._busy if worker.job] + list(self._jobs)
            self._jobs.clear()
        for job in jobs:
            job.future.set_result(Outcome(error=self._reason, pool_failed=True))


def _cpu_seconds(pid: int) -> float | None:
    """CPU time that a process has used; None where the system does not tell (not Linux)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
