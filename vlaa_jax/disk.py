"""What a disk refuses, in one line, and files that are whole under their name or not there.

A full disk, a used-up quota, a read-only or failing one reach us in many forms: an ``OSError``, the
words of a library in C++ or Rust, an error of a thread that comes up later as the cause of another.
``refusals`` stands at the doors and makes one line of all of them; inside nobody has to ask.
"""

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from vlaa_jax.schema import UserError

ADVICE: Mapping[int, str] = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of the quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "make it writable",
    errno.EACCES: "give this user the right to it",
    errno.EPERM: "give this user the right to it",
    errno.EIO: "look at what the system says of the disk",
    errno.ESTALE: "mount it again",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs",
}
"""What to do, by what the operating system says."""
PARTIAL = ".partial"
"""Ends the name of a file that is being written."""


class Refusal(NamedTuple):
    """What the operating system did not do, and what helps."""

    path: str
    reason: str
    advice: str


def refusal(error: BaseException) -> Refusal | None:
    """What a disk has refused, where that is behind an error; None where something else is.

    Whatever the system says of a path counts, and the errors of ``ADVICE`` without one too.
    """
    for one in _behind(error):
        number, name = None, None
        if isinstance(one, OSError):
            number, name = one.errno, one.filename
        elif not isinstance(one, UserError):
            number = _said(str(one))
        if number is not None and (number in ADVICE or name):
            path = os.fsdecode(name) if isinstance(name, str | bytes) else ""
            return Refusal(path, os.strerror(number), ADVICE.get(number, ""))
    return None


@contextmanager
def refusals(place: Path, then: str | Callable[[], str]) -> Iterator[None]:
    """Makes one line of whatever a disk refuses inside.

    Args:
        place: what is named where the error names no path.
        then: what was kept, and what to do when there is room again.

    Raises:
        UserError: the disk refused something.
    """
    try:
        yield
    except Exception as error:
        told = type(error) is UserError  # by somebody who knows the place, but not the way out
        found = refusal(error)
        if found is None or (told and (not found.advice or found.advice in str(error))):
            raise
        first = str(error) if told else f"{found.path or place}: {found.reason}"
        last = then if isinstance(then, str) else then()
        raise UserError("; ".join(filter(None, (first, found.advice, last)))) from error


@contextmanager
def writing(path: Path, mode: str = "w", newline: str | None = None) -> Iterator[IO[Any]]:
    """A file that gets its name when the block has ended well, and is on the disk then.

    Args:
        path: its name; what had it before stays until then.
        mode: "w" for UTF-8 text, "wb" for bytes.
        newline: as of ``open``.
    """
    partial = path.with_name(path.name + PARTIAL)
    encoding = None if "b" in mode else "utf-8"
    try:
        with open(partial, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # some disks say only now that they are full
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            error.filename = str(path)  # a failed write names none
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a file in one piece."""
    with writing(path) as file:
        file.write(text)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file in one piece."""
    with writing(path, "wb") as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Writes a small JSON file in one piece, for people to read too."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def append(file: IO[bytes], data: bytes) -> None:
    """Adds bytes to a file that is open for appending, unbuffered: all, or none where it fails."""
    descriptor = file.fileno()
    end = os.fstat(descriptor).st_size
    try:
        while data:  # a write may be cut short, e.g. by a signal or by the end of the disk
            data = data[os.write(descriptor, data) :]
    except OSError as error:
        with suppress(OSError):
            os.ftruncate(descriptor, end)  # else the next line would be joined to half of this one
        error.filename = file.name
        raise


def end_output() -> None:
    """Writes out what is still to be said; what cannot be, Python does not complain of at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _behind(error: BaseException) -> Iterator[BaseException]:
    """The error and those it came from, or is made of."""
    yield error
    for part in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield from _behind(part)
    if error.__cause__ is not None:
        yield from _behind(error.__cause__)


def _said(text: str) -> int | None:
    """The error that a library repeats in the system's words."""
    return next((number for number in ADVICE if os.strerror(number) in text), None)
