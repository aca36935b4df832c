"""The value of a text that is plain Python arithmetic, without running it.

VLMEvalKit hands answers to ``eval``. This reads the same numbers and operators from the syntax tree
and works them out with bounds; names, calls, comparisons, indexing, text and complex literals have
no value here.
"""

import ast
import operator
import re
from collections.abc import Callable

Number = int | float | complex

MAX_CHARS = 200
MAX_BITS = 4_096
"""Size of the largest whole number that is worked out."""

# Letters only inside numbers; possessive, so that a long text is given up at once.
_ARITHMETIC = re.compile(
    r"(?>[\s+\-*/%()^&|~]|<<|>>|0[xob][0-9a-f_]++|[0-9_.]++(?>e[+-]?[0-9_]++)?)++"
)
_OPERATORS: dict[type[ast.AST], Callable[..., Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitXor: operator.xor,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.RShift: operator.rshift,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Invert: operator.invert,
}


def arithmetic_value(text: str) -> Number | None:
    """What the text comes to; None where it is not arithmetic, is undefined or is too large."""
    text = text.strip()
    if len(text) > MAX_CHARS or not _ARITHMETIC.fullmatch(text):
        return None
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
        return None


def power(base: Number, exponent: Number) -> Number:
    """``base ** exponent`` within bounds.

    Raises:
        OverflowError: the result would have more than MAX_BITS bits.
        ZeroDivisionError: a power of zero that is not defined.
    """
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and abs(base) > 1 and base.bit_length() * abs(exponent) > MAX_BITS:  # type: ignore[union-attr]
        raise OverflowError
    result: Number = base**exponent
    return result


def _value(node: ast.AST) -> Number:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value  # True is a name in lower case
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_value(node.operand)) if _known(node.op) else _none()
    if not isinstance(node, ast.BinOp):
        return _none()
    left, right = _value(node.left), _value(node.right)
    if isinstance(node.op, ast.Pow):
        return power(left, right)
    if isinstance(node.op, ast.LShift):
        return left * power(2, right) if _shiftable(left, right) else _none()
    return _OPERATORS[type(node.op)](left, right) if _known(node.op) else _none()


def _known(sign: ast.AST) -> bool:
    return type(sign) in _OPERATORS


def _shiftable(left: Number, right: Number) -> bool:
    return isinstance(left, int) and isinstance(right, int) and right >= 0


def _none() -> Number:
    raise ValueError("no arithmetic")
