"""The table of sources: which there are, and what opens a path."""

import os
from typing import Any

from vlaa_jax.data.sources.built import MANIFEST, BuiltRecords
from vlaa_jax.data.sources.conversations import Conversations
from vlaa_jax.data.sources.parquet import ParquetRecords
from vlaa_jax.data.sources.record_file import RecordFile
from vlaa_jax.data.sources.source import Source
from vlaa_jax.data.sources.tfds_set import TfdsRecords
from vlaa_jax.foreign import local_path
from vlaa_jax.schema import UserError

SOURCES: tuple[type[Source], ...] = (
    BuiltRecords, TfdsRecords, ParquetRecords, Conversations, RecordFile,
)  # fmt: skip
"""A path is opened by the first that it looks like."""
_START = 1 << 16


def source_class(path: str | os.PathLike[str]) -> type[Source]:
    """The class that opens a path; cheap.

    Raises:
      UserError: there is nothing, or a folder that holds none of these.
    """
    place = local_path(path)
    start = b""
    try:
        if place.is_file():
            with place.open("rb") as file:
                start = file.read(_START)
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror})") from error
    for source in SOURCES:
        if source.looks_so(place, start):
            return source
    if not place.exists():
        raise UserError(f"{place}: does not exist")
    raise UserError(f"{place}: holds no finished build ({MANIFEST}), TFDS set or Parquet file")


def open_source(
    path: str | os.PathLike[str], image_root: str | os.PathLike[str] | None = None, **options: Any
) -> Source:
    """Opens whatever holds records.

    Args:
      path: record file, conversations, Parquet, folder of a build or of a TFDS set.
      image_root: folder that image paths are relative to, where the source has none of its own.
      options: kind, box space and columns; see ``Source``.

    Raises:
      UserError: it cannot be opened, or is of another kind.
    """
    opens = source_class(path)
    if opens.needs_root and image_root is not None and not local_path(image_root).is_dir():
        raise UserError(f"{image_root}: no such image folder")
    return opens(path, image_root, **options)
