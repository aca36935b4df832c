"""Where the images of a record are, and how large."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from vlaa_jax.data.images.files import image_size, open_image
from vlaa_jax.data.samples.measure import Built
from vlaa_jax.schema import Record, UserError

ImageOpener = Callable[[Record], tuple[Image.Image, ...]]
"""Decoded images of a record."""


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

    def sizes(self, record: Record) -> list[tuple[int, int]]:
        """(width, height) of each image, from the headers of the files."""
        try:
            return [image_size(self.root, path) for path in record.images]
        except UserError as error:
            raise UserError(f"record {record.id!r}: {error}") from error


def image_sizes(images: ImageOpener, record: Record) -> list[tuple[int, int]]:
    """(width, height) of each upright image of a record, with as little work as possible.

    A built record knows them; files in a folder say so in their headers; anything else is opened.

    Raises:
      UserError: an image cannot be used.
    """
    built = record.meta.get("built")
    if isinstance(built, Built):
        return [(int(width), int(height)) for width, height in built["image_sizes"]]
    if isinstance(images, FolderImages):
        return images.sizes(record)
    return [image.size for image in images(record)]


def opener(images: str | os.PathLike[str] | ImageOpener) -> ImageOpener:
    """An image root or a function as a function from record to images."""
    return FolderImages(os.fspath(images)) if isinstance(images, str | os.PathLike) else images
