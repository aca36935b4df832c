"""How much of an image file is read, and how long that may take."""

import io
import os
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from one_image import image_size, inspect_image
from vlaa_jax.data.images.files import open_image
from vlaa_jax.foreign import MAX_IMAGE_BYTES
from vlaa_jax.schema import UserError

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8))


def encoded(kind, **options):
    buffer = io.BytesIO()
    PICTURE.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, body):
    crc = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + crc


def bytes_read():
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_what_stands_behind_an_image_is_not_read(tmp_path, kind):
    data = encoded(kind)
    file = tmp_path / "a.img"
    file.write_bytes(data)
    os.truncate(file, len(data) + 200_000_000)
    start, before = os.times().user, bytes_read()
    assert image_size(tmp_path, "a.img") == (40, 30)
    if kind != "WEBP":  # its plugin takes the file whole, up to the limit
        assert open_image(tmp_path, "a.img").size == (40, 30)
        assert inspect_image(tmp_path, "a.img").status == "found"
        assert bytes_read() - before < 1_000_000
    assert os.times().user - start < 2.0


@pytest.mark.parametrize("size", [MAX_IMAGE_BYTES + 1, 3 << 30, 200 << 30])
@pytest.mark.parametrize("read", [open_image, image_size])
def test_a_file_over_the_limit_is_refused_unread(tmp_path, size, read):
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG"))
    os.truncate(tmp_path / "a.jpg", size)
    start = os.times().user
    with pytest.raises(UserError, match=rf"'a\.jpg' has {size:,} bytes, the limit is 268,435,456"):
        read(tmp_path, "a.jpg")
    assert inspect_image(tmp_path, "a.jpg", keep=True).status == "corrupt"
    assert os.times().user - start < 0.5


PNG = encoded("PNG")
TINY = {
    "PNG chunks before the pixels": PNG[:33] + chunk(b"prVt", b"") * 1_000_000 + PNG[33:],
    "PNG chunks behind the pixels": PNG[:-12] + chunk(b"prVt", b"") * 1_000_000 + PNG[-12:],
    "PNG of zeros": PNG[:33] + bytes(12_000_000),
    "JPEG segments": b"\xff\xd8" + b"\xff\xfe\x00\x02" * 3_000_000 + encoded("JPEG")[2:],
    "JPEG fill bytes": b"\xff\xd8" + b"\xff" * 12_000_000 + encoded("JPEG")[2:],
    "GIF extensions": encoded("GIF")[:13] + b"\x21\xfe\x01x\x00" * 3_000_000 + b"\x3b",
    "PPM blanks": b"P6" + b"\n" * 12_000_000 + b"40 30 255\n" + bytes(3600),
    "PPM comments": b"P6" + b"\n#x" * 4_000_000 + b"\n40 30 255\n" + bytes(3600),
}


@pytest.mark.parametrize("name", TINY)
def test_a_chain_of_tiny_blocks_ends_within_two_seconds(tmp_path, name):
    (tmp_path / "a.img").write_bytes(TINY[name])
    for read in (open_image, image_size):
        start = os.times().user
        try:
            read(tmp_path, "a.img")
        except UserError as error:
            assert "'a.img'" in str(error) and "\n" not in str(error)
        assert os.times().user - start < 2.0, read.__name__


@pytest.mark.parametrize("at", [33, len(PNG) - 12])
def test_a_block_that_claims_gigabytes_reserves_none(tmp_path, at):
    """Among 10^5 mutated files it was this that took 3.9 GB."""
    claim = struct.pack(">I", 0xEAFF_0000)
    (tmp_path / "a.png").write_bytes(PNG[:at] + claim + PNG[at + 4 :])
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), limits[1]))
    try:
        facts = [inspect_image(tmp_path, "a.png", keep=keep) for keep in (False, True)]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert all("MemoryError" not in fact.reason for fact in facts)
