"""A file for image plugins that read in Python: bounds on how often and how much they may ask."""

import os
from typing import BinaryIO

from vlaa_jax.schema import UserError

MAX_READS = 1 << 18
"""An image of 256 MiB in PNG chunks of 8 KiB takes half of this; a plugin takes a second for all.

Formats are chains of blocks that may be a few bytes long, so that a file can keep its plugin busy
for minutes before the first pixel.
"""


class Metered:
    """What Pillow asks of a file, and no file descriptor, past which libraries could read.

    Args:
      file: opened, seekable; it is read from its beginning.
      name: for the message.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._left = MAX_READS
        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        """The next bytes; UserError after too many calls."""
        self._count()
        # A block may say that it has 4 GB, which read() would reserve before it looks.
        left = max(0, self._size - self._file.tell())
        return self._file.read(left if size < 0 else min(size, left))

    def readline(self, size: int = -1) -> bytes:
        """The next line; UserError after too many calls."""
        self._count()
        return self._file.readline(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of a file; UserError after too many calls."""
        self._count()
        return self._file.seek(offset, whence)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise UserError(f"image {self._name!r} is damaged: it has no end of tiny blocks")
