"""The far side of ``pool.KillablePool``: a nursery process that forks workers on demand.

Run as ``python -m vlaa_jax.rewards.worker CONTROL_FD PARENT_PID MODULE:FUNCTION MEMORY_MB``. The
nursery imports the function once, so a worker that had to be killed is replaced in milliseconds
rather than after another import of SymPy. It has one thread and never runs a task itself, so it can
always fork, kill and notice that its parent is gone. Messages are JSON: nothing is unpickled.
"""

import contextlib
import errno
import gc
import importlib
import importlib.util
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

READY, FAILED = b"R", b"E"
FORK, KILL = b"F", b"K"
PID = struct.Struct("!q")
"""Answer to either request: the process; for a fork that failed, minus the error number."""
ORPHAN_CHECK_S = 1.0

Task = Callable[[Any], Any]


def receive_pid(control: socket.socket) -> int:
    """The next process number on a socket.

    Raises:
        ConnectionError: the other side is gone.
    """
    data = control.recv(PID.size, socket.MSG_WAITALL)
    if len(data) < PID.size:
        raise ConnectionError("the nursery process died")
    pid: int = PID.unpack(data)[0]
    return pid


def main(argv: list[str]) -> int:
    """Serve fork and kill requests until the control socket closes or the parent disappears."""
    control = socket.socket(fileno=int(argv[1]))
    parent, memory_mb = int(argv[2]), int(argv[4])
    try:
        task = load_task(argv[3])
    except Exception as error:  # the parent reports it; there is no one else to tell
        control.sendall(FAILED + f"{type(error).__name__}: {error}".encode()[:4000])
        return 1
    gc.collect()
    gc.freeze()  # keeps the imported pages shared between workers
    control.sendall(READY)
    children: set[int] = set()
    try:
        _serve(control, parent, task, memory_mb, children)
    except (ConnectionError, OSError):
        pass
    finally:
        for pid in children:
            _kill(pid)
    return 0


def load_task(path: str) -> Task:
    """The function named by ``module:function``; calls ``module.warm_up()`` where there is one.

    A module may also be a local file, ``/path/FILE.py``, whose folder it may import from.
    """
    module_name, _, name = path.rpartition(":")
    if module_name.endswith(".py"):
        sys.path.insert(0, os.path.dirname(module_name))
        spec = importlib.util.spec_from_file_location("vlaa_custom_reward", module_name)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(module_name)
    if hasattr(module, "warm_up"):
        module.warm_up()
    task: Task = getattr(module, name)
    return task


def _serve(
    control: socket.socket, parent: int, task: Task, memory_mb: int, children: set[int]
) -> None:
    while True:
        readable, _, _ = select.select([control], [], [], ORPHAN_CHECK_S)
        if not readable:
            _reap(children)
            # A copy of the parent's socket in some other child would hide the parent's death.
            if os.getppid() != parent:
                return
            continue
        command, fds, _, _ = socket.recv_fds(control, 1, 1)
        if command == FORK:
            try:
                pid = os.fork()
            except OSError as error:  # out of processes or memory: it may pass
                pid = -(error.errno or errno.EAGAIN)
            if pid == 0:
                control.close()
                _work(socket.socket(fileno=fds[0]), task, memory_mb)
            os.close(fds[0])
            if pid > 0:
                children.add(pid)
            control.sendall(PID.pack(pid))
        elif command == KILL:
            pid = receive_pid(control)
            # A child that has been reaped is gone, and its number may be somebody else's.
            if pid in children:
                # A process that had gigabytes takes a while to go: its successor need not wait.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            control.sendall(PID.pack(pid))
        else:
            return
        _reap(children)


def _reap(children: set[int]) -> None:
    """Collect the children that have ended."""
    for pid in list(children):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                continue
        children.discard(pid)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _work(channel: socket.socket, task: Task, memory_mb: int) -> None:
    """Answer one JSON line with another until the channel closes. Never returns."""
    _die_with_nursery()
    limit = memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with channel.makefile("rb") as lines:
            for line in lines:
                channel.sendall(_answer(task, line) + b"\n")
    finally:
        os._exit(0)


def _answer(task: Task, line: bytes) -> bytes:
    try:
        return json.dumps({"value": task(json.loads(line))}).encode()
    except BaseException as error:
        return json.dumps({"error": f"{type(error).__name__}: {error}"[:500]}).encode()


def _die_with_nursery() -> None:
    """Ask Linux to kill this process when the nursery dies, however that happens."""
    with contextlib.suppress(Exception):
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
