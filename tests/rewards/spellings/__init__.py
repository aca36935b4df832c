"""How people and models write answers, committed and not; knows nothing of the parser.

``{v}`` stands for a spelling of the gold, ``{o}`` for one of another value. Written from answers of
vision-language models, public bug reports of graders and ordinary English and Chinese.
"""

from spellings.of_any_value import COMMITTED, UNCOMMITTED
from spellings.of_numbers import (
    COUNT_COMMITTED,
    COUNT_UNCOMMITTED,
    MATH_COMMITTED,
    NUMBER_COMMITTED,
    NUMBER_UNCOMMITTED,
)
from spellings.of_options_and_boxes import (
    BOX_COMMITTED,
    BOX_UNCOMMITTED,
    MCQ_COMMITTED,
    MCQ_UNCOMMITTED,
)

__all__ = [
    "BOX_COMMITTED",
    "BOX_UNCOMMITTED",
    "COMMITTED",
    "COUNT_COMMITTED",
    "COUNT_UNCOMMITTED",
    "MATH_COMMITTED",
    "MCQ_COMMITTED",
    "MCQ_UNCOMMITTED",
    "NUMBER_COMMITTED",
    "NUMBER_UNCOMMITTED",
    "UNCOMMITTED",
    "lines",
]


def lines(*tables: str) -> list[str]:
    """The rows of some tables."""
    return [row for table in tables for row in table.strip("\n").split("\n") if "{" in row]
