"""Image files opened as if hostile, below a root that no path leaves.

No decompression bomb, no plugin that starts another program, and every refusal is one line naming
the file.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from PIL import ExifTags, Image, ImageOps

from vlaa_jax.data.images.bit_depth import to_8_bits
from vlaa_jax.data.images.metered import Metered
from vlaa_jax.foreign import MAX_IMAGE_BYTES, is_lfs_pointer, local_path
from vlaa_jax.schema import UserError

MAX_IMAGE_PIXELS = 89_478_485
"""Pillow's own bound (a quarter of a gibibyte of RGB); larger files are refused, not loaded."""
Image.init()  # Image.open looks up a restricted list of formats without loading their plugins
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


class Missing(UserError):
    """There is no image file of that name below the root."""


def resolve_inside(root: str | os.PathLike[str], relative_path: str) -> Path:
    """The real path of a file below the root.

    Raises:
        Missing: absolute, contains ``..``, leads outside through a link, or is no regular file.
    """
    pure = PurePosixPath(relative_path)
    if not relative_path or "\0" in relative_path:
        raise Missing(f"image path {relative_path!r} is empty or has a null character")
    if pure.is_absolute() or ".." in pure.parts:
        raise Missing(f"image path {relative_path!r} leads outside the image root")
    base = os.path.realpath(local_path(root))
    try:
        path = os.path.realpath(os.path.join(base, relative_path))
        if os.path.commonpath([base, path]) != base:
            raise Missing(f"image path {relative_path!r} is a link that leaves the image root")
        if not os.path.isfile(path):  # also keeps us from waiting on a pipe
            reason = "is not a regular file" if os.path.exists(path) else "does not exist"
            hint = _absolute_hint(base, pure)
            raise Missing(f"image {relative_path!r} {reason} under {os.fspath(root)}{hint}")
    except (OSError, ValueError) as error:
        raise Missing(f"image path {relative_path!r} cannot be used ({error})") from error
    return Path(path)


def _absolute_hint(base: str, path: PurePosixPath) -> str:
    """The reason, where somebody wrote absolute paths: records may begin a path with a slash."""
    first = path.parts[0] if path.parts else ""
    if os.path.lexists(os.path.join(base, first)) or not os.path.isdir(os.path.join("/", first)):
        return ""
    return f"; if it was meant as /{path}: paths are read below the image root, never from /"


@contextmanager
def opened(root: str | os.PathLike[str], relative_path: str) -> Iterator[BinaryIO]:
    """An image file below ``root``, of a size that may be read.

    Raises:
        UserError: path leaves the root, or the file is missing, empty, or too large.
    """
    path = resolve_inside(root, relative_path)
    try:
        with path.open("rb") as file:
            _check_start(relative_path, os.fstat(file.fileno()).st_size, file.read(64))
            file.seek(0)
            yield file
    except OSError as error:
        raise UserError(f"image {relative_path!r} cannot be read ({error.strerror})") from error


@contextmanager
def in_memory(data: bytes, name: str = "") -> Iterator[BinaryIO]:
    """An encoded image; the same refusals as ``opened``, naming ``name``."""
    _check_start(name, len(data), data[:64])
    yield BytesIO(data)


def _check_start(name: str, size: int, start: bytes) -> None:
    if size > MAX_IMAGE_BYTES:
        raise UserError(f"image {name!r} has {size:,} bytes, the limit is {MAX_IMAGE_BYTES:,}")
    if not start:
        raise UserError(f"image {name!r} is an empty file")
    if is_lfs_pointer(start):
        raise UserError(f"image {name!r} is a git-lfs pointer, not an image; run `git lfs pull`")


def open_image(
    root: str | os.PathLike[str], relative_path: str, max_image_pixels: int = MAX_IMAGE_PIXELS
) -> Image.Image:
    """An image below ``root``, upright; errors of ``opened`` and ``decode``."""
    with opened(root, relative_path) as file:
        return decode(file, relative_path, max_image_pixels)


def decode_image(
    data: bytes, name: str = "", max_image_pixels: int = MAX_IMAGE_PIXELS
) -> Image.Image:
    """Decode an encoded image, upright; the same refusals as ``open_image``, naming ``name``."""
    with in_memory(data, name) as file:
        return decode(file, name, max_image_pixels)


def decode(file: BinaryIO, name: str, max_image_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """The whole image, upright.

    Raises:
        UserError: truncated, not an image of a known format, or larger than ``max_image_pixels``.
    """
    with _refusals(name):
        image = _open(file, name, max_image_pixels)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # otherwise it copies even upright images
        return to_8_bits(image, name)


def header_size(
    file: BinaryIO, name: str, max_image_pixels: int = MAX_IMAGE_PIXELS
) -> tuple[int, int]:
    """(width, height) of the upright image, as ``decode`` would give it, from its header.

    Tens of times cheaper than decoding. Damage behind the header goes unseen:
    ``python -m vlaa_jax.data check`` decodes.

    Raises:
        UserError: as ``decode``, for what the header shows.
    """
    with _refusals(name):
        image = _open(file, name, max_image_pixels)
        if image.format == "TIFF":
            turned = False  # Pillow turns these itself, and says so in the size
        elif image.format == "PNG" and "exif" not in image.info:
            turned = _late_exif(Metered(file, name)) and _turned(image)  # loads it: rare
        else:
            turned = _turned(image)
        return image.size[::-1] if turned else image.size


def image_size(
    root: str | os.PathLike[str], relative_path: str, max_image_pixels: int = MAX_IMAGE_PIXELS
) -> tuple[int, int]:
    """``header_size`` of an image below ``root``; errors as ``open_image``."""
    with opened(root, relative_path) as file:
        return header_size(file, relative_path, max_image_pixels)


def _open(file: BinaryIO, name: str, max_image_pixels: int) -> Image.Image:
    image = Image.open(cast(BinaryIO, Metered(file, name)), formats=_FORMATS)
    width, height = image.size
    if width * height > max_image_pixels:
        raise UserError(
            f"image {name!r} of {width}x{height} pixels is over the limit of "
            f"{max_image_pixels} pixels"
        )
    return image


def _turned(image: Image.Image) -> bool:
    return image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)


def _late_exif(file: Metered) -> bool:
    """Whether a PNG file has an eXIf chunk anywhere; Pillow sees only those before the pixels."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        if head[4:] in (b"eXIf", b"IEND"):
            return head[4:] == b"eXIf"
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return False


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Whatever Pillow raises, as one line."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"image {name!r} is over the limit of pixels ({error})") from error
    except Image.UnidentifiedImageError as error:
        known = ", ".join(_FORMATS)
        raise UserError(f"image {name!r} is not an image of a known format ({known})") from error
    except Exception as error:  # format plugins raise all sorts of things on broken files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"image {name!r} is damaged: {reason}") from error
