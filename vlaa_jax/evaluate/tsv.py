"""Reading the public tables (TSV) with their images in base64.

Only the text columns are kept; where a row stands in the file is remembered, and its images are
read from there when they are wanted.
"""

import base64
import binascii
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vlaa_jax.evaluate.questions import (
    MAX_ROWS,
    Columns,
    Questions,
    missing_as_none,
    plain_index,
)
from vlaa_jax.foreign import MAX_IMAGE_BYTES
from vlaa_jax.schema import UserError

MAX_CELL = 2 * MAX_IMAGE_BYTES
_REFERENCE = 64
"""An image cell of at most this many characters names the row whose image it shares."""


class _Lines:
    """Lines of a file as text, with the place where the next one begins."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self.place = 0

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(MAX_CELL + 1):
            if len(line) > MAX_CELL:
                raise UserError(f"{self._name}: a line is longer than {MAX_CELL:,} bytes")
            self.place += len(line)
            try:
                yield line.decode("utf-8-sig" if self.place == len(line) else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{self._name}: not UTF-8 near byte {self.place}") from error


def read_table(path: Path, digest: str) -> Questions:
    """The rows of a table, and their images on demand.

    Raises:
        UserError: no table, not UTF-8, too large, or a row with a wrong number of cells.
    """
    csv.field_size_limit(MAX_CELL)
    rows: list[Columns] = []
    spans: list[tuple[int, int]] = []
    by_index: dict[str | None, int] = {}
    dropped = 0
    with path.open("rb") as file:
        lines = _Lines(file, str(path))
        records = csv.reader(iter(lines), delimiter="\t")
        header = _next(records, path)
        if header is None or "index" not in header:
            raise UserError(f"{path}: the first line names no column 'index'")
        start = lines.place
        while (record := _next(records, path)) is not None:
            if len(record) != len(header):
                raise UserError(
                    f"{path}: row {len(spans) + 1} has {len(record)} cells, not {len(header)}"
                )
            named = dict(zip(header, record, strict=True))
            image = named.pop("image", "")
            row: Columns = {column: missing_as_none(text) for column, text in named.items()}
            row["index"] = plain_index(named["index"])
            if image or named.get("image_path"):
                by_index[row["index"]] = len(rows)
                rows.append(row)
                spans.append((start, lines.place))
            else:
                dropped += 1
            start = lines.place
            if len(rows) > MAX_ROWS:
                raise UserError(f"{path}: more than {MAX_ROWS:,} rows")
    images = _Images(path, header, spans, by_index)
    return Questions(rows, images, str(path), digest, dropped)


def _next(records: Iterator[list[str]], path: Path) -> list[str] | None:
    try:
        return next(records, None)
    except csv.Error as error:
        raise UserError(f"{path}: not a table ({error})") from error


class _Images:
    """Images of the rows of a table, from where the rows stand in the file."""

    def __init__(
        self,
        path: Path,
        header: list[str],
        spans: list[tuple[int, int]],
        by_index: dict[str | None, int],
    ) -> None:
        self._path, self._header, self._spans, self._by_index = path, header, spans, by_index

    def __call__(self, place: int) -> list[bytes]:
        """Encoded images of the row at a place.

        Raises:
            UserError: they cannot be decoded, or a reference leads nowhere.
        """
        cell = self._cell(place)
        if 0 < len(cell) <= _REFERENCE:
            shared = self._by_index.get(plain_index(cell))
            if shared is None:
                raise UserError(f"{self._name(place)}: shares the image of row {cell!r}, unknown")
            cell = self._cell(shared)
        parts = cell.strip("[]").split(",") if cell.startswith("[") else [cell]
        return [_decoded(part.strip(" '\""), self._name(place)) for part in parts]

    def _cell(self, place: int) -> str:
        start, end = self._spans[place]
        with self._path.open("rb") as file:
            file.seek(start)
            text = file.read(end - start).decode("utf-8")
        record = next(csv.reader(io.StringIO(text, newline=""), delimiter="\t"))
        cells = dict(zip(self._header, record, strict=True))
        return cells.get("image", "")

    def _name(self, place: int) -> str:
        return f"{self._path}: image of row {place + 1}"


def _decoded(text: str, name: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{name}: not base64 ({error})") from error
    if not data or len(data) > MAX_IMAGE_BYTES:
        raise UserError(f"{name}: {len(data):,} bytes, not within 1 and {MAX_IMAGE_BYTES:,}")
    return data
