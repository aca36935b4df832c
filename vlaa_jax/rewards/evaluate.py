"""Trees as numbers at fixed points, and equality of trees by such numbers.

Two expressions are equal when they agree at every point of a fixed sample where both are defined;
for anything but exact coincidence, which no model finds by chance, that is the same as being equal
everywhere. Nothing is simplified, so nothing can run for ever, and the same texts always get the
same verdict. Sizes are bounded before they are computed.
"""

import hashlib
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath

from vlaa_jax.rewards.trees import Tree

mp = mpmath.mp.clone()
mp.dps = 50
POINTS = 6
"""Points of the sample; in the first two all variables are positive."""
EXACT = mp.mpf(10) ** -35
"""Relative difference above which exact expressions differ."""
ROUNDED = mp.mpf("5e-7")
"""Difference of a decimal to what it is the rounding of: six decimals, or digits if tiny."""
_LARGEST_ARGUMENT = 10**15
_MOST_BITS = 10**7


class Undefined(Exception):
    """There is no value, or none that is worth its time."""


def value_at(tree: Tree, point: int) -> Any:
    """The value of a tree at a point of the sample, an ``mpf`` or ``mpc``.

    Raises:
        Undefined: there is none.
    """
    kind = tree[0]
    if kind in ("num", "dec"):
        return mp.mpf(tree[1].numerator) / tree[1].denominator
    if kind == "var":
        return _drawn(tree[1], point)
    if kind == "based":
        return _drawn(f"{tree[1]} to the base {tree[2]}", 0)
    if kind == "inf":
        return mp.mpf("1.23456789e4321")
    if kind == "app":
        said = ",".join(mp.nstr(value_at(part, point), 20) for part in tree[2:])
        return _drawn(f"{tree[1]}({said})", point)
    if kind == "call":
        return _call(tree[1], [value_at(part, point) for part in tree[2:]])
    if kind == "pow" and _is_odd_root(tree[2]):
        over, under = tree[2][1][1], tree[2][2]
        return _power(_root(value_at(tree[1], point), value_at(under, point)), mp.mpf(int(over)))
    values = [value_at(part, point) for part in tree[1:]]
    if kind == "neg":
        return -values[0]
    left, right = values
    if kind == "add":
        return left + right
    if kind == "mul":
        return left * right
    if kind == "div":
        if abs(right) < EXACT:
            raise Undefined
        return left / right
    return _power(left, right)


def _is_odd_root(tree: Tree) -> bool:
    """Whether an exponent is p/q with q odd, so that the root of a negative number is real."""
    if tree[0] != "div" or tree[1][0] != "num" or tree[2][0] != "num":
        return False
    over, under = tree[1][1], tree[2][1]
    return over > 0 and under in (3, 5, 7, 9) and over.denominator == 1


def sample(tree: Tree) -> list[Any]:
    """Values at all points; None where there is none."""
    found: list[Any] = []
    for point in range(POINTS if variables(tree) else 1):
        try:
            value = value_at(tree, point)
            found.append(value if mp.isfinite(value) else None)
        except (Undefined, ValueError, ZeroDivisionError, OverflowError, TypeError):
            found.append(None)
    return found


def variables(tree: Tree) -> frozenset[str]:
    """Names of the variables and functions in a tree."""
    if tree[0] in ("var", "app"):
        below = tree[2:] if tree[0] == "app" else ()
        return frozenset({str(tree[1])}).union(*(variables(part) for part in below))
    return frozenset().union(*(variables(part) for part in tree[1:] if isinstance(part, tuple)))


def is_decimal(tree: Tree) -> bool:
    """Whether a number in a tree is written with a point, so that it may be rounded."""
    return tree[0] == "dec" or any(is_decimal(part) for part in tree[1:] if isinstance(part, tuple))


def equal(left: Tree, right: Tree, factor: Fraction = Fraction(1)) -> bool:
    """Whether ``left`` equals ``factor`` times ``right``."""
    if factor != 1:
        right = ("mul", ("dec", factor), right)
    if not variables(left) and variables(right):
        left = ("add", left, ("mul", ("num", Fraction(0)), right))
    elif not variables(right) and variables(left):
        right = ("add", right, ("mul", ("num", Fraction(0)), left))
    rounded = is_decimal(left) or is_decimal(right)
    pairs = list(zip(sample(left), sample(right), strict=True))
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not known or any((a is None) != (b is None) for a, b in pairs):
        return False
    return all(_close(a, b, rounded) for a, b in known)


