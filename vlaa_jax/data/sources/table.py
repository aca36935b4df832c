"""The table of sources: how each is told from the others, and what opens it."""

import os
from collections.abc import Mapping
from typing import Any

from vlaa_jax.data.sources import built, conversations, parquet, tfds_set
from vlaa_jax.data.sources.built import BuiltRecords
from vlaa_jax.data.sources.conversations import Conversations
from vlaa_jax.data.sources.parquet import ParquetRecords
from vlaa_jax.data.sources.record_file import RecordFile
from vlaa_jax.data.sources.source import Source
from vlaa_jax.data.sources.tfds_set import TfdsRecords
from vlaa_jax.foreign import local_path
from vlaa_jax.schema import UserError

SOURCES = (
    ("a build", built.looks_so, BuiltRecords),
    ("a TFDS data set", tfds_set.looks_so, TfdsRecords),
    ("Parquet files", parquet.looks_so, ParquetRecords),
    ("conversations", conversations.looks_so, Conversations),
    ("records", lambda path, start: path.is_file(), RecordFile),
)
"""What it is, whether a path with a file of this beginning is one, and its class; the first that
is."""
_START = 1 << 16


def source_class(path: str | os.PathLike[str]) -> Any:
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
    for _, looks_so, opens in SOURCES:
        if looks_so(place, start):
            return opens
    if not place.exists():
        raise UserError(f"{place}: does not exist")
    raise UserError(
        f"{place}: holds no finished build ({built.MANIFEST}), TFDS set or Parquet file"
    )


def open_source(
    path: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None = None,
    *,
    kind: str | None = None,
    box_space: str | Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
) -> Source:
    """Opens whatever holds records.

    Args:
      path: record file, conversations, Parquet, folder of a build or of a TFDS set.
      image_root: folder that image paths are relative to, where the source has none of its own.
      kind: "grpo", "sft" or None; see ``Parser``.
      box_space: of boxes that do not say it; see ``Parser``.
      columns: names of fields in this source; see ``Parser``.

    Raises:
      UserError: it cannot be opened, or is of another kind.
    """
    opens = source_class(path)
    if opens.needs_root and image_root is not None and not local_path(image_root).is_dir():
        raise UserError(f"{image_root}: no such image folder")
    found: Source = opens(path, image_root, kind=kind, box_space=box_space, columns=columns)
    return found
