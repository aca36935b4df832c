"""Diagrams: bar charts and angles (mcq), function plots (math)."""

import numpy as np

from vlaa_jax.data.synthetic.canvas import COLORS, Canvas, pick, pick_several, polar, uniform
from vlaa_jax.data.synthetic.sample import SyntheticSample

LETTERS = ("A", "B", "C", "D")
ANGLES = (30, 60, 90, 120, 150)
SLOPES = (-2, -1, 1, 2)
INTERCEPTS = (-2, -1, 0, 1, 2)
_COLORS = tuple(COLORS)
_INK = (40, 40, 40)
_GRID = (190, 190, 190)
_PLOT_SIZES = ((112, 112), (112, 112), (140, 112), (112, 140), (140, 140), (126, 126))
_UNITS = 4.0


def choosing(rng: np.random.Generator) -> SyntheticSample:
    """Four options in a 'Choices:' block; each letter is equally likely."""
    return _bars(rng) if rng.random() < 0.6 else _angle(rng)


def _bars(rng: np.random.Generator) -> SyntheticSample:
    canvas = Canvas(rng)
    colors = pick_several(rng, _COLORS, 4)
    heights = [level + uniform(rng, -0.05, 0.05) for level in (0.2, 0.42, 0.64, 0.86)]
    order = rng.permutation(4)
    margin = 0.06 * canvas.width
    step = (canvas.width - 2 * margin) / 4
    floor = canvas.height * 0.94
    for slot, rank in enumerate(order):
        x = margin + slot * step
        top = floor - heights[rank] * canvas.height
        canvas.rectangle(COLORS[colors[rank]], (x + 0.1 * step, top, x + 0.9 * step, floor))
    canvas.line(_INK, ((margin / 2, floor), (canvas.width - margin / 2, floor)), 2)
    extreme, right = pick(rng, (("tallest", colors[3]), ("shortest", colors[0])))
    options, letter = _options(rng, right, [c for c in colors if c != right])
    return SyntheticSample(
        image=canvas.finish(),
        question=with_choices(f"Which bar is the {extreme}?", options),
        gt=letter,
        verifier_type="mcq",
        reasoning=f"The {extreme} bar is {right}. Choice {letter} is {right}.",
        answer=letter,
        source="arxivqa",
        family="bars",
        facts={"right": right, "options": options, "order": [colors[r] for r in order]},
    )


def _angle(rng: np.random.Generator) -> SyntheticSample:
    canvas = Canvas(rng)
    degrees = pick(rng, ANGLES)
    short = min(canvas.width, canvas.height)
    # The flat arm points right, or left for the mirror image; the other arm opens upwards.
    mirrored = bool(rng.integers(2))
    x = canvas.width * (0.5 + (0.08 if mirrored else -0.08)) + uniform(rng, -0.05, 0.05) * short
    vertex = (x, canvas.height * uniform(rng, 0.7, 0.85))
    radius = uniform(rng, 0.38, 0.44) * short
    start, end = (180 - degrees, 180) if mirrored else (0, degrees)
    width = uniform(rng, 2.0, 3.0)
    canvas.arc(COLORS[pick(rng, ("red", "blue", "green"))], vertex, radius * 0.45, start, end)
    for arm in (start, end):
        canvas.line(_INK, (vertex, polar(vertex, radius, arm)), width)
    right = f"{degrees}°"
    options, letter = _options(rng, right, [f"{a}°" for a in ANGLES if a != degrees])
    return SyntheticSample(
        image=canvas.finish(),
        question=with_choices("How large is the marked angle?", options),
        gt=letter,
        verifier_type="mcq",
        reasoning=f"The angle is {right}. Choice {letter} is {right}.",
        answer=letter,
        source="geoqa170k",
        family="geoqa_plus",
        facts={"right": right, "options": options},
    )


def _options(rng: np.random.Generator, right: str, wrong: list[str]) -> tuple[list[str], str]:
    place = int(rng.integers(4))
    options = pick_several(rng, wrong, 3)
    options.insert(place, right)
    return options, LETTERS[place]


def with_choices(question: str, options: list[str]) -> str:
    """A question and its options, a letter before each."""
    lines = [f"{letter}: {text}" for letter, text in zip(LETTERS, options, strict=True)]
    return "\n".join([question, "Choices:", *lines])


def plotting(rng: np.random.Generator) -> SyntheticSample:
    """A line or a parabola on a unit grid; the gold is its equation in LaTeX."""
    canvas = Canvas(rng, pick(rng, _PLOT_SIZES))
    intercept = pick(rng, INTERCEPTS)
    parabola = rng.random() < 0.4
    slope = pick(rng, (-1, 1)) if parabola else pick(rng, SLOPES)
    _axes(canvas)
    xs = [-_UNITS + i * (0.25 if parabola else 2 * _UNITS) for i in range(33 if parabola else 2)]
    points = [_at(canvas, x, slope * (x**2 if parabola else x) + intercept) for x in xs]
    color = COLORS[pick(rng, ("red", "blue", "green"))]
    canvas.line(color, points, 3.0)
    equation = f"${_equation(slope, intercept, parabola)}$"
    if parabola:
        reasoning = f"A parabola opens {'up' if slope > 0 else 'down'} from {intercept}."
    else:
        verb = "rises" if slope > 0 else "falls"
        reasoning = f"A line crosses the y axis at {intercept} and {verb} {abs(slope)} per step."
    return SyntheticSample(
        image=canvas.finish(),
        question="The grid lines are 1 apart. Which function is plotted?",
        gt=equation,
        verifier_type="math",
        reasoning=reasoning,
        answer=equation,
        source="synthesis",
        family="gen_func-func_polynomial",
        facts={"slope": slope, "intercept": intercept, "parabola": parabola},
    )


def _axes(canvas: Canvas) -> None:
    for unit in (-3, -2, -1, 1, 2, 3, 0):
        ink, width = (_INK, 2.0) if unit == 0 else (_GRID, 1.0)
        canvas.line(ink, (_at(canvas, unit, -_UNITS), _at(canvas, unit, _UNITS)), width)
        canvas.line(ink, (_at(canvas, -_UNITS, unit), _at(canvas, _UNITS, unit)), width)


def _at(canvas: Canvas, x: float, y: float) -> tuple[float, float]:
    """Pixel of a point of the plane; four units on either side of the origin fill the image."""
    width, height = canvas.width, canvas.height
    return width * (0.5 + x / (2 * _UNITS)), height * (0.5 - y / (2 * _UNITS))


def _equation(slope: int, intercept: int, parabola: bool) -> str:
    factor = {1: "", -1: "-"}.get(slope, str(slope))
    tail = "" if intercept == 0 else f" {'+' if intercept > 0 else '-'} {abs(intercept)}"
    return f"y = {factor}{'x^2' if parabola else 'x'}{tail}"