def ratio(left: Tree, right: Tree) -> Any:
    """The constant by which ``left`` is a multiple of ``right``; None where there is none."""
    pairs = zip(sample(left), sample(right), strict=False)
    known = [(a, b) for a, b in pairs if a is not None and b is not None and abs(b) > EXACT]
    if len(known) < 2:
        return None
    ratios = [a / b for a, b in known]
    rounded = is_decimal(left) or is_decimal(right)
    if abs(ratios[0]) < EXACT or not all(_close(ratios[0], r, rounded) for r in ratios[1:]):
        return None
    return ratios[0]


def _close(left: Any, right: Any, rounded: bool) -> bool:
    size = max(abs(left), abs(right))
    if size == 0:
        return True
    if rounded:
        return bool(abs(left - right) <= ROUNDED * min(size, mp.mpf(1)) * mp.mpf("1.001"))
    return bool(abs(left - right) <= EXACT * max(size, EXACT))


def _drawn(name: str, point: int) -> Any:
    """The value that stands for a variable: between 0.3 and 3.3, negative at some points."""
    digest = hashlib.sha256(f"{name}/{point}".encode()).digest()
    value = mp.mpf(int.from_bytes(digest[:16], "big")) / mp.mpf(2) ** 128 * 3 + mp.mpf("0.3")
    return -value if point >= 2 and digest[16] % 2 else value


def _power(base: Any, exponent: Any) -> Any:
    if base == 0:
        if exponent.real <= 0 if isinstance(exponent, mp.mpc) else exponent <= 0:
            raise Undefined
        return mp.mpf(0)
    if abs(exponent) > _LARGEST_ARGUMENT or abs(exponent * mp.log(abs(base), 2)) > _MOST_BITS:
        raise Undefined
    return mp.power(base, exponent)


def _bounded(
    function: Callable[..., Any], largest: float = _LARGEST_ARGUMENT
) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        if any(abs(argument) > largest for argument in arguments):
            raise Undefined
        return function(*arguments)

    return call


def _root(radicand: Any, degree: Any) -> Any:
    if degree == 0 or abs(degree) > 100:
        raise Undefined
    if isinstance(radicand, mp.mpf) and radicand < 0 and degree in (3, 5, 7, 9):
        return -mp.root(-radicand, int(degree))  # the real root
    return _power(radicand, 1 / degree) if radicand else mp.mpf(0)


def _log(base: Any) -> Callable[[Any], Any]:
    def call(argument: Any) -> Any:
        if argument == 0:
            raise Undefined
        return mp.log(argument) / base()

    return call


def _whole(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        if any(argument != int(argument.real) for argument in arguments):
            raise Undefined
        return mp.mpf(function(*(int(argument.real) for argument in arguments)))

    return call


def _inverse(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def call(argument: Any) -> Any:
        below = function(argument)
        if abs(below) < EXACT:
            raise Undefined
        return 1 / below

    return call


def _call(name: str, arguments: list[Any]) -> Any:
    function = _FUNCTIONS.get(name)
    if function is None:
        raise Undefined
    return function(*arguments)


def _tan(argument: Any) -> Any:
    return mp.sin(argument) * _inverse(mp.cos)(argument)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "pi": lambda: +mp.pi,
    "e": lambda: +mp.e,
    "i": lambda: mp.mpc(0, 1),
    "sin": _bounded(mp.sin),
    "cos": _bounded(mp.cos),
    "tan": _bounded(_tan),
    "cot": _bounded(lambda x: mp.cos(x) * _inverse(mp.sin)(x)),
    "sec": _bounded(_inverse(mp.cos)),
    "csc": _bounded(_inverse(mp.sin)),
    "arcsin": _bounded(mp.asin),
    "arccos": _bounded(mp.acos),
    "arctan": _bounded(mp.atan),
    "sinh": _bounded(mp.sinh, 10**5),
    "cosh": _bounded(mp.cosh, 10**5),
    "tanh": _bounded(mp.tanh, 10**5),
    "exp": _bounded(mp.exp, 10**5),
    "ln": _log(lambda: 1),
    "log": _log(lambda: mp.log(10)),
    "lg": _log(lambda: mp.log(10)),
    "abs": abs,
    "root": _root,
    "sqrt": lambda x: _root(x, mp.mpf(2)),
    "degrees": lambda x: x * mp.pi / 180,
    "percent": lambda x: x / 100,
    "factorial": _bounded(mp.factorial, 10**4),
    "binom": _bounded(mp.binomial, 10**4),
    "gcd": _bounded(_whole(math.gcd)),
    "lcm": _bounded(_whole(math.lcm), 10**6),
    "max": lambda *x: max(x),
    "min": lambda *x: min(x),
}
