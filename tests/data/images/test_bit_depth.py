"""Images of more than eight bits: seen as they are, counted, never white."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from one_image import inspect_image
from vlaa_jax.data.commands.cli import run
from vlaa_jax.data.images.files import SCALED_FROM, decode_image, open_image, to_8_bits
from vlaa_jax.data.images.processor import to_rgb
from vlaa_jax.data.judging.check import check
from vlaa_jax.data.judging.judge import Judge
from vlaa_jax.data.sources.table import open_source
from vlaa_jax.schema import UserError

RAMP = np.linspace(0, 1, 64 * 48).reshape(48, 64)
BYTES = np.rint(RAMP * 255).astype(np.uint8)


def pfm(values):
    return b"Pf\n64 48\n-1.0\n" + values[::-1].astype("<f4").tobytes()


def pgm(values):
    return b"P5\n64 48\n65535\n" + values.astype(">u2").tobytes()


def saved(values, kind="TIFF"):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


FILES = {
    "png of 16 bits": saved((RAMP * 65535).astype(np.uint16), "PNG"),
    "a dark scan of 12 bits": saved((RAMP * 4095).astype(np.uint16), "PNG"),
    "tiff of 16 bits": saved((RAMP * 65535).astype(np.uint16)),
    "tiff of 32 bits": saved((RAMP * 2e9).astype(np.int32)),
    "tiff of signed numbers": saved(((RAMP - 0.5) * 1e6).astype(np.int32)),
    "tiff of fractions": saved(RAMP.astype(np.float32)),
    "tiff of large fractions": saved((RAMP * 1e30).astype(np.float32)),
    "tiff of negative fractions": saved((RAMP * 2 - 1).astype(np.float32)),
    "pgm of 16 bits": pgm(RAMP * 65535),
    "pfm": pfm(RAMP * 7000),
    "tiff of 32 bits that holds bytes": saved(BYTES.astype(np.int32)),
    "tiff of fractions that holds bytes": saved(BYTES.astype(np.float32)),
}


@pytest.mark.parametrize("name", FILES)
def test_a_ramp_stays_a_ramp(name):
    image = decode_image(FILES[name], name)
    assert image.mode == "L" and image.info[SCALED_FROM] in ("I;16", "I", "F", "I;16B")
    np.testing.assert_allclose(np.asarray(image), BYTES, atol=1)


@pytest.mark.parametrize("values", [np.zeros((4, 4)), np.full((4, 4), 70_000), np.full((4, 4), -3)])
def test_an_image_of_one_value_is_no_division_by_zero(values):
    assert len(np.unique(np.asarray(to_8_bits(Image.fromarray(values.astype(np.int32)))))) == 1


def test_numbers_that_are_not_finite_are_refused_by_the_image():
    values = RAMP.astype(np.float32).copy()
    for odd in (np.nan, np.inf):
        values[3, 3] = odd
        with pytest.raises(UserError, match=r"image 'a\.tif' holds numbers that are not finite"):
            decode_image(saved(values), "a.tif")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_eight_bits_are_left_alone(mode):
    image = Image.new(mode, (3, 3))
    assert to_8_bits(image) is image


def test_whoever_has_an_open_image_gets_the_same_pixels(tmp_path):
    (tmp_path / "a.png").write_bytes(FILES["png of 16 bits"])
    raw = Image.open(tmp_path / "a.png")
    assert raw.mode == "I;16"
    np.testing.assert_array_equal(
        np.asarray(to_rgb(raw)), np.asarray(to_rgb(open_image(tmp_path, "a.png")))
    )


def test_check_counts_modes_and_says_what_is_done(tmp_path, capsys):
    for number, name in enumerate(FILES):
        (tmp_path / f"{number}.img").write_bytes(FILES[name])
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    raw = [
        {"id": n, "question": "q", "gt": "1", "verifier_type": "digit", "image": n}
        for n in [*(f"{i}.img" for i in range(len(FILES))), "a.png", "a.png"]
    ]
    raw[-1]["id"] = "again"
    (tmp_path / "r.json").write_text(json.dumps(raw))
    assert inspect_image(tmp_path, "0.img").mode == "I;16"
    report = check(open_source(tmp_path / "r.json", tmp_path, kind="grpo"), Judge(kind="grpo"))
    assert report.clean and report.modes["RGB"] == 1 and report.modes["F"] == 5
    assert run(["check", str(tmp_path / "r.json"), f"--images={tmp_path}", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "12 images of more than 8 bits a pixel are scaled to 8 by their range" in said
    assert "RGB 1" in said
