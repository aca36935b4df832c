"""Scenes of coloured shapes: counting (digit), finding (iou) and describing (open_ended)."""

import math

import numpy as np

from vlaa_jax.data.synthetic.canvas import (
    COLORS,
    SHAPES,
    Box,
    Canvas,
    pick,
    pick_several,
    uniform,
)
from vlaa_jax.data.synthetic.sample import SyntheticSample

MAX_COUNT = 6
_COLORS = tuple(COLORS)
Kind = tuple[str, str]
"""Colour and shape of an object."""


def counting(rng: np.random.Generator) -> SyntheticSample:
    """'How many red objects are there?' with 1 to 6 as equally likely answers."""
    canvas = Canvas(rng)
    count = int(rng.integers(1, MAX_COUNT + 1))
    about = pick(rng, ("color", "color", "shape", "all"))
    others = 0 if about == "all" else int(rng.integers(0, min(3, 8 - count) + 1))
    color, shape = pick(rng, _COLORS), pick(rng, SHAPES)
    cells = sorted(rng.permutation(9)[: count + others].tolist())
    chosen = set(rng.permutation(count + others)[:count].tolist())
    objects = []
    for i, cell in enumerate(cells):
        kind = _kind(rng, about, color, shape, i in chosen)
        canvas.shape(kind[1], kind[0], _in_cell(rng, canvas, cell))
        objects.append((kind, i in chosen))
    if about == "color":
        subject, listed = f"{color} objects", [kind[1] for kind, wanted in objects if wanted]
    elif about == "shape":
        subject, listed = f"{shape}s", [kind[0] for kind, wanted in objects if wanted]
    else:
        subject, listed = "objects", [kind[0] for kind, _ in objects]
    numbered = ", ".join(f"{i} {word}" for i, word in enumerate(listed, 1))
    return SyntheticSample(
        image=canvas.finish(),
        question=f"How many {subject} are there?",
        gt=str(count),
        verifier_type="digit",
        reasoning=f"The {subject}: {numbered}.",
        answer=str(count),
        source="clevr_math",
        family="CLEVR_train",
        facts={"objects": [kind for kind, _ in objects], "about": about},
    )


def _kind(rng: np.random.Generator, about: str, color: str, shape: str, wanted: bool) -> Kind:
    if about == "color":
        colors = (color,) if wanted else tuple(c for c in _COLORS if c != color)
        return pick(rng, colors), pick(rng, SHAPES)
    if about == "shape":
        shapes = (shape,) if wanted else tuple(s for s in SHAPES if s != shape)
        return pick(rng, _COLORS), pick(rng, shapes)
    return pick(rng, _COLORS), pick(rng, SHAPES)


