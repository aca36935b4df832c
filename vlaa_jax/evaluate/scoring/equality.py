"""Whether two free-form answers are equal in the sense of VLMEvalKit's MathVision."""

from vlaa_jax.evaluate.scoring.arithmetic import Number, arithmetic_value
from vlaa_jax.evaluate.scoring.latex import latex_value

TOLERANCE = 1e-6


def answers_equal(answer: str, gold: str, dialect: str) -> bool:
    """Equal as texts without case, or within 1e-6 as arithmetic, or within 1e-6 as LaTeX.

    Args:
        answer: what was extracted.
        gold: from the data set.
        dialect: of ``latex_value``.
    """
    answer, gold = answer.lower().strip(), gold.lower().strip()
    if answer == gold:
        return True
    if _close(arithmetic_value(gold), arithmetic_value(answer)):
        return True
    left = latex_value(gold, dialect)
    return left is not None and _close(left, latex_value(answer, dialect))


def _close(left: Number | None, right: Number | None) -> bool:
    if left is None or right is None:
        return False
    try:
        return bool(abs(left - right) < TOLERANCE)
    except OverflowError:
        return False
