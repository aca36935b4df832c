"""Grounding: intersection over union of one box with the gold box (section 4.1, "iou").

Boxes are [x1, y1, x2, y2]. An inverted, empty or non-finite box is worth 0; nothing is reordered.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from vlaa_jax.rewards.boxes import Box, find_boxes, parse_boxes
from vlaa_jax.rewards.commitment import stands_around
from vlaa_jax.rewards.extract import strip_answer_tags
from vlaa_jax.rewards.verifier import RuleVerifier, Setup, Verifier
from vlaa_jax.schema import BOX_SPACES, ScoreRequest, UserError
from vlaa_jax.settings.rewards import NATIVE

Size = tuple[int, int]

MAX_COORDINATE = 1e9
"""Beyond this a coordinate is no pixel of any image."""
NATIVE_SPACES = {"qwen2_vl": "normalized_1000", "qwen2_5_vl": "resized_pixels"}
"""The space in which a model family writes boxes by itself: Qwen2-VL 0 to 1000 of each side
(arXiv 2409.12191), Qwen2.5-VL pixels of the image as it sees it (arXiv 2502.13923)."""

_SIDES = {"normalized": 1.0, "normalized_1000": 1000.0}
"""Width and height of the image in spaces that no size is needed for."""
_SIZE_OF = {"resized_pixels": "resized_size"}
"""What other spaces are measured by, where it is not ``image_size``."""
_PART = re.compile(r"\b(?:half|twice|double|triple|quarter|part|third)\b(?:\s+of)?\W*$", re.I)


def native_box_space(family: str) -> str:
    """The space of ``schema.BOX_SPACES`` in which a family (``model_type``) writes boxes.

    Raises:
        UserError: the family is unknown.
    """
    if family not in NATIVE_SPACES:
        known = ", ".join(NATIVE_SPACES)
        raise UserError(f"model family {family!r} has no known box space: use one of {known}")
    return NATIVE_SPACES[family]


class Frame(NamedTuple):
    """The space that boxes are in, and the sizes that it may be measured by."""

    space: str | None = None
    """One of ``schema.BOX_SPACES``. None reads a gold within [0, 1] as ``normalized`` and any other
    as ``original_pixels``."""
    image_size: Size | None = None
    """(width, height) of the original image."""
    resized_size: Size | None = None
    """(width, height) of the image as the model saw it."""

    def known(self, golds: Sequence[Box]) -> "Frame":
        """The frame with the space that its golds tell, where it names none."""
        if self.space:
            return self
        inside = all(0.0 <= value <= 1.0 for box in golds for value in box)
        return self._replace(space="normalized" if inside else "original_pixels")

    def extent(self) -> Box:
        """Where the image lies.

        Raises:
            ValueError: the space is unknown, or the size it needs is missing.
        """
        space = self.space or ""
        if space in _SIDES:
            return 0.0, 0.0, _SIDES[space], _SIDES[space]
        if space not in BOX_SPACES:
            raise ValueError(f"box_space {space!r} is not one of {', '.join(BOX_SPACES)}")
        name = _SIZE_OF.get(space, "image_size")
        size: Size | None = getattr(self, name)
        if size is None or min(size) <= 0:
            raise ValueError(f"{space} boxes need {name} [width, height]")
        if space != "normalized_square":
            return 0.0, 0.0, float(size[0]), float(size[1])
        # The picture sits in the middle of the square (LLaVA's expand2square).
        pad_x, pad_y = (0.5 - side / (2 * max(size)) for side in size)
        return pad_x, pad_y, 1.0 - pad_x, 1.0 - pad_y

    def bounds(self) -> Box:
        """What boxes are clipped to; nothing bounds the pixels of an image of unknown size."""
        space = self.space or ""
        if space in _SIDES or getattr(self, _SIZE_OF.get(space, "image_size")) is not None:
            return self.extent()
        side = 1.0 if space == "normalized_square" else MAX_COORDINATE
        return 0.0, 0.0, side, side

    def normalized(self, box: Box) -> Box:
        """A box as fractions of the original image's width and height, unclipped.

        Errors as of ``extent``.
        """
        left, top, right, bottom = self.extent()
        x1, x2 = ((x - left) / (right - left) for x in (box[0], box[2]))
        y1, y2 = ((y - top) / (bottom - top) for y in (box[1], box[3]))
        return x1, y1, x2, y2


ANYWHERE = Frame()


def score_iou(
    answer: str, gold: str, frame: Frame = ANYWHERE, answer_space: str | None = None
) -> float:
    """IoU of the answer's box with the gold's, in [0, 1]; 0.0 where the answer has no usable box.

    Args:
        answer: extracted answer text; a list, a dict or JSON with four numbers.
        gold: same syntax.
        frame: of the gold.
        answer_space: space of the answer; None means that of the gold, which is what the question
            asked for.

    With several gold boxes the boxes are matched one to one for the largest total, which is divided
    by the larger count, so a missing box and a surplus box cost the same.

    Raises:
        ValueError: the gold holds no usable box, or a conversion lacks a size.
    """
    problem = iou_gold_problem(gold, frame)
    if problem:
        raise ValueError(problem)
    targets = _gold_boxes(gold)
    frame = frame.known(targets)
    # Scaling an axis changes no IoU, so boxes of one space are compared where they are.
    alike = answer_space in (None, frame.space)
    bounds = frame.bounds() if alike else (0.0, 0.0, 1.0, 1.0)
    golds = [_clip(box if alike else frame.normalized(box), bounds) for box in targets]
    boxes, lead, tail = find_boxes(answer) or ([], "", "")
    stands = stands_around(lead, tail) and not _PART.search(lead)
    if not stands or (len(golds) == 1 and len(boxes) != 1) or not all(map(_usable, boxes)):
        return 0.0
    said = frame if alike else frame._replace(space=answer_space)
    return match_boxes(
        [_clip(box if alike else said.normalized(box), bounds) for box in boxes], golds
    )


def boxes_on_image(
    answer: str | None, gold: str, frame: Frame, answer_space: str | None = None
) -> tuple[list[Box], list[Box]]:
    """The boxes of an answer and of its gold as ``score_iou`` reads them, to draw them.

    Returns:
        Fractions of the original image's width and height, unclipped; a text without a usable box
        gives none.

    Raises:
        ValueError: a conversion lacks a size.
    """
    golds = _gold_boxes(gold)
    frame = frame.known(golds)
    said = frame._replace(space=answer_space or frame.space)
    boxes = parse_boxes(answer or "") or []
    return (
        [said.normalized(box) for box in filter(_usable, boxes)],
        [frame.normalized(box) for box in filter(_usable, golds)],
    )


@lru_cache(maxsize=4096)  # a gold is compared with a whole group of answers
def iou_gold_problem(gold: str, frame: Frame = ANYWHERE) -> str | None:
    """Why no answer can be compared with this gold; None when all is well.

    Args:
        gold: list, dict or JSON with the box or boxes.
        frame: with the size of its space known, a box in pixels or in the padding of a square is
            refused where nothing of it lies on the image.
    """
    space = frame.space
    if space is not None and space not in BOX_SPACES:
        return f"box_space {space!r} is not one of {', '.join(BOX_SPACES)}"
    boxes = _gold_boxes(gold)
    if not boxes:
        return f"gold {gold[:60]!r} holds no box [x1, y1, x2, y2]"
    for box in boxes:
        if not _usable(box):
            return f"gold {gold[:60]!r} has an inverted, empty or non-finite box"
        top = 1.0 if space == "normalized_square" else _SIDES.get(space or "")
        if top and max(map(abs, box)) > 1.5 * top:
            return f"gold {gold[:60]!r} is not in {space} coordinates (0..{top:g})"
    frame = frame.known(boxes)
    try:
        bounds = frame.bounds()
    except ValueError as error:
        return str(error)
    if not all(_usable(_clip(box, bounds)) for box in boxes):
        return f"gold {gold[:60]!r} lies outside the image ({frame.space})"
    return None


@lru_cache(maxsize=4096)
def _gold_boxes(gold: str) -> tuple[Box, ...]:
    return tuple(parse_boxes(strip_answer_tags(gold)) or ())


def iou(left: Box, right: Box) -> float:
    """Intersection over union of two boxes, continuous convention; 0.0 for unusable boxes."""
    if not (_usable(left) and _usable(right)):
        return 0.0
    wide = min(left[2], right[2]) - max(left[0], right[0])
    high = min(left[3], right[3]) - max(left[1], right[1])
    if wide <= 0 or high <= 0:
        return 0.0
    inner = wide * high
    union = _area(left) + _area(right) - inner
    return min(1.0, inner / union) if union > 0 else 0.0


def match_boxes(answers: Sequence[Box], golds: Sequence[Box]) -> float:
    """Largest total IoU of a one-to-one matching, over the larger count; symmetric."""
    if not answers or not golds:
        return 0.0
    if len(answers) == len(golds) == 1:
        return iou(answers[0], golds[0])
    # Imported here: most answers hold one box, and SciPy takes a while to import.
    from scipy.optimize import linear_sum_assignment

    values = [[iou(answer, gold) for gold in golds] for answer in answers]
    rows, columns = linear_sum_assignment(values, maximize=True)
    total = sum(values[i][j] for i, j in zip(rows, columns, strict=True))
    return min(1.0, total / max(len(answers), len(golds)))


def _clip(box: Box, bounds: Box) -> Box:
    left, top, right, bottom = bounds
    x1, y1, x2, y2 = box
    x1, x2 = min(max(x1, left), right), min(max(x2, left), right)
    y1, y2 = min(max(y1, top), bottom), min(max(y2, top), bottom)
    return x1, y1, x2, y2


def _usable(box: Box) -> bool:
    # A comparison with NaN is false, so this refuses NaN and infinity too.
    x1, y1, x2, y2 = box
    top = MAX_COORDINATE
    return -top <= x1 < x2 <= top and -top <= y1 < y2 <= top


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def make(setup: Setup) -> Verifier:
    """The verifier of grounding questions."""
    if setup.settings.answer_box_space == NATIVE:  # whoever has a checkpoint put its own in
        spaces = ", ".join(BOX_SPACES)
        raise UserError(f"rewards.answer_box_space: there is no model here; give one of {spaces}")

    def frame(request: ScoreRequest) -> Frame:
        return Frame(request.box_space, request.image_size, request.resized_size)

    answer_space = setup.settings.answer_box_space
    return RuleVerifier(
        lambda request, answer: score_iou(answer, request.gt, frame(request), answer_space),
        lambda request: iou_gold_problem(request.gt, frame(request)),
    )
