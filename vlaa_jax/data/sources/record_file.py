"""A file of records in the released form: random access, nothing but offsets in memory."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

from vlaa_jax.data.images.files import opened
from vlaa_jax.data.records.json_index import JsonIndex, index_json
from vlaa_jax.data.records.parse import Parser
from vlaa_jax.data.records.reject import Refusal, Reject
from vlaa_jax.data.sources.source import ParsedSource, iter_indexed
from vlaa_jax.foreign import local_path, parse_json
from vlaa_jax.schema import Record, UserError

MAX_RECORD_BYTES = 8 << 20
MAX_RECORD_DEPTH = 900


class RecordFile(ParsedSource):
    """JSON array or JSON Lines, whatever the suffix; only byte offsets are kept in memory."""

    needs_root = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        image_root: str | os.PathLike[str] | None = None,
        *,
        kind: str | None = None,
        box_space: str | Mapping[str, str] = "normalized",
        columns: Mapping[str, str] | None = None,
        max_record_bytes: int = MAX_RECORD_BYTES,
    ) -> None:
        """Index a file.

        Args:
          path: the file.
          image_root: folder the image paths are relative to; None leaves images out of reach.
          kind: see ``Parser``.
          box_space: see ``Parser``.
          columns: see ``Parser``.
          max_record_bytes: longer records are refused unread.

        Raises:
          UserError: the file cannot be read, or is neither form of JSON.
        """
        self.path, self.kind, self._root = local_path(path), kind, image_root
        self._parse = Parser(kind, box_space, columns or {})
        self._max_bytes = max_record_bytes
        self._fd: int | None = None
        self.spans: JsonIndex = index_json(self.path)

    def __len__(self) -> int:
        return len(self.spans)

    def _read(self, index: int) -> Record:
        return self._parse(self._raw(index), f"{self.path.stem}-{index:06d}", index)

    def _image(self, record: Record, number: int) -> AbstractContextManager[BinaryIO]:
        if self._root is None:
            raise UserError(f"{self.path}: no image root was given")
        return opened(self._root, record.images[number])

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
        if end - start > self._max_bytes:
            raise Refusal("", f"{end - start:,} bytes long, more than {self._max_bytes:,}")
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        return os.pread(self._fd, end - start, start)

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


def iter_records(
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    on_reject: Callable[[Reject], None] | None = None,
    on_duplicate: str = "reject",
    **options: Any,
) -> Iterator[Record]:
    """Stream the records of one file in order, in bounded memory.

    Args:
      path: JSON array or JSON Lines.
      strict: raise at the first refused record; otherwise hand it to ``on_reject`` and go on.
      on_reject: called with every Reject when not strict.
      on_duplicate: see ``iter_indexed``.
      options: of ``RecordFile``.

    Raises:
      UserError: the file is unusable, or (strict) a record is.
    """

    def refuse(reject: Reject) -> None:
        if strict:
            raise UserError(str(reject))
        if on_reject is not None:
            on_reject(reject)

    file = RecordFile(path, **options)
    try:
        for _, record in iter_indexed(file, refuse, on_duplicate):
            yield record
    finally:
        file.close()


def load_records(path: str | os.PathLike[str], **options: Any) -> list[Record]:
    """All records of a file as a list; options as for iter_records."""
    return list(iter_records(path, **options))
