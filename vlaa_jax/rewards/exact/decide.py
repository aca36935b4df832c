"""True, False, or None: what is certain about two answers without a computer-algebra system.

True needs equal normal forms in a common shape. False needs a number in which the two plainly
differ. Everything else is None and goes to Math-Verify. ``docs/rewards.md`` lists where the verdict
differs from Math-Verify's on purpose.
"""

import functools
import itertools
from collections.abc import Sequence

from vlaa_jax.rewards.exact import curves, floats
from vlaa_jax.rewards.exact.normal import Algebra, Quotient, positive_content, variables
from vlaa_jax.rewards.exact.syntax import read
from vlaa_jax.rewards.exact.trees import Shape, Tree, Unsupported

_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "="}
CACHED = 4_096


def decide(gold: str, answer: str) -> bool | None:
    """Whether two LaTeX texts, without delimiters, mean the same; None where that is not certain.

    The gold goes first: ``5`` answers ``x=5`` and the other way round, as in Math-Verify.
    """
    target, said = shape_of(gold), shape_of(answer)
    if target is None or said is None:
        return None
    try:
        return _same_shape(target, said)
    except (Unsupported, ArithmeticError):
        return None


@functools.lru_cache(maxsize=CACHED)
def shape_of(text: str) -> Shape | None:
    """What ``read`` makes of a text; None where it is unsupported."""
    try:
        return read(text)
    except (Unsupported, IndexError):
        return None


def _same_shape(gold: Shape, said: Shape) -> bool | None:
    if gold.kind == said.kind == "expr":
        return same(gold.parts[0], said.parts[0])
    if gold.kind == said.kind == "relation":
        return _relations(gold, said)
    if _is_equation(said) and gold.kind == "expr":
        return same(gold.parts[0], said.parts[1])
    if _is_assignment(gold) and said.kind == "expr":
        return same(gold.parts[1], said.parts[0])
    if gold.kind == said.kind == "tuple":
        return _tuples(gold, said)
    if gold.kind == said.kind == "set":
        return _sets(gold, said)
    if gold.kind == said.kind == "union":
        pairs = zip(gold.parts, said.parts, strict=False)
        equal = len(gold.parts) == len(said.parts) and all(_tuples(g, s) for g, s in pairs)
        return True if equal else None
    if gold.kind == said.kind == "matrix":
        return _matrices(gold, said)
    return None


def same(gold: Tree, said: Tree) -> bool | None:
    """Whether two expressions are equal for all real values of their variables."""
    if gold == said:
        return True
    differ = any(
        left is not None and right is not None and left.differs(right)
        for left, right in zip(_floats(gold), _floats(said), strict=True)
    )
    if differ:
        return False
    algebra = Algebra()
    return True if algebra.equal(algebra.form(gold), algebra.form(said)) else None


@functools.lru_cache(maxsize=CACHED)
def _floats(tree: Tree) -> tuple[floats.Value | None, ...]:
    return floats.values(tree)


# -- relations


def _is_equation(shape: Shape) -> bool:
    return shape.kind == "relation" and shape.signs == ("=",)


def _is_assignment(shape: Shape) -> bool:
    return _is_equation(shape) and shape.parts[0][0] == "var"


def _relations(gold: Shape, said: Shape) -> bool | None:
    if len(gold.signs) != len(said.signs):
        return None
    if len(gold.signs) > 1:
        return _chains(gold, said)
    if gold.signs == said.signs == ("=",):
        return _equations(gold, said)
    if "=" in gold.signs + said.signs:
        return None
    return _inequalities(gold, said)


def _equations(gold: Shape, said: Shape) -> bool | None:
    if _is_assignment(gold) and gold.parts[0] == said.parts[0]:
        verdict = same(gold.parts[1], said.parts[1])
        if verdict is True:
            return True
        own = gold.parts[0][1]
        if verdict is False and not (
            _mentions(gold.parts[1], own) or _mentions(said.parts[1], own)
        ):
            return False
    algebra = Algebra()
    left, right = (_difference(algebra, shape) for shape in (gold, said))
    if not left.num or not right.num:
        return None  # an identity: its form says nothing about its letters
    if _ratio(algebra, left, right) is not None:
        return True
    return False if _plainly_apart(left, right) or curves.apart(left, right) else None


