"""Maths that the host could not compare, in the worker processes.

Texts are read by ``latex``, and compared by ``compare`` as numbers at fixed points. What that does
not read (integrals, sums, limits, cases, ...) goes to Math-Verify, with letters kept apart by case,
units left alone, and every source of chance fixed.
"""

import functools
import sys
from fractions import Fraction
from typing import Any

from vlaa_jax.rewards.compare import problem_of, same
from vlaa_jax.rewards.latex import shape_of
from vlaa_jax.rewards.latex_tokens import BEYOND


def judge(item: dict[str, Any]) -> dict[str, Any]:
    """Compare ``item["answer"]`` with ``item["gold"]``, both LaTeX without delimiters.

    ``item["factors"]``, where given, are the numbers by which the answer's value may be multiplied.

    Returns:
        ``{"equal": bool}``, or ``{"gold_problem": str}`` when the gold cannot be scored.

    Raises:
        MemoryError, RecursionError: the comparison failed for reasons that are not the answer's.
    """
    gold, answer = item["gold"], item["answer"]
    target = shape_of(gold)
    if target is None:
        if not _parse(gold):
            return {"gold_problem": f"cannot parse the gold {gold[:60]!r}"}
        return {"equal": gold == answer or _verified(gold, answer)}
    problem = problem_of(target)
    if problem:
        return {"gold_problem": f"gold {gold[:60]!r} {problem}"}
    said = shape_of(answer)
    if said is None:
        return {"equal": bool(BEYOND.search(answer)) and _verified(gold, answer)}
    factors = [Fraction(text) for text in item.get("factors", ["1"])]
    return {"equal": any(same(target, said, factor) for factor in factors)}


def warm_up() -> None:
    """Read and compare once, before any deadline runs, and allow for long sums."""
    sys.setrecursionlimit(20_000)  # a text has at most MAX_EXPRESSION characters
    judge({"gold": r"\frac{1}{2}x^2+\sqrt{5}\sin(\pi x)", "answer": r"\sin(pi*x)*sqrt(5)+x^2/2"})


def _verified(gold: str, answer: str) -> bool:
    import math_verify
    from sympy.core.random import seed

    seed(0)
    ours, said = _parse(gold), _parse(answer)
    if not ours or not said:
        return False
    try:
        return bool(
            math_verify.verify(list(ours), list(said), timeout_seconds=None, raise_on_error=True)
        )
    except (MemoryError, RecursionError):
        raise
    except Exception:
        # SymPy could not compare these two kinds of thing: they were not shown to be equal.
        return False


@functools.lru_cache(maxsize=256)
def _parse(text: str) -> tuple[Any, ...]:
    """SymPy's reading of a text, by Math-Verify's parser; empty where it has none."""
    import latex2sympy2_extended
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig

    try:
        parsed = latex2sympy2_extended.latex2sympy(
            text,
            normalization_config=NormalizationConfig(
                basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all",
                equations=False,
            ),
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )  # fmt: skip
    except (MemoryError, RecursionError):
        raise
    except Exception:  # whatever a parser generator raises on words
        return ()
    return (parsed, text)
