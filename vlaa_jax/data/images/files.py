"""Image files opened as if hostile, below a root that no path leaves.

No decompression bomb, no plugin that starts another program, and every refusal is one line naming
the file.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, cast

import numpy as np
from PIL import ExifTags, Image, ImageOps

from vlaa_jax.foreign import MAX_IMAGE_BYTES, is_lfs_pointer, local_path
from vlaa_jax.schema import UserError

MAX_IMAGE_PIXELS = 89_478_485
"""Pillow's own bound (a quarter of a gibibyte of RGB); larger files are refused, not loaded."""
MAX_ASPECT = 200
"""How many times the other one side of an image may be."""
MAX_READS = 1 << 18
"""An image of 256 MiB in PNG chunks of 8 KiB takes half of this; a plugin takes a second for all.

Formats are chains of blocks that may be a few bytes long, so that a file can keep its plugin busy
for minutes before the first pixel.
"""
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
SCALED_FROM = "scaled_from"
"""Key of ``Image.info``: the mode that the file has."""
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


class Metered:
    """What Pillow asks of a file, and no file descriptor, past which libraries could read.

    Args:
      file: opened, seekable; it is read from its beginning.
      name: for the message.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._left = MAX_READS
        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        """The next bytes; UserError after too many calls."""
        self._count()
        # A block may say that it has 4 GB, which read() would reserve before it looks.
        left = max(0, self._size - self._file.tell())
        return self._file.read(left if size < 0 else min(size, left))

    def readline(self, size: int = -1) -> bytes:
        """The next line; UserError after too many calls."""
        self._count()
        return self._file.readline(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of a file; UserError after too many calls."""
        self._count()
        return self._file.seek(offset, whence)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise UserError(f"image {self._name!r} is damaged: it has no end of tiny blocks")


def open_image(root: str | os.PathLike[str], relative_path: str) -> Image.Image:
    """An image below ``root``, upright; errors of ``opened`` and ``decode``."""
    with opened(root, relative_path) as file:
        return decode(file, relative_path)


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


def header_size(file: BinaryIO, name: str) -> tuple[int, int]:
    """(width, height) of the upright image, as ``decode`` would give it, from its header.

    Tens of times cheaper than decoding. Damage behind the header goes unseen:
    ``python -m vlaa_jax.data check`` decodes.

    Raises:
        UserError: as ``decode``, for what the header shows.
    """
    with _refusals(name):
        image = _open(file, name, MAX_IMAGE_PIXELS)
        if image.format == "TIFF":
            turned = False  # Pillow turns these itself, and says so in the size
        elif image.format == "PNG" and "exif" not in image.info:
            turned = _late_exif(Metered(file, name)) and _turned(image)  # loads it: rare
        else:
            turned = _turned(image)
        return image.size[::-1] if turned else image.size


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
      file: opens it; ``opened`` or ``in_memory``.
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


def to_8_bits(image: Image.Image, name: str = "") -> Image.Image:
    """The image itself, or in mode L where it has whole numbers of 16 or 32 bits, or fractions.

    Pillow cuts those off at 255, and so does transformers, which calls it: a scan of 16 bits turns
    white. Here values from 0 to 255 stay, and fractions from 0 to 1 are taken as such; all others
    are scaled so that the least becomes 0 and the greatest 255.

    Raises:
      UserError: a value is not finite.
    """
    if image.mode not in DEEP_MODES:
        return image
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError(f"image {name!r} holds numbers that are not finite")
    if image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    values = (values - low) * (255 / max(high - low, 1e-300))
    scaled = Image.fromarray(np.rint(values).astype(np.uint8))
    scaled.info = {**image.info, SCALED_FROM: image.mode}
    return scaled


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
