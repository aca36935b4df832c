"""From an image to the rows of patches a Qwen2-VL vision tower reads, as its checkpoint says.

Bit-exact with transformers' PIL path (``Qwen2VLImageProcessorPil``, the slow processor that was the
default when VLAA-Thinker was trained): same resize rule, same order of roundings.

Both files of a checkpoint are read: ``processor_config.json`` of transformers 5 and
``preprocessor_config.json`` of all versions. Pixel limits come in three spellings: ``min_pixels``
and ``max_pixels`` (these win, as in transformers), ``size.shortest_edge`` and
``size.longest_edge``, and ``size.min_pixels`` and ``size.max_pixels``, which transformers below
4.49 wrote and version 5 no longer reads.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlaa_jax.data.images.files import MAX_ASPECT, to_8_bits
from vlaa_jax.foreign import local_path, read_object, shown
from vlaa_jax.schema import Grid, UserError

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_FLAGS = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
_SIZES = {
    "min_pixels": ("shortest_edge", "min_pixels"),
    "max_pixels": ("longest_edge", "max_pixels"),
}


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


def _within(least: float, most: float, default: Any) -> Any:
    """A field with its bounds; those of fractions are wide: released models have 0.2 to 0.5."""
    return field(default=default, metadata={"bounds": (least, most)})


@dataclass(frozen=True)
class ImageProcessor:
    """Resize, normalise, cut into patches. Field defaults are those of the HF class, not the Hub's.

    The released checkpoints allow 12,845,056 pixels where the class default is 1,003,520: build it
    from the checkpoint with ``from_dir``.
    """

    min_pixels: int = _within(1, 1 << 31, 56 * 56)
    max_pixels: int = _within(1, 1 << 31, 28 * 28 * 1280)
    patch_size: int = _within(1, 128, 14)
    temporal_patch_size: int = _within(1, 16, 2)
    merge_size: int = _within(1, 16, 2)
    resample: int = _within(0, 5, int(Image.Resampling.BICUBIC))
    image_mean: tuple[float, ...] = _within(-10.0, 10.0, _CLIP_MEAN)
    image_std: tuple[float, ...] = _within(1e-4, 1e4, _CLIP_STD)
    rescale_factor: float = _within(1e-6, 10.0, 1 / 255)

    def __post_init__(self) -> None:
        if problem := _field_problem(vars(self)):
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
        config, path = _find(local_path(hf_dir))
        for flag in _FLAGS:
            if config.get(flag) not in (None, True):
                value = json.dumps(config[flag])[:40]
                raise UserError(f"{path}: {flag}={value} is not supported")
        said = {one.name: config[one.name] for one in fields(cls) if one.name in config}
        found = _pixel_limits(config.get("size"), path)
        found |= {name: value for name, value in said.items() if value is not None}
        if problem := _field_problem(found):
            raise UserError(f"{path}: {problem}")
        found |= {"min_pixels": min_pixels} if min_pixels else {}
        found |= {"max_pixels": max_pixels} if max_pixels else {}
        values: dict[str, Any] = {
            n: tuple(v) if isinstance(v, list) else v for n, v in found.items()
        }
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

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
        """(value * rescale_factor - mean) / std, doubled along time: [n, 1176] for released models.

        As HF rounds: rescaled in float64, the rest in float32. Training hands the bytes to the
        model, which does the same on the device.
        """
        plane = self.patch_size**2
        scale = (np.arange(256) * self.rescale_factor).astype(np.float32)
        mean, std = (np.float32(np.repeat(a, plane)) for a in (self.image_mean, self.image_std))
        values = ((scale[pixels_NE] - mean) / std).reshape(len(pixels_NE), 3, 1, plane)
        return values.repeat(self.temporal_patch_size, axis=2).reshape(len(pixels_NE), -1)

    def patches(self, image: Image.Image) -> tuple[NDArray[np.float32], Grid]:
        """Normalised patches [grid rows * columns, 1176 for released models] float32, and the grid.

        Rows in block order (unit row, unit column, row in unit, column in unit), numbers in the
        order (channel, time, y, x), as HF ``pixel_values``. EXIF rotation is left alone, as HF
        leaves it for an image object; ``open_image`` has applied it, as HF does for a path.
        """
        pixels, grid = self.pixels(image)
        return self.normalize(pixels), grid


def _field_problem(found: Mapping[str, Any]) -> str | None:
    """What is wrong with the first field that is wrong, or None; fields may be missing."""
    for one in fields(ImageProcessor):
        if one.name in found and (wanted := _wanted(one, found[one.name])):
            return f"{one.name} must be {wanted}, not {shown(found[one.name])}"
    if found.get("min_pixels", 1) > found.get("max_pixels", 1 << 31):
        limits = f"min_pixels {found['min_pixels']} and max_pixels {found['max_pixels']}"
        return f"{limits} must be in this order"
    return None


def _wanted(one: "Field[Any]", value: Any) -> str | None:
    """What a field has to hold, where the value is something else."""
    least, most = one.metadata["bounds"]
    if isinstance(one.default, int):
        fits = type(value) is int and least <= value <= most
        return None if fits else f"a whole number from {least} to {most}"
    several = isinstance(value, list | tuple)
    numbers = value if several else [value]
    real = [isinstance(x, int | float) and not isinstance(x, bool) for x in numbers]
    if not (all(real) and all(least <= x <= most for x in numbers)):
        return f"numbers from {least:g} to {most:g}"
    if isinstance(one.default, tuple):
        return None if len(numbers) == 3 else "three numbers"
    return "one number" if several else None


def _pixel_limits(size: Any, path: Path) -> dict[str, Any]:
    """min_pixels and max_pixels of a ``size``, in whichever spelling it has."""
    if size is None or size == {}:
        return {}
    known = {key for keys in _SIZES.values() for key in keys}
    if not isinstance(size, dict) or not any(size.get(key) is not None for key in known):
        raise UserError(
            f"{path}: size is {shown(size)}; it must hold shortest_edge and longest_edge, areas "
            "in pixels"
        )
    found = {}
    for name, keys in _SIZES.items():
        values = [size[key] for key in keys if size.get(key) is not None]
        if any(value != values[0] for value in values):
            raise UserError(f"{path}: size gives two values for {' and '.join(keys)}")
        if values:
            value = values[0]
            whole = isinstance(value, float) and value.is_integer()
            found[name] = int(value) if whole else value
    return found


def _find(hf_dir: Path) -> tuple[Mapping[str, Any], Path]:
    # transformers prefers the nested dictionary that its version 5 writes.
    for name in ("processor_config.json", "preprocessor_config.json"):
        path = hf_dir / name
        try:
            config = read_object(path)
        except FileNotFoundError:
            continue
        if name == "preprocessor_config.json":
            return config, path
        if (nested := config.get("image_processor")) is not None:
            if not isinstance(nested, dict):
                raise UserError(f"{path}: image_processor must be an object, not {shown(nested)}")
            return nested, path
    raise UserError(f"{hf_dir}: no preprocessor_config.json; is this a Qwen2-VL checkpoint?")
