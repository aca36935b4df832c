"""Trees as floating-point numbers at fixed points, to show that two of them are different."""

import cmath
import math
from typing import Any

from vlaa_jax.rewards.exact.trees import Tree

POINTS = 3
_ROUNDING = 3e-6
"""Math-Verify takes decimals as equal that agree to six places."""
_NOISE = 1e-12
"""Share of the largest intermediate value below which a difference may be float error."""
_CANCELLED = 1e-4
"""A sum so much smaller than its terms has lost digits: then the share is a thousandfold."""

_FUNCTIONS: dict[str, Any] = {
    "abs": abs, "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan,
    "cot": lambda z: 1 / cmath.tan(z), "sec": lambda z: 1 / cmath.cos(z),
    "csc": lambda z: 1 / cmath.sin(z), "arcsin": cmath.asin, "arccos": cmath.acos,
    "arctan": cmath.atan, "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh,
    "exp": cmath.exp, "ln": cmath.log,
}  # fmt: skip


class Value:
    """A tree's value at one point, and a bound on its float error."""

    __slots__ = ("error", "number")

    def __init__(self, number: complex, error: float) -> None:
        self.number = number
        self.error = error

    def differs(self, other: "Value") -> bool:
        """Plainly different: beyond any rounding of six decimals, and beyond float error."""
        gap = abs(self.number - other.number)
        return gap > _ROUNDING + self.error + other.error


def values(tree: Tree) -> tuple[Value | None, ...]:
    """The value at each of the fixed points; None where there is none."""
    return tuple(_value(tree, point) for point in range(POINTS))


def _value(tree: Tree, point: int) -> Value | None:
    walk = _Walk(point)
    try:
        number = walk.of(tree)
    except (ArithmeticError, ValueError, TypeError):
        return None
    if not (cmath.isfinite(number) and walk.largest < 1e12):
        return None
    return Value(number, walk.noise * walk.largest)


def _coordinate(name: str, point: int) -> float:
    """A real number in -2..2 for a variable: positive, mixed and negative in turn."""
    seed = sum((index + 1) * ord(char) for index, char in enumerate(name))
    size = 0.3 + (seed * 0.6180339887498949 + 0.37 * point) % 1.6
    return -size if point == 2 or (point == 1 and seed % 2) else size


class _Walk:
    def __init__(self, point: int) -> None:
        self._point = point
        self.largest = 1.0
        self.noise = _NOISE

    def of(self, tree: Tree) -> complex:
        number = complex(self._of(tree))
        self.largest = max(self.largest, abs(number))
        if abs(number.imag) < 1e-13 * abs(number.real):
            # Rounding and signed zeros must not choose the side of a branch cut.
            number = complex(number.real, 0.0)
        return number

    def _of(self, tree: Tree) -> complex:
        kind = tree[0]
        if kind == "num":
            return float(tree[1])
        if kind == "var":
            return _coordinate(tree[1], self._point)
        if kind == "add":
            return self._sum(self.of(tree[1]), self.of(tree[2]))
        if kind == "mul":
            return self.of(tree[1]) * self.of(tree[2])
        if kind == "div":
            return self.of(tree[1]) / self.of(tree[2])
        if kind == "neg":
            return -self.of(tree[1])
        if kind == "pow":
            return _power(self.of(tree[1]), self.of(tree[2]))
        if kind == "root":
            return _power(self.of(tree[2]), 1.0 / tree[1])
        if kind == "fn":
            number: complex = _FUNCTIONS[tree[1]](self.of(tree[2]))
            return number
        if kind == "log":
            return cmath.log(self.of(tree[2])) / cmath.log(self.of(tree[1]))
        return {"pi": math.pi, "e": math.e, "inf": math.inf}[kind]

    def _sum(self, left: complex, right: complex) -> complex:
        total = left + right
        if total and abs(total) < _CANCELLED * max(abs(left), abs(right)):
            self.noise = 1e3 * _NOISE
        return total


def _power(base: complex, exponent: complex) -> complex:
    if exponent.imag == 0 and exponent.real == round(exponent.real) and abs(exponent.real) < 100:
        return base ** int(exponent.real)
    return cmath.exp(exponent * cmath.log(base)) if base else 0j**exponent
