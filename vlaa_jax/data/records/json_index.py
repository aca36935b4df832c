"""Where each element of a JSON array or JSON Lines file begins and ends, in bounded memory.

The released files do not say which of the two they are: ``VLAA-Thinking-SFT-126K.json`` (623 MB) is
JSON Lines despite its suffix. The scan looks at bytes only and never parses, so that one broken
element (bad UTF-8, bad escape) is one refused record and not a refused file.
"""

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vlaa_jax.data.records.foreign_forms import guess_file
from vlaa_jax.foreign import refuse_dangling, refuse_pointer
from vlaa_jax.schema import UserError

_CHUNK = 1 << 20
MAX_STRAYS = 1000
"""Elements in a row that are no objects, after which a file is no file of records."""
_BOM = b"\xef\xbb\xbf"
_IN_STRING = re.compile(rb'["\\]')
_TOP_LEVEL = re.compile(rb'["\[\]{},]')
_NESTED = re.compile(rb'["\[\]{}]')


@dataclass(frozen=True)
class JsonIndex:
    """Byte spans of the elements of one file."""

    is_array: bool
    spans_N2: np.ndarray
    """int64 [N, 2]: first byte and one past the last byte."""
    lines_N: np.ndarray | None
    """int64 [N]: line numbers from 1; None for an array."""
    truncated: bool
    """True when an array is not closed, or the last line has no line end."""

    def __len__(self) -> int:
        return len(self.spans_N2)


def index_json(path: Path) -> JsonIndex:
    """Index a JSON array or JSON Lines file.

    Raises:
      UserError: the file cannot be read, is empty, begins with neither ``[`` nor ``{``, goes on
        after the closing bracket of its array, or holds MAX_STRAYS elements in a row that are no
        objects.
    """
    try:
        refuse_dangling(path)
        with path.open("rb") as file:
            refuse_pointer(path, file.read(64))
            file.seek(0)
            first, start = _first_byte(file)
            file.seek(start)
            if first == b"[":
                return _index_array(file, start, path)
            if first == b"{":
                return _index_lines(file, start, path)
            file.seek(0)
            guess = guess_file(file.read(1000))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not first:
        raise UserError(f"{path}: the file is empty; expected a JSON array or JSON Lines")
    raise UserError(
        f"{path}: begins with {first!r}; expected a JSON array ('[') or JSON Lines ('{{')"
        + (f"; {guess}" if guess else "")
    )


def _first_byte(file: BinaryIO) -> tuple[bytes, int]:
    offset = 0
    while chunk := file.read(_CHUNK):
        if offset == 0 and chunk.startswith(_BOM):
            chunk, offset = chunk[len(_BOM) :], len(_BOM)
        body = chunk.lstrip()
        if body:
            return body[:1], offset + len(chunk) - len(body)
        offset += len(chunk)
    return b"", 0


def _chunks(file: BinaryIO, offset: int) -> Iterator[tuple[int, bytes]]:
    while chunk := file.read(_CHUNK):
        yield offset, chunk
        offset += len(chunk)


class _Spans:
    """Spans as they are found: sixteen bytes each, and a bound on elements that are no objects."""

    def __init__(self, path: Path) -> None:
        self._path, self._bounds, self._strays = path, array("q"), 0

    def add(self, start: int, end: int, is_object: bool) -> None:
        """Note an element; UserError after too many in a row that are no objects."""
        self._bounds.extend((start, end))
        self._strays = 0 if is_object else self._strays + 1
        if self._strays >= MAX_STRAYS:
            count = len(self._bounds) // 2
            raise UserError(
                f"{self._path}: is no file of records: {MAX_STRAYS:,} elements in a row are no "
                f"objects, from number {count - MAX_STRAYS} to byte {end}"
            )

    def as_array(self) -> np.ndarray:
        """int64 [N, 2]."""
        return np.array(self._bounds, np.int64).reshape(-1, 2)


