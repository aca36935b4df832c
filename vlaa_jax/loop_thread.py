"""An event loop in a thread of its own, for callers that are not asynchronous."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines on its own event loop.

    Work may be handed in from any thread. Close it to end the thread; whoever still waits for
    something then gets a CancelledError.
    """

    def __init__(self, name: str = "endpoint") -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._open: set[Future[Any]] | None = set()  # None once closing
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Start a coroutine on the loop.

        Raises:
            CancelledError: the loop is closed, or about to be.
        """
        with self._lock:
            if self._open is None:
                work.close()
                raise CancelledError("the event loop is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._open.add(future)
        future.add_done_callback(self._forget)
        return future

    def _forget(self, future: "Future[Any]") -> None:
        with self._lock:
            if self._open is not None:
                self._open.discard(future)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; interrupting the caller cancels it."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancel what still runs and end the thread."""
        if threading.current_thread() is self._thread:  # by a finalizer: it may run anywhere
            threading.Thread(target=self.close).start()
            return
        with self._lock:
            left, self._open = self._open, None  # what comes from here on is refused
        if left is None:
            return
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result(timeout=5.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5.0)
        for future in left:
            future.cancel()  # handed in, but never begun
        if not self._thread.is_alive():
            self._loop.close()


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