def _in_cell(rng: np.random.Generator, canvas: Canvas, cell: int) -> Box:
    """A box inside one cell of a 3x3 grid, numbered in reading order."""
    width, height = canvas.width / 3, canvas.height / 3
    side = uniform(rng, 0.68, 0.88) * min(width, height)
    x = (cell % 3) * width + uniform(rng, 0.04, 0.96) * (width - side)
    y = (cell // 3) * height + uniform(rng, 0.04, 0.96) * (height - side)
    return x, y, x + side, y + side


def finding(rng: np.random.Generator) -> SyntheticSample:
    """'Give the bounding box of the blue square.'; exactly one object fits."""
    canvas = Canvas(rng)
    kinds = pick_several(rng, [(c, s) for c in _COLORS for s in SHAPES], int(rng.integers(2, 4)))
    boxes = _apart(rng, canvas, len(kinds))
    kinds = kinds[: len(boxes)]
    for (color, shape), box in zip(kinds, boxes, strict=True):
        canvas.shape(shape, color, box)
    (color, shape), box = kinds[0], _normalized(boxes[0], canvas)
    gold = "[" + ", ".join(f"{v:.2f}" for v in box) + "]"
    longest = max(box[2] - box[0], box[3] - box[1])
    size = "small" if longest < 0.33 else "medium" if longest < 0.45 else "large"
    return SyntheticSample(
        image=canvas.finish(),
        question=f"Give the bounding box of the {color} {shape}.",
        gt=gold,
        verifier_type="iou",
        reasoning=f"The {color} {shape} is {size} and at the {_place(box)}.",
        answer=gold,
        source=pick(rng, ("coco", "vg")),
        family="find",
        box_space="normalized",
        facts={"objects": kinds, "boxes": [_normalized(b, canvas) for b in boxes]},
    )


def _apart(rng: np.random.Generator, canvas: Canvas, count: int) -> list[Box]:
    """Boxes that do not touch; fewer than ``count`` where no room is left, but at least one."""
    boxes: list[Box] = []
    short = min(canvas.width, canvas.height)
    for _ in range(count * 12):
        side = uniform(rng, 0.24, 0.56 if not boxes else 0.4) * short
        x, y = _outward(rng) * (canvas.width - side), _outward(rng) * (canvas.height - side)
        box = (round(x), round(y), round(x + side), round(y + side))
        if all(_separate(box, other) for other in boxes):
            boxes.append(box)
        if len(boxes) == count:
            break
    return boxes


def _outward(rng: np.random.Generator) -> float:
    """In 0..1, more often near the ends, so that no box in the middle fits most objects."""
    return 0.5 - 0.5 * math.cos(math.pi * float(rng.random()))


def _separate(a: Box, b: Box, gap: float = 3.0) -> bool:
    apart_x = a[2] + gap <= b[0] or b[2] + gap <= a[0]
    return apart_x or a[3] + gap <= b[1] or b[3] + gap <= a[1]


def _normalized(box: Box, canvas: Canvas) -> Box:
    width, height = canvas.width, canvas.height
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def _place(box: Box) -> str:
    """Where a normalised box lies: 'top left', 'center', 'right', ..."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    row = "top" if y < 0.4 else "bottom" if y > 0.6 else ""
    column = "left" if x < 0.4 else "right" if x > 0.6 else ""
    return f"{row} {column}".strip() or "center"


def describing(rng: np.random.Generator) -> SyntheticSample:
    """'Describe the scene.'; the gold is one sentence in one of five wordings.

    The wordings share few words on purpose: a constant sentence must not resemble them all.
    """
    canvas = Canvas(rng)
    layout = pick(rng, (_corner, _beside, _stacked, _row, _repeated))
    all_kinds = [(c, s) for c in _COLORS for s in SHAPES]
    kinds = pick_several(rng, all_kinds, {_corner: 1, _repeated: 1, _row: 3}.get(layout, 2))
    gold, objects = layout(rng, canvas, kinds)
    return SyntheticSample(
        image=canvas.finish(),
        question="Describe the scene.",
        gt=gold,
        verifier_type="open_ended",
        reasoning=f"I see {len(objects)}: {', '.join(f'{c} {s}' for c, s in objects)}.",
        answer=gold,
        source="allava_laion",
        family="scene",
        caption=gold,
        facts={"objects": objects},
    )


def _corner(rng: np.random.Generator, canvas: Canvas, kinds: list[Kind]) -> tuple[str, list[Kind]]:
    size = pick(rng, ("large", "small"))
    side = _side(rng, size) * min(canvas.width, canvas.height)
    row, column = pick(rng, ("top", "bottom")), pick(rng, ("left", "right"))
    free_x, free_y = canvas.width - side, canvas.height - side
    near, far = uniform(rng, 0.0, 0.15), uniform(rng, 0.85, 1.0)
    x = free_x * (near if column == "left" else far)
    y = free_y * (near if row == "top" else far)
    color, shape = kinds[0]
    canvas.shape(shape, color, (x, y, x + side, y + side))
    return f"One {size} {color} {shape} in the {row} {column} corner.", kinds


def _beside(rng: np.random.Generator, canvas: Canvas, kinds: list[Kind]) -> tuple[str, list[Kind]]:
    a, b = _halves(rng, canvas, kinds, (canvas.width / 2, canvas.height))
    return f"A {a} is left of a {b}.", kinds


def _stacked(rng: np.random.Generator, canvas: Canvas, kinds: list[Kind]) -> tuple[str, list[Kind]]:
    a, b = _halves(rng, canvas, kinds, (canvas.width, canvas.height / 2))
    return f"{a.capitalize()} on top, {b} below.", kinds


def _halves(
    rng: np.random.Generator, canvas: Canvas, kinds: list[Kind], half: tuple[float, float]
) -> tuple[str, str]:
    """Draw one object into each half of the image; returns their names with size and colour."""
    names = []
    for i, (color, shape) in enumerate(kinds):
        size = pick(rng, ("large", "small"))
        side = min(_side(rng, size) * min(canvas.width, canvas.height), 0.94 * min(half))
        x = i * (canvas.width - half[0]) + uniform(rng, 0.1, 0.9) * (half[0] - side)
        y = i * (canvas.height - half[1]) + uniform(rng, 0.1, 0.9) * (half[1] - side)
        canvas.shape(shape, color, (x, y, x + side, y + side))
        names.append(f"{size} {color} {shape}")
    return names[0], names[1]


def _row(rng: np.random.Generator, canvas: Canvas, kinds: list[Kind]) -> tuple[str, list[Kind]]:
    _line_up(rng, canvas, kinds)
    return f"From left to right: {', '.join(f'{c} {s}' for c, s in kinds)}.", kinds


def _repeated(
    rng: np.random.Generator, canvas: Canvas, kinds: list[Kind]
) -> tuple[str, list[Kind]]:
    count, word = pick(rng, ((2, "Two"), (3, "Three"), (4, "Four")))
    color, shape = kinds[0]
    _line_up(rng, canvas, kinds * count)
    return f"{word} {color} {shape}s in a row.", kinds * count


def _line_up(rng: np.random.Generator, canvas: Canvas, kinds: list[Kind]) -> None:
    width = canvas.width / len(kinds)
    for i, (color, shape) in enumerate(kinds):
        side = min(uniform(rng, 0.75, 0.9) * width, 0.6 * canvas.height)
        x = i * width + uniform(rng, 0.2, 0.8) * (width - side)
        y = uniform(rng, 0.3, 0.7) * (canvas.height - side)
        canvas.shape(shape, color, (x, y, x + side, y + side))


def _side(rng: np.random.Generator, size: str) -> float:
    """Side of an object as a share of the shorter side of the image."""
    return uniform(rng, 0.44, 0.5) if size == "large" else uniform(rng, 0.2, 0.26)
