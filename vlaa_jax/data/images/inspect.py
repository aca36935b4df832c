"""What is found at the path of an image; never raises for a bad one."""

import os
from contextlib import AbstractContextManager
from typing import BinaryIO, NamedTuple

from vlaa_jax.data.images.bit_depth import SCALED_FROM
from vlaa_jax.data.images.files import Missing, decode, header_size, opened
from vlaa_jax.data.images.processor import MAX_ASPECT
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


def inspect(
    file: AbstractContextManager[BinaryIO], name: str, *, whole: bool = True, keep: bool = False
) -> ImageFacts:
    """Look at one image.

    Args:
      file: opens it; ``files.opened`` or ``files.in_memory``.
      name: of the image, for messages.
      whole: decode all of it; otherwise its header only.
      keep: return the encoded bytes too.
    """
    mode, data = "", b""
    try:
        with file as stream:
            if whole:
                with decode(stream, name) as image:
                    size, mode = image.size, image.info.get(SCALED_FROM, image.mode)
            else:
                size = header_size(stream, name)
            if keep:
                stream.seek(0)
                data = stream.read()
    except Missing as error:
        return ImageFacts("missing", str(error))
    except (UserError, OSError) as error:
        return ImageFacts("corrupt", str(error))
    if max(size) > MAX_ASPECT * min(size):
        return ImageFacts("corrupt", f"image {name!r} of {size[0]}x{size[1]} pixels is too narrow")
    return ImageFacts("found", "", size, data, mode)


def inspect_image(
    root: str | os.PathLike[str], path: str, *, whole: bool = True, keep: bool = False
) -> ImageFacts:
    """Look at one image without ever leaving ``root``; see ``inspect``."""
    return inspect(opened(root, path), path, whole=whole, keep=keep)
