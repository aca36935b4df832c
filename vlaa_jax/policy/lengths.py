"""Micro-batches of like lengths, in few shapes: less padding, and no more programs.

Padded to the longest answer and the longest prompt of a step, an update computes mostly padding.
An update's prompts may be learned from in any order, since its loss is divided by totals of the
whole. So they are sorted, and each block of them is cut to the smallest of a few shapes that were
fixed at the start. Everything is a function of all lengths, so that all hosts run the same programs
in the same order.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FRACTIONS = ((0.25, 0.5), (0.5, 0.5), (0.5, 0.75), (0.5, 1.0), (1.0, 0.75), (1.0, 1.0))
"""Of the longest prompt and the longest answer: six shapes, for each is a program that compiles for
minutes. Chosen by trial at lognormal lengths, see docs/planning.md."""


class Shape(NamedTuple):
    """Positions of a prompt and of a completion."""

    prompt: int
    answer: int


class MicroBatch(NamedTuple):
    """Some prompts of an update.

    Attributes:
        index_P: places of the prompts in the update.
        shape: what they are cut to.
    """

    index_P: NDArray[np.int64]
    shape: Shape


def micro_shapes(prompt: int, answer: int, multiple: int = 1) -> tuple[Shape, ...]:
    """At most six shapes, by FRACTIONS.

    Args:
        prompt: positions of the longest prompt.
        answer: positions of the longest completion.
        multiple: sizes are rounded up to it; 128 on a TPU, whose registers are that wide.

    Returns:
        The shapes, the largest last; equal ones once.
    """

    def part(size: int, fraction: float) -> int:
        return math.ceil(size * fraction / multiple) * multiple

    return tuple(sorted({Shape(part(prompt, p), part(answer, a)) for p, a in FRACTIONS}))


def micro_batches(
    prompt_P: NDArray[np.integer],
    answer_P: NDArray[np.integer],
    shapes: Sequence[Shape],
    micro: int,
    *,
    completions: int,
) -> list[MicroBatch]:
    """Deals an update's prompts to micro-batches of like lengths.

    Args:
        prompt_P: length of each prompt.
        answer_P: length of the longest completion of each.
        shapes: from `micro_shapes`; the last holds everything.
        micro: prompts of a micro-batch; divides their number.
        completions: per prompt, G.

    Returns:
        The micro-batches, the largest shape first, so that what needs most memory comes first.

    Raises:
        ValueError: sizes do not divide, or something is longer than the last shape.
    """
    count = len(prompt_P)
    if count % micro:
        raise ValueError(f"{count} prompts are not dealt to micro-batches of {micro}")
    if prompt_P.max(initial=0) > shapes[-1].prompt or answer_P.max(initial=0) > shapes[-1].answer:
        raise ValueError(f"a prompt or an answer is longer than {shapes[-1]}")
    # By the smallest shape that holds a prompt, then by length; equal ones as they came.
    shapes = sorted(shapes, key=lambda shape: _positions(shape, completions))
    both = zip(prompt_P, answer_P, strict=True)
    size_P = np.array([_positions(_smallest(*lengths, shapes), completions) for lengths in both])
    found = []
    order_P = np.lexsort((-(prompt_P + completions * answer_P), -size_P))
    for index_P in np.split(order_P, count // micro):
        longest = prompt_P[index_P].max(), answer_P[index_P].max()
        found.append(MicroBatch(index_P, _smallest(*longest, shapes)))
    return found


def _smallest(prompt: int, answer: int, shapes: Sequence[Shape]) -> Shape:
    """The first of the shapes, which come in order of size, that holds both."""
    return next(s for s in shapes if s.prompt >= prompt and s.answer >= answer)


def _positions(shape: Shape, completions: int) -> int:
    return shape.prompt + completions * shape.answer
