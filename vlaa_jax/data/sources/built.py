"""Reads a finished build: records and images at random, for Grain or by hand."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlaa_jax import digests
from vlaa_jax.data.sources.shards import FORMAT, MANIFEST
from vlaa_jax.data.sources.stored import TEXTS, StoredSource
from vlaa_jax.schema import Lengths, Record, UserError

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


def looks_so(path: Path, start: bytes) -> bool:
    """Whether a folder holds a build."""
    return (path / MANIFEST).is_file()


class BuiltRecords(StoredSource):
    """The records of a build, with their lengths at the pixel limits that it was made with."""

    def _open(self) -> None:
        self.manifest = _read_manifest(self.path)
        settings = self.manifest["settings"]
        self.golds_checked = bool(self.manifest["golds_checked"])
        self._made_for("a build", settings["kind"], settings["box_space"])
        self._records = self._shards("record_shards")
        self._images = self._shards("image_shards")

    def _shards(self, which: str) -> Any:
        from grain.sources import ArrayRecordDataSource  # brings jax, which `check` does not need

        paths = []
        for shard in self.manifest[which]:
            path = self.path / shard["name"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise UserError(f"{path}: is missing or incomplete; run the build again")
            if shard["count"]:
                paths.append(str(path))
        return ArrayRecordDataSource(paths) if paths else None

    def verify(self) -> None:
        """Compare every shard with its digest; raises UserError at the first that differs."""
        for shard in [*self.manifest["record_shards"], *self.manifest["image_shards"]]:
            path = self.path / shard["name"]
            if digests.of_file(path) != shard["sha256"]:
                raise UserError(f"{path}: differs from its digest in {MANIFEST}")

    def __len__(self) -> int:
        return int(self.manifest["kept"])

    def _row(self, index: int) -> dict[str, Any]:
        return dict(json.loads(self._records[index]))

    def _read(self, index: int) -> Record:
        row = self._row(index)
        sizes = tuple((int(width), int(height)) for width, height in row["image_sizes"])
        return Record(
            **{name: row[name] for name in TEXTS},
            images=tuple(row["images"]),
            meta=row["meta"],
            place=index,
            lengths=Lengths(int(row["tokens"]), sizes),
        )

    def encoded_images(self, record: Record) -> tuple[bytes, ...]:
        """The image files of one of the records, byte for byte."""
        return tuple(self._images[number] for number in self._row(record.place)["image_numbers"])


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
