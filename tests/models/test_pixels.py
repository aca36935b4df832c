"""Patches that come as bytes are normalised by the model as the processor does on the host."""

import jax
import numpy as np
import pytest

from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.models.qwen_vl.vision import PixelNorm


@pytest.mark.parametrize("rescale", [1 / 255, 0.01])
def test_bytes_on_the_device_are_what_the_processor_makes_of_them(rescale):
    processor = ImageProcessor(rescale_factor=rescale)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 588)).astype(np.uint8)
    norm = PixelNorm(rescale, processor.image_mean, processor.image_std, 2)
    got = np.asarray(jax.jit(lambda x: norm(x))(pixels.reshape(2, 35, 588))).reshape(70, -1)
    want = processor.normalize(pixels)
    assert got.shape == want.shape == (70, 1176)
    units = 2 * np.spacing(np.abs(want).max())  # in the last place of the largest
    np.testing.assert_allclose(got, want, rtol=0, atol=units)
