"""What a checkpoint's image processor file says, checked field by field.

Both files are read: ``processor_config.json`` of transformers 5, ``preprocessor_config.json`` of
all versions. Pixel limits come in three spellings: ``min_pixels`` and ``max_pixels`` (these win, as
in transformers), ``size.shortest_edge`` and ``size.longest_edge``, and ``size.min_pixels`` and
``size.max_pixels``, which transformers below 4.49 wrote and version 5 no longer reads.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlaa_jax.foreign import read_object, shown
from vlaa_jax.schema import UserError

_WHOLE = {
    "min_pixels": (1, 1 << 31),
    "max_pixels": (1, 1 << 31),
    "patch_size": (1, 128),
    "temporal_patch_size": (1, 16),
    "merge_size": (1, 16),
    "resample": (0, 5),
}
_REAL = {"image_mean": (-10.0, 10.0), "image_std": (1e-4, 1e4), "rescale_factor": (1e-6, 10.0)}
"""Least and greatest value of each field; the released models have 0.2 to 0.5 and 1 / 255."""
_FLAGS = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
_SIZES = {
    "min_pixels": ("shortest_edge", "min_pixels"),
    "max_pixels": ("longest_edge", "max_pixels"),
}


def read_processor_config(hf_dir: Path) -> tuple[dict[str, Any], Path]:
    """The fields of ``ImageProcessor`` that a checkpoint sets, and the file that sets them.

    Raises:
      UserError: no such file, one that cannot be read, or one that we cannot follow exactly.
    """
    config, path = _find(hf_dir)
    for flag in _FLAGS:
        if config.get(flag) not in (None, True):
            value = json.dumps(config[flag])[:40]
            raise UserError(f"{path}: {flag}={value} is not supported")
    found = {name: config[name] for name in (*_WHOLE, *_REAL) if config.get(name) is not None}
    found = {**_pixel_limits(config.get("size"), path), **found}
    if problem := field_problem(found):
        raise UserError(f"{path}: {problem}")
    return {n: tuple(v) if isinstance(v, list) else v for n, v in found.items()}, path


def field_problem(fields: Mapping[str, Any]) -> str | None:
    """What is wrong with the first field that is wrong, or None."""
    for name, (least, most) in _WHOLE.items():
        value = fields.get(name, least)
        if type(value) is not int or not least <= value <= most:
            return f"{name} must be a whole number from {least} to {most}, not {shown(value)}"
    for name, (low, high) in _REAL.items():
        value = fields.get(name)
        numbers = value if isinstance(value, list | tuple) else [value]
        if value is not None and not all(_within(x, low, high) for x in numbers):
            return f"{name} must be numbers from {low:g} to {high:g}, not {shown(value)}"
        if value is not None and name != "rescale_factor" and len(numbers) != 3:
            return f"{name} must be three numbers, not {shown(value)}"
        if name == "rescale_factor" and isinstance(value, list | tuple):
            return f"rescale_factor must be one number, not {shown(value)}"
    if fields.get("min_pixels", 1) > fields.get("max_pixels", 1 << 31):
        limits = f"min_pixels {fields['min_pixels']} and max_pixels {fields['max_pixels']}"
        return f"{limits} must be in this order"
    return None


def _within(value: Any, low: float, high: float) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and math.isfinite(value) and low <= value <= high


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
