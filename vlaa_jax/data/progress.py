"""A progress bar on a terminal, a line now and then elsewhere; always on stderr."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_EVERY_SECONDS = 10.0


def progress(items: Iterable[T], total: int, what: str, show: bool = True) -> Iterator[T]:
    """Yield the items and tell how far it has come; ``what`` names the work."""
    if not show:
        yield from items
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, what, total, console=Console(stderr=True))
    else:
        yield from _lines(items, total, what)


def _lines(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    start = last = time.monotonic()
    done = 0
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last > _EVERY_SECONDS:
            last, left = now, (now - start) / done * (total - done)
            print(f"{what}: {done:,} of {total:,}, {left:,.0f} s left", file=sys.stderr)
    print(f"{what}: {done:,} in {time.monotonic() - start:,.1f} s", file=sys.stderr)
