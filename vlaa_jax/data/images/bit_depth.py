"""Images with more than eight bits a pixel, brought to eight.

Pillow cuts them off at 255, and so does transformers, which calls it: a 16-bit scan turns white.
"""

import numpy as np
from PIL import Image

from vlaa_jax.schema import UserError

DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
SCALED_FROM = "scaled_from"
"""Key of ``Image.info``: the mode that the file has."""


def to_8_bits(image: Image.Image, name: str = "") -> Image.Image:
    """The image itself, or in mode L where it has whole numbers of 16 or 32 bits, or fractions.

    Values from 0 to 255 stay, and fractions from 0 to 1 are taken as such; all others are scaled so
    that the least becomes 0 and the greatest 255.

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
