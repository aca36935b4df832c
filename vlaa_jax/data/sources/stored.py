"""What sources have in common that were made by us and hold the encoded images."""

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

from vlaa_jax.data.images.files import in_memory
from vlaa_jax.data.images.inspect import ImageFacts
from vlaa_jax.data.sources.source import Source
from vlaa_jax.schema import Record, UserError

TEXTS = (*("id", "question", "gt", "verifier_type", "answer", "source", "caption", "box_space"),)
"""Fields of a record that are text, or None."""


class StoredSource(Source):
    """Records that were judged before, with their images."""

    @abstractmethod
    def encoded_images(self, record: Record) -> tuple[bytes, ...]:
        """The image files of one of the records, byte for byte."""

    def _image(self, record: Record, number: int) -> AbstractContextManager[BinaryIO]:
        return in_memory(self.encoded_images(record)[number], record.images[number])

    def look(
        self, record: Record, number: int, *, whole: bool = True, keep: bool = False
    ) -> ImageFacts:
        """What is found at an image; its size is known without opening it."""
        if record.lengths is not None and not whole and not keep:
            return ImageFacts("found", "", record.lengths.image_sizes[number])
        return super().look(record, number, whole=whole, keep=keep)

    def _refuse_other(
        self, what: str, verb: str, spaces: Any, kind: str | None, box_space: Any, columns: Any
    ) -> None:
        """Refuses what was made for another purpose than it is opened for.

        Raises:
          UserError: names which.
        """
        if kind is not None and self.kind != kind:
            raise UserError(f"{self.path}: is {what} of kind {self.kind!r}, {kind!r} is needed")
        if columns:
            raise UserError(f"data.columns: {self.path} is {what} and has none; leave it empty")
        if box_space and plain_space(box_space) != plain_space(spaces):
            raise UserError(
                f"data.box_space: {self.path} was built with {spaces!r}; leave it empty, or "
                f"{verb} again with it"
            )


def plain_space(box_space: str | Mapping[str, str]) -> str | dict[str, str]:
    """A box space, or those of sources, in a form that can be compared."""
    if isinstance(box_space, str):
        return box_space
    return {source.casefold(): space for source, space in sorted(box_space.items())}
