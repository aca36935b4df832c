"""The images of a run, small enough for a page; and boxes as fractions of them."""

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from vlaa_jax.data.images.files import open_image
from vlaa_jax.data.images.processor import ImageProcessor, to_rgb
from vlaa_jax.foreign import read_object
from vlaa_jax.report.record import Completion, RunRecord
from vlaa_jax.rewards.iou import NATIVE_SPACES, Box, Frame, Size, boxes_on_image
from vlaa_jax.schema import BOX_SPACES, UserError
from vlaa_jax.settings.rewards import NATIVE

LONGEST_SIDE = 448
_SMALL = 160 * 160
"""Pixels; drawings of this size are smaller, and sharper, as PNG."""


class Pictures:
    """Images by their path below a root; each is put into the page once.

    Only what was decoded here and encoded anew gets into a page, never the bytes of a file.

    Args:
        record: the run, for its image folder, pixel limits and the space its answers are in.
        root: folder of the images; None takes the one the run was given.
    """

    def __init__(self, record: RunRecord, root: Path | None = None) -> None:
        data = _group(record.settings, "data")
        own = record.path / "data" / "images"
        named = data.get("image_root")
        given = Path(named) if isinstance(named, str) and named else own
        self._root = root or (own if data.get("records") == "embedded" else given)
        self._answer_space = _answer_space(record)
        self._processor = _processor(record.path / "hf", data)
        self._places: dict[str, int | None] = {}
        self._sizes: dict[str, Size] = {}
        self.encoded: list[str] = []

    def place(self, name: str) -> int | None:
        """Where in `encoded` an image is; None where it cannot be read."""
        if name not in self._places:
            self._places[name] = self._encode(name)
        return self._places[name]

    def _encode(self, name: str) -> int | None:
        try:
            image = to_rgb(open_image(self._root, name))
        except (UserError, MemoryError):
            return None
        self._sizes[name] = image.size
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        kind = "png" if image.width * image.height <= _SMALL else "jpeg"
        stream = BytesIO()
        image.save(stream, kind, **({"quality": 80} if kind == "jpeg" else {}))
        data = base64.b64encode(stream.getvalue()).decode("ascii")
        self.encoded.append(f"data:image/{kind};base64,{data}")
        return len(self.encoded) - 1

    def forget(self, first: int) -> None:
        """Takes the images from a place on out again."""
        del self.encoded[first:]
        self._places = {k: v for k, v in self._places.items() if v is None or v < first}

    def boxes(self, completion: Completion) -> tuple[list[Box], list[Box]]:
        """Boxes of the answer and of the gold on the first image, which `place` has seen."""
        size = self._sizes.get(completion.images[0]) if completion.images else None
        if completion.verifier_type != "iou" or size is None:
            return [], []
        try:
            resized = self._processor.resized(*size) if self._processor else None
            frame = Frame(completion.box_space, size, resized)
            return boxes_on_image(
                completion.extracted, completion.gt or "", frame, self._answer_space
            )
        except (ValueError, UserError):
            return [], []


def _group(settings: dict[str, Any], name: str) -> dict[str, Any]:
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def _answer_space(record: RunRecord) -> str | None:
    """Of the settings; None where nothing readable says it."""
    space = _group(record.settings, "rewards").get("answer_box_space")
    if space == NATIVE:
        try:
            space = NATIVE_SPACES.get(read_object(record.path / "hf" / "config.json")["model_type"])
        except (UserError, OSError, KeyError, TypeError):
            return None
    return space if space in BOX_SPACES else None


def _processor(folder: Path, data: dict[str, Any]) -> ImageProcessor | None:
    """The one the run used; None where its files do not say."""
    named = (data.get(name) for name in ("min_pixels", "max_pixels"))
    limits = [value if type(value) is int and value > 0 else None for value in named]
    try:
        return ImageProcessor.from_dir(folder, *limits)
    except (UserError, OSError):
        return None
