"""Embedded data: images drawn by code in the released VLAA-Thinking form, one task per verifier."""

from collections.abc import Callable

import numpy as np

from vlaa_jax.data.synthetic.diagrams import choosing, plotting
from vlaa_jax.data.synthetic.sample import SyntheticSample
from vlaa_jax.data.synthetic.scenes import counting, describing, finding

TASKS: dict[str, Callable[[np.random.Generator], SyntheticSample]] = {
    "digit": counting,
    "mcq": choosing,
    "math": plotting,
    "iou": finding,
    "open_ended": describing,
}
"""Drawing function of each verifier type."""


def draw_sample(task: str, rng: np.random.Generator) -> SyntheticSample:
    """Draw one sample in memory.

    Args:
      task: one of schema.VERIFIER_TYPES.
      rng: a numpy generator; the same state gives the same sample, pixel for pixel.
    """
    return TASKS[task](rng)


__all__ = ["TASKS", "SyntheticSample", "draw_sample"]
