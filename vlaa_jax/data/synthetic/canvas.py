"""Drawing the embedded images: a sheet lit from two sides, strong colours, three shapes.

The light says where on the sheet a place is, as it does in photographs. A tower with rotary
positions alone sees how far apart two things are, but on an even sheet not where they are.

Everything is drawn at twice the size and averaged down, so that edges are smooth and positions are
accurate to half a pixel.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

COLORS = {
    "red": (214, 40, 40),
    "green": (38, 160, 70),
    "blue": (45, 85, 220),
    "yellow": (245, 200, 30),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle")
SIZES = (
    (112, 112),
    (112, 112),
    (140, 112),
    (112, 140),
    (98, 126),
    (126, 98),
    (84, 112),
    (140, 140),
    (168, 84),
)
"""(width, height) in pixels; the first is twice as frequent as the others."""

_SCALE = 2
_DIM = 100.0
"""Red light that is lost from left to right, and green from top to bottom, of 255."""
T = TypeVar("T")
Box = tuple[float, float, float, float]


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One item, each as likely as the other."""
    return items[int(rng.integers(len(items)))]


def pick_several(rng: np.random.Generator, items: Sequence[T], n: int) -> list[T]:
    """``n`` different items in random order."""
    return [items[i] for i in rng.permutation(len(items))[:n]]


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A Python float in [low, high)."""
    return low + (high - low) * float(rng.random())


class Canvas:
    """An image being drawn; all coordinates are pixels of the finished image."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int] | None = None) -> None:
        self.width, self.height = size or pick(rng, SIZES)
        # The tint makes every image its own, so that parts of the data set can share none.
        shade = int(rng.integers(228, 246))
        tint = shade + rng.integers(-8, 9, 3)
        right, down = (np.linspace(0, _DIM, n * _SCALE) for n in (self.width, self.height))
        sheet = np.broadcast_to(tint.astype(float), (len(down), len(right), 3)).copy()
        sheet[..., 0] -= right
        sheet[..., 1] -= down[:, None]
        self._image = Image.fromarray(sheet.round().astype(np.uint8))
        self._draw = ImageDraw.Draw(self._image)

    def finish(self) -> Image.Image:
        """The finished RGB image."""
        return self._image.reduce(_SCALE)

    def shape(self, kind: str, color: str, box: Box) -> None:
        """Fill a circle, square or triangle that touches all four sides of ``box``."""
        x1, y1, x2, y2 = (v * _SCALE for v in box)
        fill = COLORS[color]
        if kind == "circle":
            self._draw.ellipse((x1, y1, x2 - 1, y2 - 1), fill=fill)
        elif kind == "square":
            self._draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=fill)
        else:
            self._draw.polygon(((x1, y2 - 1), (x2 - 1, y2 - 1), ((x1 + x2) / 2, y1)), fill=fill)

    def rectangle(self, color: tuple[int, int, int], box: Box) -> None:
        """Fill a box with an RGB colour."""
        x1, y1, x2, y2 = (v * _SCALE for v in box)
        self._draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=color)

    def line(
        self, color: tuple[int, int, int], points: Sequence[tuple[float, float]], width: float
    ) -> None:
        """Draw a line through ``points``."""
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        joint = "curve" if len(points) > 2 else None
        self._draw.line(scaled, fill=color, width=max(1, round(width * _SCALE)), joint=joint)

    def arc(
        self,
        color: tuple[int, int, int],
        center: tuple[float, float],
        radius: float,
        start: float,
        end: float,
    ) -> None:
        """Draw an arc from ``start`` to ``end`` degrees, counter-clockwise from the right."""
        x, y, r = (v * _SCALE for v in (*center, radius))
        self._draw.arc((x - r, y - r, x + r, y + r), -end, -start, fill=color, width=2 * _SCALE)


def polar(center: tuple[float, float], radius: float, degrees: float) -> tuple[float, float]:
    """The point at ``degrees`` counter-clockwise from the right, y downwards."""
    angle = math.radians(degrees)
    return center[0] + radius * math.cos(angle), center[1] - radius * math.sin(angle)
