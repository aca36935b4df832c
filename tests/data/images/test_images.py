"""Image processor bit for bit against transformers' PIL processor; refusal of hostile files."""

import io
import json
import os
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from one_image import image_size
from vlaa_jax.data.images.files import decode_image, open_image
from vlaa_jax.data.images.processor import ImageProcessor, smart_resize
from vlaa_jax.schema import UserError

SIZES = [
    (224, 224),
    (320, 480),
    (640, 480),
    (83, 166),
    (28, 560),
    (14, 2000),
    (3000, 20),
    (7, 9),
    (1, 1),
    (1, 199),
    (512, 512),
    (550, 850),
    (2016, 1390),
    (42, 70),  # both sides half-way between multiples of 28
]
MODES = ["RGB", "RGBA", "P", "P-transparent", "L", "LA", "CMYK", "1", "RGB-tRNS", "YCbCr"]


def noise(width, height, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def drawing(width, height):
    """Gradient with sharp lines, which shows resampling differences."""
    y, x = np.mgrid[:height, :width]
    base = np.stack([255 * x / width, 255 * y / height, (x * y) % 256], -1).astype(np.uint8)
    image = Image.fromarray(base)
    draw = ImageDraw.Draw(image)
    draw.line((0, 0, width, height), fill=(255, 0, 0), width=3)
    draw.ellipse((width // 4, height // 4, width // 2, height // 2), outline=(0, 0, 0))
    return image


def in_mode(mode, width=150, height=97):
    image = drawing(width, height)
    alpha = Image.fromarray(np.arange(width * height, dtype=np.uint32).reshape(height, width))
    alpha = Image.fromarray((np.asarray(alpha) % 256).astype(np.uint8))
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(alpha)
        return image
    if mode == "P-transparent":
        image = image.convert("P", palette=Image.Palette.ADAPTIVE)
        image.info["transparency"] = 3
        return image
    if mode == "RGB-tRNS":
        buffer = io.BytesIO()
        image.save(buffer, "PNG", transparency=(255, 0, 0))
        return Image.open(buffer)
    if mode == "I;16":
        return Image.fromarray(np.asarray(alpha).astype(np.uint16) * 257)
    return image.convert(mode)


@pytest.fixture(scope="module")
def hf_class():
    return pytest.importorskip(
        "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl"
    ).Qwen2VLImageProcessorPil


def assert_same(ours, theirs, image):
    expected = theirs(images=[image], return_tensors="np")
    patches, grid = ours.patches(image)
    assert grid == tuple(expected["image_grid_thw"][0])
    assert grid == ours.grid(*image.size)
    assert patches.dtype == np.float32 and ours.pixels(image)[0].dtype == np.uint8
    np.testing.assert_array_equal(
        patches.view(np.uint32), expected["pixel_values"].view(np.uint32), err_msg="not bit-exact"
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("make", [noise, drawing])
def test_bit_exact_at_ragged_sizes(hf_class, make, size):
    assert_same(ImageProcessor(), hf_class(), make(*size))


@pytest.mark.parametrize("mode", MODES)
def test_bit_exact_in_every_mode(hf_class, mode):
    assert_same(ImageProcessor(), hf_class(), in_mode(mode))


def test_sixteen_bits_are_read_as_the_same_picture_in_eight(hf_class):
    """transformers itself cuts them off at 255; its reading of the 8-bit picture is the oracle."""
    deep = in_mode("I;16")
    plain = Image.fromarray((np.asarray(deep) // 257).astype(np.uint8))
    ours, grid = ImageProcessor().patches(deep)
    theirs = hf_class()(images=[plain], return_tensors="np")
    np.testing.assert_array_equal(ours, theirs["pixel_values"])
    assert [grid] == [tuple(g) for g in theirs["image_grid_thw"]]


@pytest.mark.parametrize("limits", [(3136, 12845056), (50_000, 60_000), (1280 * 784, 16384 * 784)])
def test_bit_exact_at_other_pixel_limits(hf_class, limits):
    low, high = limits
    theirs = hf_class(min_pixels=low, max_pixels=high)
    assert_same(ImageProcessor(min_pixels=low, max_pixels=high), theirs, drawing(300, 211))


def test_bit_exact_with_other_constants(hf_class):
    other = {
        "image_mean": (0.5, 0.4, 0.3),
        "image_std": (0.5, 0.25, 0.3),
        "rescale_factor": 1 / 200,
    }
    assert_same(ImageProcessor(**other, resample=2), hf_class(**other, resample=2), drawing(90, 70))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_as_transformers_treats_it(hf_class, tmp_path, orientation):
    """A path is turned upright when it is loaded; an image object is taken as it is."""
    from transformers.image_utils import load_image

    exif = Image.Exif()
    exif[0x0112] = orientation
    drawing(120, 80).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    opened = open_image(tmp_path, "turned.jpg")
    assert_same(ImageProcessor(), hf_class(), opened)
    np.testing.assert_array_equal(opened, load_image(str(tmp_path / "turned.jpg")))
    assert_same(ImageProcessor(), hf_class(), Image.open(tmp_path / "turned.jpg"))


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([3136, 100_000, 1_003_520]))
def test_sizes_equal_transformers(hf_class, width, height, low):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as expected

    try:
        want = expected(height, width, 28, low, 1_003_520)
    except ValueError:
        with pytest.raises(UserError, match="too narrow"):
            smart_resize(height, width, 28, low, 1_003_520)
        return
    assert smart_resize(height, width, 28, low, 1_003_520) == want


def test_halves_round_to_even():
    assert smart_resize(42, 70, 28, 1, 10**9) == (56, 56)


@pytest.mark.parametrize("size", [(1, 100_000), (201, 1), (5, 1001)])
def test_strips_are_refused_as_transformers_refuses_them(hf_class, size):
    with pytest.raises(UserError, match=f"{size[0]}x{size[1]} pixels is too narrow"):
        ImageProcessor().grid(*size)
    if max(size) < 2000:
        with pytest.raises(ValueError, match="aspect ratio"):
            hf_class()(images=[noise(*size)], return_tensors="np")


def write_config(directory, config, name="preprocessor_config.json"):
    (directory / name).write_text(json.dumps(config))


HUB = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}


@pytest.mark.parametrize(
    ("config", "limits"),
    [
        (HUB, (3136, 12845056)),
        ({"size": {"shortest_edge": 6272, "longest_edge": 401408}}, (6272, 401408)),
        (
            {"min_pixels": 10_000, "size": {"shortest_edge": 6272, "longest_edge": 401408}},
            (10_000, 401408),
        ),
        ({}, (3136, 1_003_520)),
        ({"min_pixels": None, "max_pixels": 2_000_000}, (3136, 2_000_000)),
    ],
)
def test_limits_come_from_the_checkpoint(hf_class, tmp_path, config, limits):
    write_config(tmp_path, config)
    processor = ImageProcessor.from_dir(tmp_path)
    assert (processor.min_pixels, processor.max_pixels) == limits
    theirs = hf_class.from_pretrained(tmp_path)
    assert (theirs.size["shortest_edge"], theirs.size["longest_edge"]) == limits
    assert ImageProcessor.from_dir(tmp_path, max_pixels=50_176).max_pixels == 50_176


def test_nested_config_of_transformers_5_comes_first(hf_class, tmp_path):
    write_config(tmp_path, HUB)
    nested = {"image_processor": {**HUB, "size": {"shortest_edge": 3136, "longest_edge": 784_000}}}
    nested["image_processor"].pop("min_pixels")
    nested["image_processor"].pop("max_pixels")
    write_config(tmp_path, nested, "processor_config.json")
    assert ImageProcessor.from_dir(tmp_path).max_pixels == 784_000
    assert hf_class.from_pretrained(tmp_path).size["longest_edge"] == 784_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no preprocessor_config.json"),
        ("{", "cannot be read as JSON"),
        ("[]", "is not a JSON object"),
        ('{"do_resize": false}', "do_resize=false is not supported"),
        ('{"min_pixels": 100, "max_pixels": 10}', "in this order"),
    ],
)
def test_bad_configs_are_refused_in_words(tmp_path, text, message):
    if text is not None:
        (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        ImageProcessor.from_dir(tmp_path)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_images_open_from_below_the_root(tmp_path):
    (tmp_path / "coco" / "train").mkdir(parents=True)
    image = drawing(60, 40)
    (tmp_path / "coco" / "train" / "a.jpg").write_bytes(encoded(image))  # wrong suffix is fine
    (tmp_path / "coco" / "link.png").symlink_to(tmp_path / "coco" / "train" / "a.jpg")
    np.testing.assert_array_equal(open_image(tmp_path, "coco/train/a.jpg"), image)
    np.testing.assert_array_equal(open_image(tmp_path, "coco/link.png"), image)


@pytest.mark.parametrize(
    "path", ["../secret.png", "a/../../secret.png", "/etc/passwd", "", "a\0b.png", "out.png"]
)
def test_nothing_outside_the_root_is_read(tmp_path, path):
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(encoded(drawing(30, 30)))
    (tmp_path / "root" / "out.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match="image path"):
        open_image(tmp_path / "root", path)


def test_a_sibling_whose_name_starts_like_the_root_is_outside(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "x.png").write_bytes(encoded(drawing(30, 30)))
    (tmp_path / "root" / "x.png").symlink_to(tmp_path / "root2" / "x.png")
    with pytest.raises(UserError, match="leaves the image root"):
        open_image(tmp_path / "root", "x.png")


def bomb(width, height):
    """A PNG of a few hundred bytes that claims to be huge."""
    import struct
    import zlib

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def postscript():
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"hello, I am text", "not an image of a known format"),
        (postscript(), "not an image of a known format"),
        (encoded(noise(64, 64), "JPEG")[:900], "damaged"),
        (encoded(noise(64, 64))[:-3000], "damaged"),
        (bomb(60_000, 60_000), "limit of pixels"),
        (bomb(9_500, 9_500), "9500x9500 pixels is over the limit"),
    ],
)
def test_hostile_files_are_refused_in_one_line(tmp_path, data, message):
    (tmp_path / "bad.png").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(UserError, match=message) as caught:
            open_image(tmp_path, "bad.png")
    assert "bad.png" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_folders_and_pipes(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"'none\.png' does not exist"):
        open_image(tmp_path, "none.png")
    for name in ("folder", "pipe"):
        with pytest.raises(UserError, match="not a regular file"):
            open_image(tmp_path, name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_flipped_bytes_never_crash(folder, data):
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"]))
    blob = bytearray(encoded(drawing(24, 16), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(blob)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = decode_image(bytes(blob[:cut]), "x", max_image_pixels=10**6)
        except UserError as error:
            assert "\n" not in str(error)
            image = None
        else:
            assert image.size[0] * image.size[1] <= 10**6
        (folder / "x").write_bytes(blob[:cut])
        try:
            size = image_size(folder, "x")
        except UserError as error:
            assert image is None and "\n" not in str(error)
        else:
            assert image is None or image.size == size


@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_a_header_says_the_size_of_the_upright_image(tmp_path, suffix, orientation):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", (40, 24)).save(tmp_path / f"a.{suffix}", exif=exif)
    with open_image(tmp_path, f"a.{suffix}") as image:
        assert image_size(tmp_path, f"a.{suffix}") == image.size
    assert image.size == ((24, 40) if orientation in (6, 8) else (40, 24))


def test_an_orientation_behind_the_pixels_of_a_png_counts(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    Image.new("RGB", (40, 24)).save(data, "PNG", exif=exif)
    body = data.getvalue()
    start = body.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(body[start : start + 4], "big")
    iend = body.index(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(body[:start] + body[end:iend] + body[start:end] + body[iend:])
    assert open_image(tmp_path, "a.png").size == (24, 40)
    assert image_size(tmp_path, "a.png") == (24, 40)


def test_a_header_is_read_without_the_pixels(tmp_path):
    body = encoded(noise(64, 64), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(body[: len(body) // 2])
    with pytest.raises(UserError, match="damaged"):
        open_image(tmp_path, "cut.jpg")
    assert image_size(tmp_path, "cut.jpg") == Image.open(io.BytesIO(body)).size


@pytest.mark.parametrize(
    ("name", "message"),
    [("../x", "outside"), ("none.png", "does not exist"), ("e.png", "empty"), ("t.png", "not an")],
)
def test_a_header_is_refused_like_an_image(tmp_path, name, message):
    (tmp_path / "e.png").write_bytes(b"")
    (tmp_path / "t.png").write_bytes(b"text")
    with pytest.raises(UserError, match=message):
        image_size(tmp_path, name)


def test_an_absolute_path_is_refused_with_the_reason(tmp_path):
    """Released records begin paths with a slash, and mean the image root by it."""
    root, elsewhere = tmp_path / "images", tmp_path / "photos"
    root.mkdir()
    elsewhere.mkdir()
    Image.new("RGB", (40, 30)).save(elsewhere / "a.png")
    below = str(elsewhere / "a.png").lstrip("/")  # as a record gives it
    with pytest.raises(UserError, match=f"if it was meant as /{below}: paths are read below the"):
        open_image(root, below)
    with pytest.raises(UserError, match=r"does not exist under [^;]*$"):
        open_image(root, "vg/none.png")
