"""A line now and then: how far a piece of work has come, and how long it still takes."""

import time

from rich.console import Console

_EVERY_SECONDS = 10.0


class Progress:
    """Counts what is done of something and says so.

    Args:
        console: where to say it.
        what: name of the work.
        total: of this run.
        before: what earlier runs did.
    """

    def __init__(self, console: Console, what: str, total: int, before: int = 0) -> None:
        self._console, self._what, self._total, self._before = console, what, total, before
        self._done = 0
        self._start = self._last = time.monotonic()

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        now = time.monotonic()
        if now - self._last >= _EVERY_SECONDS:
            self._last = now
            left = (now - self._start) / self._done * (self._total - self._done)
            self._say(f"{left:,.0f} s left")

    def end(self) -> None:
        """The work is over."""
        self._say(f"{time.monotonic() - self._start:,.1f} s")

    def _say(self, time_words: str) -> None:
        done, total = self._before + self._done, self._before + self._total
        self._console.print(
            f"{self._what}: {done:,} of {total:,}, {time_words}", highlight=False, markup=False
        )
