"""What the public sources are made of: JSON files, Parquet files, image files, conversations."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlaa_jax.data.images.files import resolve_inside
from vlaa_jax.data.records.json_index import index_json
from vlaa_jax.data.sources.record_file import MAX_RECORD_BYTES
from vlaa_jax.foreign import parse_json
from vlaa_jax.schema import UserError

MAX_IMAGE_BYTES = 32 << 20
MAX_TEXT = 1 << 17
_MARKER = re.compile(r"\s*<image>\s*")
_OPTION = re.compile(r"\A\s*(?:[(\[]\s*([A-Z])\s*[)\]]|([A-Z])\s*[).:\]]|([A-Z])(?=\s*\Z))\s*")


class Unusable(Exception):
    """A row that cannot become a sample: a short phrase that is the same for all of its kind."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class ImageFile:
    """A locator: an image file below a folder, under the first of its possible names."""

    folder: Path
    names: tuple[str, ...]

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            Unusable: none of the names is there, or the file is too large.
        """
        path = self.path()
        try:
            with path.open("rb") as file:
                return _bounded(file.read(MAX_IMAGE_BYTES + 1))
        except OSError as error:
            raise Unusable("image unreadable", str(error.strerror)) from None

    def path(self) -> Path:
        """Where the file lies.

        Raises:
            Unusable: none of the names is there.
        """
        problems = []
        for name in self.names:
            try:
                return resolve_inside(self.folder, name)
            except UserError as error:
                problems.append(str(error))
        outside = next((told for told in problems if "link that leaves" in told), None)
        if outside:  # else all of a source looks missing whose images lie on another disk
            raise Unusable("image is a link out of the source's folder", outside)
        raise Unusable("image missing", problems[0])


@dataclass(frozen=True)
class ParquetImage:
    """A locator: the image column of one row of a Parquet file."""

    file: Path
    group: int
    row: int

    def path(self) -> Path:
        """There is none; whoever wants a link takes the bytes."""
        raise FileNotFoundError(self.file)

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            Unusable: the row holds no image, or one that is too large.
        """
        value = _image_column(self.file, self.group)[self.row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes) or not data:
            raise Unusable("image missing", f"{self.file.name} row {self.row}")
        return _bounded(data)


@dataclass(frozen=True)
class Row:
    """What an adapter finds in one place of a source."""

    name: str
    """Unique within the source; becomes part of the id and of the image's name."""
    image: ImageFile | ParquetImage
    suffix: str = ""
    """Path of the image below the source's image folder; empty: named after the row."""
    question: str = ""
    gt: str = ""
    verifier_type: str = ""
    """Empty: that of the source."""
    context: str = ""
    caption: str = ""
    caption_model: str = ""
    thought: str = ""
    answer: str = ""
    uses: tuple[str, ...] = ()
    """Which of "sft" and "rl" it may become; empty: what the source allows."""
    meta: Mapping[str, Any] = field(default_factory=dict)


def maker(make: Callable[..., Row], row: Any, *rest: Any) -> Callable[[], Row]:
    """``make(row, *rest)`` for later, which refuses what is no mapping."""

    return lambda: make(object_of(row), *rest)


def object_of(value: Any) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Unusable: it is none.
    """
    if isinstance(value, Unusable):
        raise value
    if not isinstance(value, dict):
        raise Unusable("row is no object")
    return value


def one_file(folder: Path, *names: str) -> Path:
    """The first of several file names that is there.

    Raises:
        UserError: none is.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: holds none of {', '.join(names)}; see docs/pipeline.md, sources")


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Elements of a JSON array or JSON Lines with their places; a broken one is an Unusable.

    Raises:
        UserError: the file is neither.
    """
    index = index_json(path)
    with path.open("rb") as file:
        for number, (start, end) in enumerate(index.spans_N2):
            place = f"{path.name}#{number}"
            if end - start > MAX_RECORD_BYTES:
                yield place, Unusable("row too large", f"{end - start} bytes")
                continue
            yield place, parsed(os.pread(file.fileno(), int(end - start), int(start)))


def parsed(data: bytes) -> Any:
    """A parsed value; an Unusable where there is none."""
    try:
        return parse_json(data, finite=False)
    except ValueError as error:
        return Unusable("row is not JSON", str(error)[:200])


def parquet_rows(paths: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Rows of Parquet files as mappings, each with its ParquetImage as ``image``."""
    pq = _parquet()
    for path in paths:
        with pq.ParquetFile(path) as file:
            wanted = [name for name in columns if name in file.schema_arrow.names]
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=wanted)
                for number, row in enumerate(table.to_pylist()):
                    row["image"] = ParquetImage(path, group, number)
                    yield f"{path.name}#{group}.{number}", row


@lru_cache(maxsize=1)
def _image_column(path: Path, group: int) -> Any:
    with _parquet().ParquetFile(path) as file:
        return file.read_row_group(group, columns=["image"]).column("image")


def _parquet() -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError("Parquet sources need pyarrow: pip install 'vlaa_jax[pipeline]'") from None
    return pq


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_IMAGE_BYTES:
        raise Unusable("image too large", f"more than {MAX_IMAGE_BYTES >> 20} MiB")
    return data


def text_of(row: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """A text field, stripped; null is as good as missing.

    Raises:
        Unusable: it is missing (without a default), empty, too long or no text.
    """
    value = row.get(name)
    value = default if value is None else value
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise Unusable(f"field {name} missing" if value is None else f"field {name} is no text")
    if len(value) > MAX_TEXT:
        raise Unusable(f"field {name} too long", f"{len(value)} characters")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise Unusable(f"field {name} is not Unicode text")
    if not value.strip() and default is None:
        raise Unusable(f"field {name} empty")
    return value.strip()


def image_of(row: Mapping[str, Any], folder: Path, *below: str) -> ImageFile | ParquetImage:
    """The locator in the field ``image``: a path, looked for in folders ``below`` too, or Parquet.

    Raises:
        Unusable: it is neither.
    """
    image = row.get("image")
    if isinstance(image, ParquetImage):
        return image
    path = text_of(row, "image")
    return ImageFile(folder, (path, *(f"{name}/{path}" for name in below)))


def conversation(row: Mapping[str, Any]) -> tuple[str, str]:
    """First question and answer of a LLaVA-style ``conversations`` list, without image markers.

    Raises:
        Unusable: it is no such list.
    """
    turns = row.get("conversations")
    if not isinstance(turns, list) or len(turns) < 2:
        raise Unusable("field conversations has no two turns")
    if not all(isinstance(turn, dict) for turn in turns[:2]):
        raise Unusable("field conversations holds no turns")
    human, model = text_of(turns[0], "value"), text_of(turns[1], "value")
    return _MARKER.sub("\n", human).strip(), model


def option_letter(text: str) -> tuple[str | None, str]:
    """The letter that an option or a label begins with, and the rest: ``(B) cat``, ``B: cat``."""
    match = _OPTION.match(text)
    if match is None:
        return None, text.strip()
    return next(letter for letter in match.groups() if letter), text[match.end() :].strip()
