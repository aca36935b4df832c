"""Processes that decode and encode for a loader, in place of threads.

Grain's own ``mp_prefetch`` deals the stream to its workers, so that batches and saved states depend
on their number, and it wants command-line flags parsed. Here the stream, its order and its state
stay in the loader's process; only the work on single elements goes to others, so that nothing
depends on how many there are.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from vlaa_jax.schema import UserError

_function: Callable[..., Any] | None = None


class Workers:
    """Runs one function in processes. They start with the first call, and end with ``close``.

    The processes are spawned: a script that uses them needs ``if __name__ == "__main__":``. They
    end by themselves when the process that started them is gone.
    """

    def __init__(self, function: Callable[..., Any], processes: int) -> None:
        """Hand ``function``, which must be picklable, to each process once."""
        self.executor = ProcessPoolExecutor(
            processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(function,),
        )

    def __call__(self, *args: Any) -> Any:
        """The function's result; what it raises is raised here."""
        return self.submit(*args)()

    def submit(self, *args: Any) -> Callable[[], Any]:
        """Begin a call; the function that is returned waits for its result.

        Raises:
          UserError: what the call raised, or a process died.
        """
        try:
            return Waiting(self.executor.submit(_call, *args))
        except BrokenProcessPool as error:
            raise _died() from error


class Waiting:
    """A result that is being made."""

    def __init__(self, future: "Future[Any]") -> None:
        self._future = future

    def __call__(self) -> Any:
        """Wait for it."""
        try:
            return self._future.result()
        except BrokenProcessPool as error:
            raise _died() from error


def _died() -> UserError:
    return UserError(
        "a process of the loader died: out of memory, killed, or the script that started it has "
        "no `if __name__ == '__main__':`; with processes=0 threads do the work"
    )


def _begin(function: Callable[..., Any]) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the loader's, which ends us
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _call(*args: Any) -> Any:
    assert _function is not None
    return _function(*args)
