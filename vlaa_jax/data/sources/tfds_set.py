"""A TFDS data set of ours as records."""

import json
from collections.abc import Sequence
from typing import Any, overload

from PIL import Image

from vlaa_jax.data.images.files import decode_image
from vlaa_jax.schema import Record

_TEXTS = ("id", "question", "gt", "verifier_type", "answer", "source", "caption", "box_space")
_OPTIONAL = ("gt", "verifier_type", "answer", "caption", "box_space")


class TfdsRecords(Sequence[Record]):
    """A TFDS data source of "vlaa_thinking" as records, for the loaders."""

    def __init__(self, source: Sequence[Any]) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        example = self._source[int(index) % len(self)]
        texts: dict[str, Any] = {name: example[name].decode() for name in _TEXTS}
        for name in _OPTIONAL:
            texts[name] = texts[name] or None
        paths = tuple(path.decode() for path in example["image_paths"])
        meta = json.loads(example["meta"])
        # The encoded images travel with the record, so that they need not be looked up again.
        return Record(**texts, images=paths, meta={**meta, "encoded": tuple(example["images"])})

    @staticmethod
    def images(record: Record) -> tuple[Image.Image, ...]:
        """The decoded images of one of the records, upright."""
        pairs = zip(record.meta["encoded"], record.images, strict=True)
        return tuple(decode_image(data, path) for data, path in pairs)