def _inequalities(gold: Shape, said: Shape) -> bool | None:
    """Differences with their signs; a positive factor changes nothing, a negative one flips."""
    algebra = Algebra()
    left, right = (_difference(algebra, shape) for shape in (gold, said))
    if not left.num or not right.num:
        return None
    ratio = _ratio(algebra, left, right)
    if ratio is not None:
        sign = said.signs[0] if ratio > 0 else _FLIPPED[said.signs[0]]
        if sign == gold.signs[0]:
            return True
        return False if _is_linear(left) else None
    return False if _plainly_apart(left, right) else None


def _chains(gold: Shape, said: Shape) -> bool | None:
    """``0 < x <= 1``, forwards or backwards, with numbers at the ends."""
    if gold.signs[0][0] not in "<>" or any(s[0] != gold.signs[0][0] for s in gold.signs):
        return None
    if any(s == "=" or s[0] != said.signs[0][0] for s in said.signs):
        return None
    parts, signs = said.parts, said.signs
    if signs[0][0] != gold.signs[0][0]:
        parts, signs = parts[::-1], tuple(_FLIPPED[s] for s in signs[::-1])
    verdicts = [same(g, s) for g, s in zip(gold.parts, parts, strict=True)]
    if signs == gold.signs and all(verdict is True for verdict in verdicts):
        return True
    if len(parts) != 3 or gold.parts[1] != parts[1] or parts[1][0] != "var":
        return None
    if not (_is_proper(gold.parts, gold.signs) and _is_proper(parts, signs)):
        return None
    if signs != gold.signs or False in (verdicts[0], verdicts[2]):
        return False
    return None


def _is_proper(parts: Sequence[Tree], signs: Sequence[str]) -> bool:
    """Whether the numbers at the ends leave room between them."""
    ends = [_number(parts[0]), _number(parts[-1])]
    if ends[0] is None or ends[1] is None:
        return False
    return ends[0] < ends[1] if signs[0][0] == "<" else ends[0] > ends[1]


def _difference(algebra: Algebra, shape: Shape) -> Quotient:
    return algebra.plus(algebra.form(shape.parts[0]), algebra.form(("neg", shape.parts[1])))


def _ratio(algebra: Algebra, left: Quotient, right: Quotient) -> float | None:
    """The rational factor between two differences without denominators of variables; else None."""
    if list(left.den) != [()] or list(right.den) != [()]:
        return 1.0 if algebra.equal(left, right) else None
    scale = positive_content(left.num) / positive_content(right.num)
    for factor in (scale, -scale):
        if {m: c * factor for m, c in right.num.items()} == left.num:
            # Three signs multiply; a chained comparison would compare neighbours.
            positive = (factor > 0) == ((left.den[()] > 0) == (right.den[()] > 0))
            return 1.0 if positive else -1.0
    return None


def _is_linear(form: Quotient) -> bool:
    """Whether it is a polynomial over Q of degree one: then its zeros tell it, up to a factor."""
    if not variables(form) or list(form.den) != [()]:
        return False
    return all(sum(power for _, power in monomial) <= 1 for monomial in form.num)


def _plainly_apart(left: Quotient, right: Quotient) -> bool:
    """Whether two linear forms, each divided by one coefficient, differ beyond rounding."""
    if not (_is_linear(left) and _is_linear(right)):
        return False
    lead = max(left.num)
    if lead not in right.num:
        return True
    for monomial in left.num.keys() | right.num.keys():
        a, b = (float(f.num.get(monomial, 0) / f.num[lead]) for f in (left, right))
        if abs(a - b) > 1e-4 * (1 + max(abs(a), abs(b))):
            return True
    return False


def _mentions(tree: Tree, variable: str) -> bool:
    if tree[0] == "var":
        return bool(tree[1] == variable)
    return any(isinstance(part, tuple) and _mentions(part, variable) for part in tree[1:])


# -- collections


