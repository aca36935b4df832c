"""The files of a build: ArrayRecord shards with a note beside each, and what reads them."""

import json
from pathlib import Path
from typing import Any

from array_record.python import array_record_module

from vlaa_jax import digests, disk
from vlaa_jax.data.sources.source import TEXTS, StoredSource
from vlaa_jax.schema import Lengths, Record, UserError

FORMAT = 2
MANIFEST = "manifest.json"
_SHARDS = [{"name": str, "bytes": int, "count": int, "sha256": str}]
_FORM = {
    "settings": {"kind": str, "box_space": (str, dict)},
    "golds_checked": bool,
    "record_shards": _SHARDS,
    "image_shards": _SHARDS,
    "kept": int,
}
"""What is read of a manifest."""


class BuiltRecords(StoredSource):
    """The records of a build, with their lengths at the pixel limits that it was made with."""

    @staticmethod
    def looks_so(path: Path, start: bytes) -> bool:
        """Whether a folder holds a build."""
        return (path / MANIFEST).is_file()

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
    except (OSError, ValueError):
        manifest = None
    if not isinstance(manifest, dict):
        raise UserError(f"{folder}: holds no finished build ({MANIFEST})")
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{folder}: is a build of format {manifest.get('format')!r}, this version reads format "
            f"{FORMAT}; build again, into another folder"
        )
    if gap := _gap(manifest, _FORM):
        raise UserError(
            f"{folder / MANIFEST}: {gap!r} is missing or malformed; build again, into another "
            "folder"
        )
    return manifest


def _gap(found: Any, form: Any, name: str = "") -> str | None:
    """The name of the first part that is not there or of another form."""
    kind: Any = type(form) if isinstance(form, list | dict) else form
    if not isinstance(found, kind):
        return name
    parts: list[tuple[Any, Any, str]] = []
    if isinstance(form, list):
        parts = [(one, form[0], name) for one in found]
    elif isinstance(form, dict):
        parts = [(found.get(key), part, key) for key, part in form.items()]
    return next(filter(None, (_gap(*part) for part in parts)), None)


class ShardWriter:
    """Writes NAME.array_record beside its place; ``commit`` makes it count."""

    def __init__(self, folder: Path, name: str, compress: bool = True) -> None:
        # Groups of one: a random read then decodes a single record.
        self._options = "group_size:1,zstd:3" if compress else "group_size:1,uncompressed"
        self._path = folder / f"{name}.array_record"
        self._note = folder / f"{name}.json"
        self._partial = self._path.with_suffix(".partial")
        self.count = 0

    def __enter__(self) -> "ShardWriter":
        self._note.unlink(missing_ok=True)  # an old note must not speak for a new shard
        self._writer = array_record_module.ArrayRecordWriter(str(self._partial), self._options)
        return self

    def write(self, data: bytes) -> None:
        """Append one record."""
        self._writer.write(data)
        self.count += 1

    def __exit__(self, *unused: object) -> None:
        self._writer.close()

    def commit(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Put the closed shard into its place; returns what is known of it."""
        note = {
            "name": self._path.name,
            "count": self.count,
            "bytes": self._partial.stat().st_size,
            "sha256": digests.of_file(self._partial),
            **facts,
        }
        self._partial.replace(self._path)
        disk.write_json(self._note, note)
        return note


def whole_shard(folder: Path, name: str) -> dict[str, Any] | None:
    """What is known of a finished shard; None unless its file is there with the noted size."""
    try:
        note = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        size = (folder / f"{name}.array_record").stat().st_size
    except (FileNotFoundError, ValueError):
        return None
    return note if isinstance(note, dict) and size == note.get("bytes") else None
