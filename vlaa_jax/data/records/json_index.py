"""Where each element of a JSON array or JSON Lines file begins and ends, in bounded memory.

The released files do not say which of the two they are: ``VLAA-Thinking-SFT-126K.json`` (623 MB) is
JSON Lines despite its suffix. The scan looks at bytes only and never parses, so that one broken
element (bad UTF-8, bad escape) is one refused record and not a refused file.
"""

import re
from array import array
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
            first, start, line = _first_byte(file)
            file.seek(start)
            if first == b"[":
                return _index_array(file, start, path)
            if first == b"{":
                return _index_lines(file, start, line, path)
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


def _first_byte(file: BinaryIO) -> tuple[bytes, int, int]:
    """The first byte that is no blank (empty if there is none), where it is, and in which line."""
    offset, line = 0, 1
    while chunk := file.read(_CHUNK):
        body = chunk.removeprefix(b"" if offset else _BOM).lstrip()
        blank = len(chunk) - len(body)
        offset, line = offset + blank, line + chunk.count(b"\n", 0, blank)
        if body:
            return body[:1], offset, line
    return b"", offset, line


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


def _index_lines(file: BinaryIO, start: int, number: int, path: Path) -> JsonIndex:
    spans, lines = _Spans(path), array("q")
    end, first = start, b""  # first byte of what is in the line beside blanks
    while piece := file.readline(_CHUNK):  # a line may come in many pieces
        end, first = end + len(piece), first or piece.lstrip()[:1]
        if piece.endswith(b"\n"):
            if first:
                spans.add(start, end - 1, first == b"{")
                lines.append(number)
            start, number, first = end, number + 1, b""
    if first:
        spans.add(start, end, first == b"{")
        lines.append(number)
    return JsonIndex(False, spans.as_array(), np.array(lines, np.int64), bool(first))


def _index_array(file: BinaryIO, start: int, path: Path) -> JsonIndex:
    spans, end, closed_at = _Spans(path), start, -1
    element_start, is_object = start + 1, False
    depth, in_string, i = 0, False, 0
    while chunk := file.read(_CHUNK):
        while closed_at < 0:
            outside = _TOP_LEVEL if depth == 1 else _NESTED
            match = (_IN_STRING if in_string else outside).search(chunk, i)
            if match is None:
                break
            i, token, at = match.end(), match.group(), end + match.start()
            if token == b'"':
                in_string = not in_string
            elif token == b"\\":
                i += 1
            elif token in b"[{":
                depth += 1
                is_object = token == b"{" if depth == 2 else is_object
            else:
                depth -= token in b"]}"
                if token == b"," or not depth:
                    spans.add(element_start, at, is_object)
                    element_start, is_object = at + 1, False
                    closed_at = -1 if depth else at
        end, i = end + len(chunk), max(0, i - len(chunk))  # an escape may end in the next chunk
        if closed_at >= 0 and chunk[max(0, len(chunk) + closed_at + 1 - end) :].strip():
            raise UserError(
                f"{path}: more data follows the array, which closes at byte {closed_at}; "
                "mend the file or split it in two"
            )
    if closed_at < 0:
        spans.add(element_start, end, is_object)
    spans_N2 = spans.as_array()
    if _is_blank(file, *spans_N2[-1].tolist()):
        spans_N2 = spans_N2[:-1]  # an empty array, a comma before the closing bracket or the cut
    return JsonIndex(True, spans_N2, None, closed_at < 0)


def _is_blank(file: BinaryIO, start: int, end: int) -> bool:
    file.seek(start)
    while start < end and (chunk := file.read(min(_CHUNK, end - start))):
        if chunk.strip():
            return False
        start += len(chunk)
    return True
