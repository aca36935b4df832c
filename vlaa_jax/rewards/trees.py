"""What a maths text means, as plain values.

A tree is a nested tuple: ("num", Fraction), ("dec", Fraction) for a number with a point, ("var",
name), ("inf",), ("add" | "mul" | "div" | "pow", a, b), ("neg", a), ("call", name, a, ...) for the
functions of ``evaluate.py``, ("app", f, a) for f(x), ("based", digits, base).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Tree = tuple[Any, ...]
MATRIX = ("|", "|")


@dataclass(frozen=True)
class Shape:
    """What a whole answer is.

    ======== ======================================================================
    kind     parts
    ======== ======================================================================
    expr     one tree
    relation trees; ``signs`` between them, each one of = < > <= >= !=
    tuple    shapes; ``signs`` are the two brackets, or ``MATRIX``: then the parts are
             the cells of a column, or rows, each a tuple
    list     shapes, of a bare list
    set      shapes, of braces
    union    tuple shapes
    member   a tree and the shape it lies in
    ======== ======================================================================
    """

    kind: str
    parts: tuple[Any, ...]
    signs: tuple[str, ...] = ()


def walk(tree: Tree) -> Iterator[Tree]:
    """A tree and all that are in it."""
    yield tree
    for part in tree[1:]:
        if isinstance(part, tuple):
            yield from walk(part)


def pick(tree: Tree, sign: int) -> Tree:
    """One branch of a plus-or-minus."""
    if tree[0] != "pm":
        return tree
    return ("add", tree[1], tree[2] if sign > 0 else ("neg", tree[2]))


def rational(tree: Tree) -> Fraction | None:
    """The value of a number, a fraction of such, or a mixed number; None for anything else."""
    match tree:
        case ("num" | "dec", Fraction() as value):
            return value
        case ("neg", part):
            inner = rational(part)
            return None if inner is None else -inner
        case ("add" | "div" as kind, left, right):
            first, last = rational(left), rational(right)
            if first is not None and last is not None and (kind == "add" or last):
                return first + last if kind == "add" else first / last
    return None
