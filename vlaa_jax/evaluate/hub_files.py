"""The originals from the Hugging Face hub, from a local folder: parquet, JSON or JSON Lines.

Files are taken in natural order of their names, so that ``sample_variant10`` follows
``sample_variant9``. Images are bytes in the records, or paths inside the folder.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlaa_jax.evaluate.nouns import Benchmark
from vlaa_jax.evaluate.questions import (
    MAX_ROWS,
    Columns,
    Questions,
    plain_index,
)
from vlaa_jax.foreign import MAX_IMAGE_BYTES, parse_json, read_bytes, read_text
from vlaa_jax.schema import UserError

MAX_JSON_BYTES = 2**30
_SUFFIXES = (".parquet", ".jsonl", ".json")
_IMAGE_FIELDS = ("decoded_image", "image", "image_path")

Image = bytes | Path


def read_folder(folder: Path, benchmark: Benchmark) -> Questions:
    """The questions of a benchmark in a folder of its original.

    Raises:
        UserError: no files, a file that cannot be read, or an image outside the folder.
    """
    files = _files(folder)
    rows: list[Columns] = []
    images: list[list[Image]] = []
    dropped = 0
    records = (record for file in files for record in _records(file))
    for place, record in enumerate(records):
        if place >= MAX_ROWS:
            raise UserError(f"{folder}: more than {MAX_ROWS:,} records")
        try:
            columns = benchmark.from_hub(record, place)
        except (TypeError, AttributeError) as error:
            raise UserError(
                f"{folder}: record {place + 1} has a field of another kind than {benchmark.title} "
                f"has ({error})"
            ) from error
        if columns is None:
            continue
        found = _images(record, folder, place)
        if not found:
            dropped += 1
            continue
        rows.append({**columns, "index": plain_index(columns["index"])})
        images.append(found)

    def read(place: int) -> list[bytes]:
        return [_bytes(image, folder) for image in images[place]]

    return Questions(rows, read, str(folder), _digest(files), dropped)


def _files(folder: Path) -> list[Path]:
    for suffix in _SUFFIXES:
        files = sorted(folder.rglob(f"*{suffix}"), key=lambda path: _natural(path.name))
        if files:
            return files
    raise UserError(f"{folder}: holds no parquet, JSON or JSON Lines file")


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _records(file: Path) -> Iterator[Mapping[str, Any]]:
    if file.suffix == ".parquet":
        yield from _parquet(file)
        return
    text = read_text(file, MAX_JSON_BYTES)
    try:
        if file.suffix == ".jsonl":
            found = [parse_json(line, finite=False) for line in text.split("\n") if line.strip()]
        else:
            found = parse_json(text, finite=False)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    values = list(found.values()) if isinstance(found, dict) else found
    if not isinstance(values, list):
        raise UserError(f"{file}: holds no records")
    for place, record in enumerate(values):
        if not isinstance(record, dict):
            raise UserError(f"{file}: record {place + 1} is no object")
        yield record


def _parquet(file: Path) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{file}: needs pyarrow; pip install 'vlaa_jax[eval]'") from None
    try:
        with ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=64):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error


def _images(record: Mapping[str, Any], folder: Path, place: int) -> list[Image]:
    for field in _IMAGE_FIELDS:
        value = record.get(field)
        found = [_image(item) for item in (value if isinstance(value, list) else [value]) if item]
        if found and all(image is not None for image in found):
            return [image if isinstance(image, bytes) else Path(image) for image in found if image]
    return []


def _image(value: Any) -> bytes | str | None:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    return value if isinstance(value, bytes | str) else None


def _bytes(image: Image, folder: Path) -> bytes:
    from vlaa_jax.data.images.files import resolve_inside

    if isinstance(image, bytes):
        return image
    return read_bytes(resolve_inside(folder, image.as_posix()), MAX_IMAGE_BYTES)


def _digest(files: list[Path]) -> str:
    lines = [f"{file.name} {file.stat().st_size}" for file in files]
    return hashlib.md5("\n".join(lines).encode(), usedforsecurity=False).hexdigest()