def _index_lines(file: BinaryIO, start: int, path: Path) -> JsonIndex:
    spans, lines = _Spans(path), array("q")
    line_start, number = start, 1 + _newlines_before(file, start)
    first = b""  # of what is in the line beside blanks
    file.seek(start)
    end = start
    for offset, chunk in _chunks(file, start):
        end, i = offset + len(chunk), 0
        while (j := chunk.find(b"\n", i)) >= 0:
            if first := first or chunk[i:j].lstrip()[:1]:
                spans.add(line_start, offset + j, first == b"{")
                lines.append(number)
            number, i, line_start, first = number + 1, j + 1, offset + j + 1, b""
        first = first or chunk[i:].lstrip()[:1]
    if first:
        spans.add(line_start, end, first == b"{")
        lines.append(number)
    return JsonIndex(False, spans.as_array(), np.array(lines, np.int64), bool(first))


def _newlines_before(file: BinaryIO, start: int) -> int:
    file.seek(0)
    count = 0
    while start > 0 and (chunk := file.read(min(start, _CHUNK))):
        count, start = count + chunk.count(b"\n"), start - len(chunk)
    return count


def _index_array(file: BinaryIO, start: int, path: Path) -> JsonIndex:
    scan = _ArrayScan(path)
    closed_at = -1
    for offset, chunk in _chunks(file, start):
        if closed_at < 0:
            closed_at = scan.feed(offset, chunk)
            rest = chunk[closed_at + 1 - offset :] if closed_at >= 0 else b""
        else:
            rest = chunk
        if rest.strip():
            raise UserError(
                f"{path}: more data follows the array, which closes at byte {closed_at}; "
                "mend the file or split it in two"
            )
    if closed_at < 0:
        scan.end_element(scan.end)
    spans_N2 = scan.spans.as_array()
    if _is_blank(file, *spans_N2[-1].tolist()):
        spans_N2 = spans_N2[:-1]  # an empty array, a comma before the closing bracket or the cut
    return JsonIndex(True, spans_N2, None, closed_at < 0)


class _ArrayScan:
    """Finds the commas and the closing bracket of the outermost array, chunk by chunk."""

    def __init__(self, path: Path) -> None:
        self.spans = _Spans(path)
        self.end = 0
        self._element_start = 0
        self._depth = 0
        self._in_string = self._is_object = False
        self._skip = 0

    def feed(self, offset: int, chunk: bytes) -> int:
        """Scan one chunk; returns the byte offset of the closing bracket, or -1."""
        i, self._skip, self.end = self._skip, 0, offset + len(chunk)
        while i < len(chunk):
            pattern = _TOP_LEVEL if self._depth == 1 else _NESTED
            match = (_IN_STRING if self._in_string else pattern).search(chunk, i)
            if match is None:
                return -1
            i, token = match.end(), match.group()
            if token == b'"':
                self._in_string = not self._in_string
            elif token == b"\\":
                i += 1
                self._skip = max(0, i - len(chunk))
            elif self._punctuation(token, offset + match.start()):
                return offset + match.start()
        return -1

    def _punctuation(self, token: bytes, at: int) -> bool:
        if token in b"[{":
            self._depth += 1
            if self._depth == 1:
                self._element_start = at + 1
            elif self._depth == 2:
                self._is_object = token == b"{"
            return False
        if token in b"]}":
            self._depth -= 1
            if self._depth > 0:
                return False
        self.end_element(at)
        return self._depth == 0

    def end_element(self, at: int) -> None:
        """Note the element that ends before byte ``at``."""
        self.spans.add(self._element_start, at, self._is_object)
        self._element_start, self._is_object = at + 1, False


def _is_blank(file: BinaryIO, start: int, end: int) -> bool:
    file.seek(start)
    while start < end and (chunk := file.read(min(_CHUNK, end - start))):
        if chunk.strip():
            return False
        start += len(chunk)
    return True
