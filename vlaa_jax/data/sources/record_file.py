"""A file of records in the released form: random access, nothing but offsets in memory."""

import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

from vlaa_jax.data.images.files import opened
from vlaa_jax.data.records.json_index import JsonIndex, index_json
from vlaa_jax.data.records.parse import Refusal
from vlaa_jax.data.sources.source import ParsedSource, Reject, iter_indexed
from vlaa_jax.foreign import parse_json
from vlaa_jax.schema import Record, UserError

MAX_RECORD_DEPTH = 900


class RecordFile(ParsedSource):
    """JSON array or JSON Lines, whatever the suffix; only byte offsets are kept in memory."""

    needs_root = True
    max_record_bytes = 8 << 20
    """Longer records are refused unread."""
    _fd: int | None = None

    @staticmethod
    def looks_so(path: Path, start: bytes) -> bool:
        """Any file may be one."""
        return path.is_file()

    def _open(self) -> None:
        super()._open()
        self.spans: JsonIndex = index_json(self.path)

    def __len__(self) -> int:
        return len(self.spans)

    def _read(self, index: int) -> Record:
        return self._parse(self._raw(index), f"{self.path.stem}-{index:06d}", index)

    def _image(self, record: Record, number: int) -> AbstractContextManager[BinaryIO]:
        if self.root is None:
            raise UserError(f"{self.path}: no image root was given")
        return opened(self.root, record.images[number])

    def problem_at_end(self) -> Reject | None:
        """Says so when the array is never closed; the records before the cut are whole."""
        if not (self.spans.truncated and self.spans.is_array):
            return None
        reason = "the array is not closed; was the download cut short?"
        return Reject(str(self.path), len(self), None, "", "", reason)

    def encoded(self, index: int) -> bytes:
        """The bytes of a record as they are in the file.

        Raises:
          Refusal: there are more than the limit.
        """
        start, end = (int(x) for x in self.spans.spans_N2[index])
        if end - start > self.max_record_bytes:
            raise Refusal("", f"{end - start:,} bytes long, more than {self.max_record_bytes:,}")
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        return os.pread(self._fd, end - start, start)

    def mentions(self, index: int, pattern: re.Pattern[bytes]) -> bool:
        """Whether the bytes of a record hold a pattern; not where they are too many."""
        try:
            return pattern.search(self.encoded(index)) is not None
        except Refusal:
            return False

    def _raw(self, index: int) -> Any:
        data = self.encoded(index)
        try:
            # NaN is told by its field; how deep a record may be is for its fields to say, too.
            return parse_json(data, finite=False, max_depth=MAX_RECORD_DEPTH)
        except ValueError as error:
            cut = self.spans.truncated and index == len(self) - 1
            hint = "; the file ends inside it, was the download cut short?" if cut else ""
            raise Refusal("", f"{error}{hint}") from error

    def line(self, index: int) -> int | None:
        """Line of a record; None in an array."""
        lines = self.spans.lines_N
        return None if lines is None else int(lines[index])

    def close(self) -> None:
        """Close the file; reading opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __del__(self) -> None:
        if getattr(self, "_fd", None) is not None:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fd": None}


def load_records(
    path: str | os.PathLike[str],
    *,
    on_reject: Callable[[Reject], None] | None = None,
    on_duplicate: str = "reject",
    **options: Any,
) -> list[Record]:
    """All records of a file as a list.

    Args:
      path: JSON array or JSON Lines.
      on_reject: called with every record that is refused; None stops at the first.
      on_duplicate: see ``iter_indexed``.
      options: of ``RecordFile``.

    Raises:
      UserError: the file is unusable, or (without ``on_reject``) a record is.
    """

    def stop(reject: Reject) -> None:
        raise UserError(str(reject))

    file = RecordFile(path, **options)
    try:
        return [record for _, record in iter_indexed(file, on_reject or stop, on_duplicate)]
    finally:
        file.close()
