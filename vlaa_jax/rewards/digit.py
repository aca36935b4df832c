"""Counting questions, "digit": the one number of the answer equals the gold's (section 4.1)."""

from fractions import Fraction
from functools import lru_cache

from vlaa_jax.rewards.extract import strip_answer_tags
from vlaa_jax.rewards.numbers import single_number


def score_digit(answer: str, gold: str) -> float:
    """1.0 when the answer holds exactly one number and it equals the gold's, else 0.0.

    Raises:
        ValueError: the gold itself is not one number.
    """
    target = _target(gold)
    if target is None:
        raise ValueError(digit_gold_problem(gold) or "the gold is not one number")
    return float(single_number(answer) == target)


def digit_gold_problem(gold: str) -> str | None:
    """Why no answer can be compared with this gold; None when all is well."""
    if _target(gold) is None:
        return f"gold {gold[:60]!r} is not exactly one number"
    return None


@lru_cache(maxsize=4096)  # a gold is compared with a whole group of answers
def _target(gold: str) -> Fraction | None:
    return single_number(strip_answer_tags(gold))
