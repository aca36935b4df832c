"""From an image file to the rows of patches a Qwen2-VL vision tower reads.

Bit-exact with transformers' PIL path (``Qwen2VLImageProcessorPil``, the slow processor that was the
default when VLAA-Thinker was trained): same resize rule, same order of roundings.
"""

import math
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlaa_jax.data.images.bit_depth import to_8_bits
from vlaa_jax.data.images.grid import Grid
from vlaa_jax.data.images.processor_config import field_problem, read_processor_config
from vlaa_jax.foreign import local_path
from vlaa_jax.schema import UserError

MAX_ASPECT = 200
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """The size an image is resized to: multiples of ``factor``, area within the limits.

    The rule of HF ``smart_resize`` (Qwen2-VL, arXiv 2409.12191), with Python's rounding of halves
    to even. Extreme shapes may end slightly outside the limits, as in HF.

    Raises:
        UserError: empty image, or one side is more than 200 times the other.
    """
    if min(height, width) < 1:
        raise UserError(f"image of {width}x{height} pixels is empty")
    if max(height, width) / min(height, width) > MAX_ASPECT:
        raise UserError(
            f"image of {width}x{height} pixels is too narrow: "
            f"one side may be at most {MAX_ASPECT} times the other"
        )
    new_h = round(height / factor) * factor
    new_w = round(width / factor) * factor
    if new_h * new_w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_h = max(factor, math.floor(height / shrink / factor) * factor)
        new_w = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_h * new_w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_h = math.ceil(height * grow / factor) * factor
        new_w = math.ceil(width * grow / factor) * factor
    return new_h, new_w


def to_rgb(image: Image.Image) -> Image.Image:
    """Three channels; transparency is laid on white (as transformers 5 does; 4.x dropped it).

    More than eight bits a pixel are scaled to eight, where transformers cuts them off.
    """
    image = to_8_bits(image)
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


@dataclass(frozen=True)
class ImageProcessor:
    """Resize, normalise, cut into patches. Field defaults are those of the HF class, not the Hub's.

    The released checkpoints allow 12,845,056 pixels where the class default is 1,003,520: build it
    from the checkpoint with ``from_dir``.
    """

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    image_mean: tuple[float, ...] = _CLIP_MEAN
    image_std: tuple[float, ...] = _CLIP_STD
    rescale_factor: float = 1 / 255
    resample: int = int(Image.Resampling.BICUBIC)

    def __post_init__(self) -> None:
        if problem := field_problem(vars(self)):
            raise UserError(f"image processor: {problem}")

    @classmethod
    def from_dir(
        cls,
        hf_dir: str | os.PathLike[str],
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> "ImageProcessor":
        """Read a checkpoint's processor_config.json or preprocessor_config.json.

        Args:
            hf_dir: Hugging Face directory.
            min_pixels: replaces the checkpoint's lower limit.
            max_pixels: replaces the checkpoint's upper limit.

        Raises:
            UserError: no such file, or one that we cannot follow exactly.
        """
        found, path = read_processor_config(local_path(hf_dir))
        found |= {"min_pixels": min_pixels} if min_pixels else {}
        found |= {"max_pixels": max_pixels} if max_pixels else {}
        try:
            return cls(**found)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    @property
    def patch_width(self) -> int:
        """Numbers in a flattened patch, 1176 for the released models."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) the image has when it is cut into patches."""
        new_h, new_w = smart_resize(
            height, width, self.patch_size * self.merge_size, self.min_pixels, self.max_pixels
        )
        return new_w, new_h

    def grid(self, width: int, height: int) -> Grid:
        """(1, patch rows, patch columns) of an image of this size."""
        new_w, new_h = self.resized(width, height)
        return 1, new_h // self.patch_size, new_w // self.patch_size

    def pixels(self, image: Image.Image) -> tuple[NDArray[np.uint8], Grid]:
        """Resized pixels in patch order, not yet normalised: [n, 3 * patch_size**2] and the grid.

        Eight times smaller than ``patches``.
        """
        size = self.resized(*image.size)
        image = to_rgb(image)
        if image.size != size:
            image = image.resize(size, resample=Image.Resampling(self.resample))
        p, m = self.patch_size, self.merge_size
        rows, cols = size[1] // p, size[0] // p
        planes = np.stack([np.asarray(band) for band in image.split()])
        # A line of a patch moves as one item of p bytes, twice as fast as byte by byte.
        lines = planes.view(np.dtype((np.void, p))).reshape(3, rows // m, m, p, cols // m, m)
        lines = np.ascontiguousarray(lines.transpose(1, 4, 2, 5, 0, 3))  # unit, in-unit, C, y
        return lines.view(np.uint8).reshape(rows * cols, 3 * p * p), (1, rows, cols)

    def normalize(self, pixels_NE: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(value * rescale_factor - mean) / std, doubled along time: [n, patch_width].

        As HF rounds: rescaled in float64, the rest in float32. Training hands the bytes to the
        model, which does the same on the device.
        """
        plane = self.patch_size**2
        scale = (np.arange(256) * self.rescale_factor).astype(np.float32)
        mean, std = (np.float32(np.repeat(a, plane)) for a in (self.image_mean, self.image_std))
        values = ((scale[pixels_NE] - mean) / std).reshape(len(pixels_NE), 3, 1, plane)
        return values.repeat(self.temporal_patch_size, axis=2).reshape(len(pixels_NE), -1)

    def patches(self, image: Image.Image) -> tuple[NDArray[np.float32], Grid]:
        """Normalised patches [grid rows * columns, patch_width] float32, and the grid.

        Rows in block order (unit row, unit column, row in unit, column in unit), numbers in the
        order (channel, time, y, x), as HF ``pixel_values``. EXIF rotation is left alone, as HF
        leaves it for an image object; ``open_image`` has applied it, as HF does for a path.
        """
        pixels, grid = self.pixels(image)
        return self.normalize(pixels), grid
