"""A real point on one curve and off another: shows that two equations differ."""

import math

from vlaa_jax.rewards.exact.normal import Poly, Quotient, variables

_PLACES = (0.0, 1.0, -1.0, 0.5, 2.0, -2.5, 3.0, 5.0, -7.0)
_OFF = 1e-6
"""Relative size of what is left of an equation at a point that is not on its curve."""


def apart(left: Quotient, right: Quotient) -> bool:
    """Whether the zeros of two polynomials in the same two variables plainly differ.

    The first must have degree one or two in one of the variables, so that a point of it is found by
    a formula. False proves nothing.
    """
    names = variables(left)
    if names is None or names != variables(right) or len(names) != 2:
        return False
    if list(left.den) != [()] or list(right.den) != [()]:
        return False
    for one, other in ((left.num, right.num), (right.num, left.num)):
        for solved, fixed in (sorted(names), sorted(names, reverse=True)):
            point = _point(one, solved, fixed)
            if point is not None and _is_off(other, point):
                return True
    return False


def _point(poly: Poly, solved: str, fixed: str) -> dict[str, float] | None:
    """A real zero, with a plain number for one variable; None where none is found."""
    degree = max(dict(monomial).get(solved, 0) for monomial in poly)
    if degree not in (1, 2):
        return None
    for place in _PLACES:
        found = [0.0, 0.0, 0.0]
        for monomial, value in poly.items():
            powers = dict(monomial)
            found[powers.get(solved, 0)] += float(value) * place ** powers.get(fixed, 0)
        c, b, a = found
        if a == 0.0 and b != 0.0:
            return {fixed: place, solved: -c / b}
        inside = b * b - 4 * a * c
        if a != 0.0 and inside >= 0.0:
            return {fixed: place, solved: (-b + math.copysign(math.sqrt(inside), -b)) / (2 * a)}
    return None


def _is_off(poly: Poly, point: dict[str, float]) -> bool:
    terms = [
        float(value) * math.prod(point[name] ** power for name, power in monomial)
        for monomial, value in poly.items()
    ]
    return abs(sum(terms)) > _OFF * sum(abs(term) for term in terms)
