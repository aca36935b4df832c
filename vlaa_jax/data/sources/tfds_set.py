"""A TFDS data set of ours as records; see ``builds.tfds_builder``."""

import json
from pathlib import Path
from typing import Any

from vlaa_jax.data.sources.source import TEXTS, StoredSource
from vlaa_jax.foreign import read_object
from vlaa_jax.schema import Record, UserError

PREPARED = "prepared.json"
"""In the data set's folder: what its records were judged by."""
_INFO = "dataset_info.json"
_OPTIONAL = ("gt", "verifier_type", "answer", "caption", "box_space")


def _candidates(path: Path) -> list[Path]:
    """The folder itself, that of the newest version in it, and the same above a split's name."""
    found = []
    for folder in (path, path.parent) if not path.exists() else (path,):
        found += [folder, *sorted(folder.glob("[0-9]*.[0-9]*.[0-9]*"), reverse=True)]
    return found


class TfdsRecords(StoredSource):
    """The records of one split of a prepared "vlaa_thinking" data set.

    Its path is ``DATA_DIR/vlaa_thinking/grpo``, with or without its version; for another split than
    "train", with its name behind that.
    """

    @staticmethod
    def looks_so(path: Path, start: bytes) -> bool:
        """Whether a folder, or the one above it, holds a prepared data set."""
        return any((folder / _INFO).is_file() for folder in _candidates(path))

    def _open(self) -> None:
        import tensorflow_datasets as tfds

        found = [place for place in _candidates(self.path) if (place / _INFO).is_file()]
        if not found:
            raise UserError(f"{self.path}: holds no prepared TFDS data set ({_INFO})")
        kind = str(read_object(found[0] / _INFO).get("configName") or "")
        try:
            judged = read_object(found[0] / PREPARED)
        except FileNotFoundError:
            judged = {}
        self.golds_checked = bool(judged.get("golds_checked"))
        self._made_for("a TFDS data set", kind, judged.get("box_space", "normalized"))
        builder = tfds.builder_from_directory(found[0])
        split = "train" if self.path.exists() else self.path.name
        if split not in builder.info.splits:
            there = ", ".join(builder.info.splits)
            raise UserError(f"{self.path}: has no split {split!r}; there are {there}")
        self._source = builder.as_data_source(split=split)

    def __len__(self) -> int:
        return len(self._source)

    def _read(self, index: int) -> Record:
        example = self._source[index]
        texts: dict[str, Any] = {name: example[name].decode() for name in TEXTS}
        for name in _OPTIONAL:
            texts[name] = texts[name] or None
        paths = tuple(path.decode() for path in example["image_paths"])
        return Record(**texts, images=paths, meta=json.loads(example["meta"]), place=index)

    def encoded_images(self, record: Record) -> tuple[bytes, ...]:
        """The image files of one of the records, byte for byte."""
        return tuple(self._source[record.place]["images"])
