"""Files of a build: ArrayRecord shards with a note beside each."""

import json
from pathlib import Path
from typing import Any

from array_record.python import array_record_module

from vlaa_jax import digests, disk

FORMAT = 2
MANIFEST = "manifest.json"


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
