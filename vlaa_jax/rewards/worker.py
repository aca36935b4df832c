"""The far side of ``pool.KillablePool``: a process that runs one function on JSON lines.

Run as ``python -m vlaa_jax.rewards.worker CHANNEL_FD PARENT_PID MODULE:FUNCTION MEMORY_MB``. The
first line it sends says that the function is imported, or why it cannot be. Messages are JSON:
nothing is unpickled.
"""

import contextlib
import importlib
import importlib.util
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

ORPHAN_CHECK_S = 1.0

Task = Callable[[Any], Any]


def main(argv: list[str]) -> None:
    """Answer one JSON line with another until the channel closes. Never returns."""
    channel = socket.socket(fileno=int(argv[1]))
    _die_with(int(argv[2]))
    limit = int(argv[4]) * 2**20
    try:
        task = load_task(argv[3])
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        channel.sendall(_answer(lambda _: "ready", b"null"))
        with channel.makefile("rb") as lines:
            for line in lines:
                channel.sendall(_answer(task, line))
    except Exception as error:  # the parent reports it; there is no one else to tell
        channel.sendall(_error(error))
    finally:
        os._exit(0)


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


def _answer(task: Task, line: bytes) -> bytes:
    try:
        return json.dumps({"value": task(json.loads(line))}).encode() + b"\n"
    except BaseException as error:
        return _error(error)


def _error(error: BaseException) -> bytes:
    return json.dumps({"error": f"{type(error).__name__}: {error}"[:500]}).encode() + b"\n"


def _die_with(parent: int) -> None:
    """End this process when its parent ends, however that happens."""
    with contextlib.suppress(Exception):  # Linux does it by itself, whatever the task does
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_CHECK_S)
        os._exit(1)

    if sys.platform != "linux":
        threading.Thread(target=watch, daemon=True).start()
    elif os.getppid() != parent:  # it ended before it could be asked for the signal
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv)
