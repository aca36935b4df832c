"""What a maths text means, as plain values.

A tree is a nested tuple: ("num", Fraction), ("dec", Fraction) for a number with a point, ("var",
name), ("inf",), ("add" | "mul" | "div" | "pow", a, b), ("neg", a), ("call", name, a, ...) for the
functions of ``evaluate.py``, ("app", f, a) for f(x), ("based", digits, base).
"""

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


def pick(tree: Tree, sign: int) -> Tree:
    """One branch of a plus-or-minus."""
    if tree[0] != "pm":
        return tree
    return ("add", tree[1], tree[2] if sign > 0 else ("neg", tree[2]))


def is_whole(tree: Tree) -> bool:
    """Whether a tree is a number without a point."""
    return tree[0] == "num"


def is_plain_fraction(tree: Tree) -> bool:
    """Whether a tree is a fraction of two such numbers."""
    return tree[0] == "div" and is_whole(tree[1]) and is_whole(tree[2])


def rational(tree: Tree) -> Fraction | None:
    """The value of a number, a fraction of such, or a mixed number; None for anything else."""
    if tree[0] in ("num", "dec"):
        value: Fraction = tree[1]
        return value
    if tree[0] not in ("neg", "add", "div"):
        return None
    parts = [rational(part) for part in tree[1:]]
    first, last = parts[0], parts[-1]
    if first is None or last is None:
        return None
    if tree[0] == "neg":
        return -first
    if tree[0] == "add":
        return first + last
    return first / last if last else None
