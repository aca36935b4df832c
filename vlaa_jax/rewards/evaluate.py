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

from vlaa_jax.rewards.trees import Tree, walk

mp = mpmath.mp.clone()
mp.dps = 50
POINTS = 6
"""Points of the sample; in the first two all variables are positive."""
EXACT = mp.mpf(10) ** -35
"""Relative difference above which exact expressions differ."""
ROUNDED = mp.mpf("5e-7")
"""Difference of a decimal to what it is the rounding of: six decimals, or digits if tiny."""
_MOST_BITS = 10**7


class Undefined(Exception):
    """There is no value, or none that is worth its time."""


def value_at(tree: Tree, point: int) -> Any:
    """The value of a tree at a point of the sample, an ``mpf`` or ``mpc``.

    Raises:
        Undefined: there is none.
    """
    match tree:
        case ("num" | "dec", number):
            return mp.mpf(number.numerator) / number.denominator
        case ("var", name):
            return _drawn(name, point)
        case ("based", digits, base):
            return _drawn(f"{digits} to the base {base}", 0)
        case ("inf",):
            return mp.mpf("1.23456789e4321")
        case ("app", name, *parts):
            said = ",".join(mp.nstr(value_at(part, point), 20) for part in parts)
            return _drawn(f"{name}({said})", point)
        case ("pow", base, ("div", ("num", over), ("num", under))) if (
            over > 0 and over.denominator == 1 and under in (3, 5, 7, 9)
        ):  # the root of a negative number is real
            return _power(_root(value_at(base, point), mp.mpf(int(under))), mp.mpf(int(over)))
        case ("call", name, *parts) | (name, *parts):
            function, largest = _FUNCTIONS[name]
            values = [value_at(part, point) for part in parts]
            if any(abs(value) > largest for value in values):
                raise Undefined
            return function(*values)


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
    return frozenset(str(part[1]) for part in walk(tree) if part[0] in ("var", "app"))


def is_decimal(tree: Tree) -> bool:
    """Whether a number in a tree is written with a point, so that it may be rounded."""
    return any(part[0] == "dec" for part in walk(tree))


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
        if exponent.real <= 0:
            raise Undefined
        return mp.mpf(0)
    if abs(exponent) > _ANGLE or abs(exponent * mp.log(abs(base), 2)) > _MOST_BITS:
        raise Undefined
    return mp.power(base, exponent)


def _root(radicand: Any, degree: Any) -> Any:
    if degree == 0 or abs(degree) > 100:
        raise Undefined
    if isinstance(radicand, mp.mpf) and radicand < 0 and degree in (3, 5, 7, 9):
        return -mp.root(-radicand, int(degree))  # the real root
    return _power(radicand, 1 / degree) if radicand else mp.mpf(0)


def _divided(over: Any, under: Any) -> Any:
    if abs(under) < EXACT:
        raise Undefined
    return over / under


def _log(argument: Any) -> Any:
    if argument == 0:
        raise Undefined
    return mp.log(argument)


def _whole(value: Any) -> int:
    if value != int(value.real):
        raise Undefined
    return int(value.real)


_NO_BOUND = math.inf
_ANGLE, _RISING = 1e15, 1e5
_FUNCTIONS: dict[str, tuple[Callable[..., Any], float]] = {
    "neg": (lambda x: -x, _NO_BOUND),
    "add": (lambda x, y: x + y, _NO_BOUND),
    "mul": (lambda x, y: x * y, _NO_BOUND),
    "div": (_divided, _NO_BOUND),
    "pow": (_power, _NO_BOUND),
    "pi": (lambda: +mp.pi, _NO_BOUND),
    "e": (lambda: +mp.e, _NO_BOUND),
    "i": (lambda: mp.mpc(0, 1), _NO_BOUND),
    "sin": (mp.sin, _ANGLE),
    "cos": (mp.cos, _ANGLE),
    "tan": (lambda x: _divided(mp.sin(x), mp.cos(x)), _ANGLE),
    "cot": (lambda x: _divided(mp.cos(x), mp.sin(x)), _ANGLE),
    "sec": (lambda x: _divided(1, mp.cos(x)), _ANGLE),
    "csc": (lambda x: _divided(1, mp.sin(x)), _ANGLE),
    "arcsin": (mp.asin, _ANGLE),
    "arccos": (mp.acos, _ANGLE),
    "arctan": (mp.atan, _ANGLE),
    "sinh": (mp.sinh, _RISING),
    "cosh": (mp.cosh, _RISING),
    "tanh": (mp.tanh, _RISING),
    "exp": (mp.exp, _RISING),
    "ln": (_log, _NO_BOUND),
    "log": (lambda x: _log(x) / mp.log(10), _NO_BOUND),
    "lg": (lambda x: _log(x) / mp.log(10), _NO_BOUND),
    "abs": (abs, _NO_BOUND),
    "root": (_root, _NO_BOUND),
    "degrees": (lambda x: x * mp.pi / 180, _NO_BOUND),
    "percent": (lambda x: x / 100, _NO_BOUND),
    "factorial": (mp.factorial, 1e4),
    "binom": (mp.binomial, 1e4),
    "gcd": (lambda *x: mp.mpf(math.gcd(*map(_whole, x))), _ANGLE),
    "lcm": (lambda *x: mp.mpf(math.lcm(*map(_whole, x))), 1e6),
    "max": (lambda *x: max(x), _NO_BOUND),
    "min": (lambda *x: min(x), _NO_BOUND),
}
"""What each operator and function is, and the largest argument that is worth its time."""
