"""A file of records in the released form: random access, nothing but offsets in memory."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

from vlaa_jax.data.records.json_index import JsonIndex, index_json
from vlaa_jax.data.records.parse import (
    KINDS,
    parse_record,
)
from vlaa_jax.data.records.reject import Refusal, Reject
from vlaa_jax.foreign import local_path, parse_json
from vlaa_jax.schema import Record, UserError

MAX_RECORD_BYTES = 8 << 20
MAX_RECORD_DEPTH = 900


class RecordFile(Sequence[Record]):
    """Random access to the records of one file; only byte offsets are kept in memory.

    ``file[i]`` raises UserError where the record is unusable; ``file.read(i)`` returns a Reject
    instead. Safe to use from several threads, and picklable, as Grain wants of a source.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        kind: str | None = None,
        box_space: str | Mapping[str, str] = "normalized",
        max_record_bytes: int = MAX_RECORD_BYTES,
    ) -> None:
        """Index a file.

        Args:
          path: JSON array or JSON Lines, whatever the suffix.
          kind: one of KINDS, or None to take what is there.
          box_space: space of iou boxes that do not name their own (one of BOX_SPACES), or a mapping
            from source to space, whatever the case; sources not in it are "normalized".
          max_record_bytes: longer records are refused unread.

        Raises:
          UserError: the file cannot be read, or is neither form of JSON.
        """
        if kind is not None and kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, not {kind!r}")
        self.path = local_path(path)
        self.kind = kind
        self._box_space: str | dict[str, str] = (
            box_space
            if isinstance(box_space, str)
            else {source.casefold(): space for source, space in box_space.items()}
        )
        self._max_bytes = max_record_bytes
        self._fd: int | None = None
        self.spans: JsonIndex = index_json(self.path)

    def __len__(self) -> int:
        return len(self.spans)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        result = self.read(index)
        if isinstance(result, Reject):
            raise UserError(str(result))
        return result

    def read(self, index: int) -> Record | Reject:
        """The record at ``index``, or why it cannot be used."""
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path}: record {index} of {len(self)}")
        index %= len(self)
        try:
            raw = self._raw(index)
            record = parse_record(raw, fallback_id=f"{self.path.stem}-{index:06d}", kind=self.kind)
        except Refusal as refusal:
            return self.reject(index, refusal.field, refusal.reason, refusal.record_id)
        if record.verifier_type == "iou" and record.box_space is None:
            record = replace(record, box_space=self._space_of(record.source))
        return record

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

    def reject(self, index: int, field: str, reason: str, record_id: str = "") -> Reject:
        """A Reject that names the place of record ``index``."""
        lines = self.spans.lines_N
        line = None if lines is None else int(lines[index])
        return Reject(str(self.path), index, line, record_id, field, reason)

    def _space_of(self, source: str) -> str:
        if isinstance(self._box_space, str):
            return self._box_space
        return self._box_space.get(source.casefold(), "normalized")

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
    kind: str | None = None,
    strict: bool = True,
    on_reject: Callable[[Reject], None] | None = None,
    on_duplicate: str = "reject",
    box_space: str | Mapping[str, str] = "normalized",
) -> Iterator[Record]:
    """Stream the records of one file in order, in bounded memory.

    Args:
      path: JSON array or JSON Lines.
      kind: one of KINDS, or None.
      strict: raise at the first refused record; otherwise hand it to ``on_reject`` and go on.
      on_reject: called with every Reject when not strict.
      on_duplicate: "reject" a repeated id, or "rename" it to ``ID#2``, ``ID#3``, ...
      box_space: see RecordFile.

    Raises:
      UserError: the file is unusable, or (strict) a record is.
    """

    def refuse(reject: Reject) -> None:
        if strict:
            raise UserError(str(reject))
        if on_reject is not None:
            on_reject(reject)

    file = RecordFile(path, kind=kind, box_space=box_space)
    try:
        for _, record in iter_indexed(file, refuse, on_duplicate):
            yield record
    finally:
        file.close()


def iter_indexed(
    file: RecordFile, on_reject: Callable[[Reject], None], on_duplicate: str = "reject"
) -> Iterator[tuple[int, Record]]:
    """The usable records of a file with their positions; the others go to ``on_reject``."""
    if on_duplicate not in ("reject", "rename"):
        raise ValueError(f"on_duplicate must be 'reject' or 'rename', not {on_duplicate!r}")
    seen: dict[str, int] = {}  # ids given out, and the highest number each was renamed with
    for index in range(len(file)):
        result = file.read(index)
        if isinstance(result, Reject):
            on_reject(result)
            continue
        if result.id not in seen:
            seen[result.id] = 1
            yield index, result
        elif on_duplicate == "rename":
            yield index, replace(result, id=_renamed(result.id, seen))
        else:
            on_reject(file.reject(index, "id", "used before in this file", result.id))
    if end := file.problem_at_end():
        on_reject(end)


def _renamed(record_id: str, seen: dict[str, int]) -> str:
    """``ID#2``, ``ID#3``, ...: the first that no record before bears, noted in ``seen``."""
    while True:
        seen[record_id] += 1
        name = f"{record_id}#{seen[record_id]}"
        if name not in seen:
            seen[name] = 1
            return name


def load_records(path: str | os.PathLike[str], **options: Any) -> list[Record]:
    """All records of a file as a list; options as for iter_records."""
    return list(iter_records(path, **options))
