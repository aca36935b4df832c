"""Math-Verify on two texts that the host could not compare; runs in the worker processes."""

import contextlib
import functools
from typing import Any

from vlaa_jax.rewards.exact.decide import shape_of
from vlaa_jax.rewards.exact.trees import Unsupported


def judge(item: dict[str, str]) -> dict[str, Any]:
    """Compare ``item["answer"]`` with ``item["gold"]``; both carry their own delimiters.

    Returns:
        ``{"equal": bool}``, or ``{"gold_problem": str}`` when the gold does not parse.

    Raises:
        MemoryError, RecursionError: the comparison failed for reasons that are not the answer's.
    """
    golds = _parse(item["gold"])
    if not golds:
        return {"gold_problem": f"Math-Verify cannot parse the gold {item['gold'][:60]!r}"}
    answers = _parse(item["answer"])
    if not answers:
        return {"equal": False}
    if "%" not in item["gold"] + item["answer"] and _differ_at_a_point(golds[0], answers[0]):
        return {"equal": False}
    if _are_closed_equations(golds[0], answers[0]):
        # Math-Verify would compare their solutions: none, and none.
        sides = ((golds[0].lhs, answers[0].lhs), (golds[0].rhs, answers[0].rhs))
        return {"equal": all(_verify(gold, answer) for gold, answer in sides)}
    return {"equal": _verify(golds[0], answers[0])}


def warm_up() -> None:
    """Import Math-Verify and let its parser build its tables, before any deadline runs."""
    for gold, answer in (
        (r"$\frac{1}{2}x^2+3x-\sqrt{5}$", r"$0.5x^{2}+3\cdot x-5^{0.5}$"),
        (r"$y=2\sin(3x)+1$", r"$y=1+2\sin\left(3x\right)$"),
        (r"$\left(1,\frac{9}{2}\right]$", r"$(1,4.5]$"),
        (r"$|x-3|+\log_2(x)+e^{x}$", r"$\log_{2}{x}+|x-3|+\exp(x)$"),
        (r"$\{1,2\}$", r"\boxed{1,2}"),
        (r"$x\le 5$", r"$5\ge x$"),
        (r"$\frac{\pi}{3}$", r"$60^{\circ}$"),
    ):
        judge({"gold": gold, "answer": answer})


@functools.lru_cache(maxsize=1_024)
def _parse(text: str) -> list[Any]:
    """SymPy objects of a text with its delimiters; golds come back once per completion."""
    import math_verify

    from vlaa_jax.rewards.exact import symbols

    shape = shape_of(text[1:-1]) if text[:1] == text[-1:] == "$" else None
    if shape is not None:
        with contextlib.suppress(Unsupported):
            return [symbols.build(shape)]

    targets = [math_verify.LatexExtractionConfig(), math_verify.ExprExtractionConfig()]
    parsed = math_verify.parse(
        text,
        extraction_config=targets[:1] if "$" in text or "\\" in text else targets,
        fallback_mode="no_fallback",  # unparsed text would be compared as text
        parsing_timeout=None,  # the pool kills; signals do not work off the main thread
    )
    return list(parsed)


def _differ_at_a_point(gold: Any, answer: Any) -> bool:
    """Whether two expressions, or two values of one variable, plainly differ in a number.

    Math-Verify would find the same after trying to simplify and solve, a hundred times slower. Only
    differences far beyond its rounding (6 decimals) count; anything else is left to it.
    """
    import sympy
    from sympy.core.function import AppliedUndef

    if isinstance(gold, sympy.Eq) and isinstance(answer, sympy.Eq):
        if gold.lhs != answer.lhs or not isinstance(gold.lhs, sympy.Symbol):
            return False
        gold, answer = gold.rhs, answer.rhs
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return False
    variables = sorted(gold.free_symbols, key=str)
    if gold.free_symbols != answer.free_symbols or gold.has(AppliedUndef):
        return False
    point = {v: sympy.Rational(7391 + 1307 * i, 10_007) for i, v in enumerate(variables)}
    try:
        left, right = (complex(e.evalf(15, subs=point)) for e in (gold, answer))
    except (TypeError, ValueError, AttributeError, ArithmeticError):
        return False
    return abs(left - right) > 1e-4 * (1.0 + max(abs(left), abs(right)))


def _are_closed_equations(gold: Any, answer: Any) -> bool:
    """Whether both are equations without a variable, such as ``f(2)=5``."""
    import sympy

    return all(isinstance(e, sympy.Eq) and not e.free_symbols for e in (gold, answer))


def _verify(gold: Any, answer: Any) -> bool:
    import math_verify

    try:
        return bool(math_verify.verify(gold, answer, timeout_seconds=None, raise_on_error=True))
    except (MemoryError, RecursionError):
        raise
    except Exception:
        # SymPy could not compare these two kinds of thing: they were not shown to be equal.
        return False
