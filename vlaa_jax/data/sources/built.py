"""Reads a finished build: records and images at random, for Grain or by hand."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from grain.sources import ArrayRecordDataSource
from PIL import Image

from vlaa_jax.data.images.files import decode_image
from vlaa_jax.data.samples.measure import Built
from vlaa_jax.data.sources.shards import FORMAT, MANIFEST, file_digest
from vlaa_jax.foreign import local_path
from vlaa_jax.schema import Record, UserError

_FIELDS = (
    "id",
    "question",
    "gt",
    "verifier_type",
    "answer",
    "source",
    "caption",
    "box_space",
)
_Parts = Mapping[str, type | tuple[type, ...]]
_MANIFEST_PARTS: _Parts = {
    "settings": dict,
    "golds_checked": bool,
    "record_shards": list,
    "image_shards": list,
    "kept": int,
}
_SETTINGS_PARTS: _Parts = {"kind": str, "box_space": (str, dict)}
_SHARD_PARTS: _Parts = {"name": str, "bytes": int, "count": int, "sha256": str}


class BuiltRecords(Sequence[Record]):
    """The records of a build. Their lengths are in ``meta["built"]``.

    ``meta["built"]`` holds ``tokens``, ``image_tokens``, ``patches``, ``image_sizes`` and
    ``image_numbers``, all of the pixel limits that the build was made with. Picklable, and safe to
    use from several threads.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Open a build.

        Raises:
          UserError: the folder holds no finished build, or one of another format; its manifest is
            incomplete; or a shard is missing or has another size.
        """
        self.folder = local_path(folder)
        self.manifest = _read_manifest(self.folder)
        self._records = self._source("record_shards")
        self._images = self._source("image_shards")

    def _source(self, which: str) -> ArrayRecordDataSource | None:
        paths = []
        for shard in self.manifest[which]:
            path = self.folder / shard["name"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise UserError(f"{path}: is missing or incomplete; run the build again")
            if shard["count"]:
                paths.append(str(path))
        return ArrayRecordDataSource(paths) if paths else None

    def verify(self) -> None:
        """Compare every shard with its digest; raises UserError at the first that differs."""
        for shard in [*self.manifest["record_shards"], *self.manifest["image_shards"]]:
            path = self.folder / shard["name"]
            if file_digest(path) != shard["sha256"]:
                raise UserError(f"{path}: differs from its digest in {MANIFEST}")

    def __len__(self) -> int:
        return int(self.manifest["kept"])

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if self._records is None or not -len(self) <= index < len(self):
            raise IndexError(f"{self.folder}: record {index} of {len(self)}")
        row: dict[str, Any] = json.loads(self._records[int(index) % len(self)])
        known = {name: row.pop(name) for name in _FIELDS}
        images, meta = tuple(row.pop("images")), row.pop("meta")
        return Record(**known, images=images, meta={**meta, "built": Built(row)})

    def images(self, record: Record) -> tuple[Image.Image, ...]:
        """The decoded images of one of the records, upright."""
        pairs = zip(self.encoded_images(record), record.images, strict=True)
        return tuple(decode_image(data, path) for data, path in pairs)

    def encoded_images(self, record: Record) -> tuple[bytes, ...]:
        """The image files of one of the records, byte for byte."""
        numbers = record.meta["built"]["image_numbers"]
        if numbers and self._images is None:
            raise UserError(f"{self.folder}: holds no images")
        return tuple(self._images[number] for number in numbers)  # type: ignore[index]


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished build of this version's format, with all that is read of it."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: holds no finished build ({MANIFEST})") from error
    if not isinstance(manifest, dict):
        raise UserError(f"{folder}: holds no finished build ({MANIFEST})")
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{folder}: is a build of format {manifest.get('format')!r}, this version reads format "
            f"{FORMAT}; build again, into another folder"
        )
    gap = _gap(manifest, _MANIFEST_PARTS) or _gap(manifest["settings"], _SETTINGS_PARTS)
    for which in () if gap else ("record_shards", "image_shards"):
        for shard in manifest[which]:
            gap = gap or (_gap(shard, _SHARD_PARTS) if isinstance(shard, dict) else which)
    if gap:
        raise UserError(
            f"{folder / MANIFEST}: {gap!r} is missing or malformed; build again, into another "
            "folder"
        )
    return manifest


def _gap(found: Mapping[str, Any], parts: _Parts) -> str | None:
    """The first part that is not there or of another type."""
    wrong = (name for name, kind in parts.items() if not isinstance(found.get(name), kind))
    return next(wrong, None)
