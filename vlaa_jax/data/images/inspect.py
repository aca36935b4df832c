"""What is found at the path of an image; never raises for a bad one."""

import os
from typing import NamedTuple

from vlaa_jax.data.images.bit_depth import SCALED_FROM
from vlaa_jax.data.images.files import open_image, resolve_inside
from vlaa_jax.data.images.processor import MAX_ASPECT
from vlaa_jax.foreign import MAX_IMAGE_BYTES, read_bytes
from vlaa_jax.schema import UserError


class ImageFacts(NamedTuple):
    """What was found at an image path."""

    status: str
    """found, missing, or corrupt (which includes too large and too narrow)."""
    reason: str = ""
    size: tuple[int, int] = (0, 0)
    """(width, height) of the upright image."""
    data: bytes = b""
    """The encoded bytes, where asked for."""
    mode: str = ""
    """Pillow's name of the pixels' form, where the image was decoded."""


def inspect_image(
    root: str | os.PathLike[str], path: str, *, decode: bool = True, keep: bool = False
) -> ImageFacts:
    """Look at one image without ever leaving ``root``; never raises for a bad one.

    Args:
      root: image root.
      path: relative path.
      decode: decode it fully; otherwise only its presence is looked at.
      keep: return the encoded bytes too.
    """
    try:
        file = resolve_inside(root, path)
    except UserError as error:
        return ImageFacts("missing", str(error))
    if not decode:
        return ImageFacts("found")
    try:
        with open_image(root, path) as image:
            (width, height), mode = image.size, image.info.get(SCALED_FROM, image.mode)
        data = read_bytes(file, MAX_IMAGE_BYTES) if keep else b""
    except (UserError, OSError) as error:
        return ImageFacts("corrupt", str(error))
    if max(width, height) > MAX_ASPECT * min(width, height):
        reason = f"image {path!r} of {width}x{height} pixels is too narrow"
        return ImageFacts("corrupt", reason)
    return ImageFacts("found", "", (width, height), data, mode)
