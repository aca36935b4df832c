"""From a record to its decoded images, wherever they lie."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from vlaa_jax.data.images.files import open_image
from vlaa_jax.schema import Record, UserError

ImageOpener = Callable[[Record], tuple[Image.Image, ...]]
"""Decoded images of a record: ``Source.images``, or ``FolderImages``."""


@dataclass(frozen=True)
class FolderImages:
    """Opens images below a root."""

    root: str

    def __call__(self, record: Record) -> tuple[Image.Image, ...]:
        """The images of a record, upright; a UserError names the record."""
        try:
            return tuple(open_image(self.root, path) for path in record.images)
        except UserError as error:
            raise UserError(f"record {record.id!r}: {error}") from error


def opener(images: str | os.PathLike[str] | ImageOpener) -> ImageOpener:
    """An image root or a function as a function from record to images."""
    return FolderImages(os.fspath(images)) if isinstance(images, str | os.PathLike) else images