def _tuples(gold: Shape, said: Shape) -> bool | None:
    """Points, tuples and intervals. Brackets count where the ends make an interval."""
    if len(gold.parts) != len(said.parts):
        return False
    verdicts = [_same_bound(g, s) for g, s in zip(gold.parts, said.parts, strict=True)]
    if _brackets(gold) == _brackets(said):
        if all(verdict is True for verdict in verdicts):
            return True
        mixed = _brackets(gold) in (("(", "]"), ("[", ")"))
        if mixed and not (_is_interval(gold) and _is_interval(said)):
            return None  # an empty set, to Math-Verify
        return False if False in verdicts else None
    if len(gold.parts) != 2 or not (_is_interval(gold) and _is_interval(said)):
        return None
    return False


def _brackets(shape: Shape) -> tuple[str, str]:
    """An infinite end is open, however it is written."""
    infinite = [("inf",) in (part, part[-1]) for part in (shape.parts[0], shape.parts[-1])]
    return (
        "(" if infinite[0] else shape.signs[0],
        ")" if infinite[1] else shape.signs[1],
    )


def _is_interval(shape: Shape) -> bool:
    ends = [_number(part) for part in shape.parts]
    return len(ends) == 2 and ends[0] is not None and ends[1] is not None and ends[0] < ends[1]


def _same_bound(gold: Tree, said: Tree) -> bool | None:
    if ("inf",) in (gold, said) or ("neg", ("inf",)) in (gold, said):
        return gold == said
    return same(gold, said)


def _number(tree: Tree) -> float | None:
    """The value of a tree without variables; None where it is not a real number."""
    if tree == ("inf",):
        return float("inf")
    if tree == ("neg", ("inf",)):
        return float("-inf")
    if _has_variables(tree):
        return None
    value = _floats(tree)[0]
    if value is None or value.number.imag:
        return None
    return value.number.real


def _has_variables(tree: Tree) -> bool:
    if tree[0] == "var":
        return True
    return any(isinstance(part, tuple) and _has_variables(part) for part in tree[1:])


def _sets(gold: Shape, said: Shape) -> bool | None:
    """Sets of numbers in any order; sets of anything else only where they agree in order."""
    pairs = list(zip(gold.parts, said.parts, strict=False))
    if len(gold.parts) == len(said.parts) and all(_same_shape(g, s) for g, s in pairs):
        return True
    left, right = _numbers(gold), _numbers(said)
    if left is None or right is None:
        return _matched(gold, said)
    verdicts = [same(g, s) for (_, g), (_, s) in zip(left, right, strict=False)]
    if len(left) == len(right) and all(verdict is True for verdict in verdicts):
        return True
    if any(_is_near(row) for row in (left, right)):
        return None
    if len(left) != len(right) or False in verdicts:
        return False
    return None


def _matched(gold: Shape, said: Shape) -> bool | None:
    """Few expressions in any order: each has its equal, or one has none."""
    if len(gold.parts) != len(said.parts) or len(gold.parts) > 4:
        return None
    if any(part.kind != "expr" for part in gold.parts + said.parts):
        return None
    rows = [[same(g.parts[0], s.parts[0]) for s in said.parts] for g in gold.parts]
    columns = [list(column) for column in zip(*rows, strict=True)]
    if all(line.count(True) == 1 for line in rows + columns):
        return True
    return False if any(line.count(False) == len(line) for line in rows + columns) else None


def _numbers(shape: Shape) -> list[tuple[float, Tree]] | None:
    """Elements that are numbers, in order of value."""
    found = []
    for part in shape.parts:
        value = _number(part.parts[0]) if part.kind == "expr" else None
        if value is None:
            return None
        found.append((value, part.parts[0]))
    return sorted(found, key=lambda pair: pair[0])


def _is_near(row: Sequence[tuple[float, Tree]]) -> bool:
    """Whether two elements could be one, so that their number is not certain."""
    return any(b - a < 1e-3 * (1 + abs(a)) for (a, _), (b, _) in itertools.pairwise(row))


def _matrices(gold: Shape, said: Shape) -> bool | None:
    if [len(row) for row in gold.parts] != [len(row) for row in said.parts]:
        return False
    verdicts = [
        same(g, s)
        for gold_row, said_row in zip(gold.parts, said.parts, strict=True)
        for g, s in zip(gold_row, said_row, strict=True)
    ]
    if all(verdict is True for verdict in verdicts):
        return True
    return False if False in verdicts else None
