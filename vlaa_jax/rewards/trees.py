"""What a maths text means, as plain values.

A tree is a nested tuple: ("num", Fraction), ("dec", Fraction) for a number with a point, ("var",
name), ("inf",), ("add" | "mul" | "div" | "pow", a, b), ("neg", a), ("call", name, a, ...) for the
functions of ``evaluate.py``, ("app", f, a) for f(x), ("based", digits, base).
"""

from dataclasses import dataclass
from typing import Any

Tree = tuple[Any, ...]


@dataclass(frozen=True)
class Shape:
    """What a whole answer is.

    ======== ======================================================================
    kind     parts
    ======== ======================================================================
    expr     one tree
    relation trees; ``signs`` between them, each one of = < > <= >= !=
    tuple    shapes; ``signs`` are the two brackets
    list     shapes, of a bare list
    set      shapes, of braces
    union    tuple shapes
    member   a tree and the shape it lies in
    matrix   rows, each a tuple of trees
    ======== ======================================================================
    """

    kind: str
    parts: tuple[Any, ...]
    signs: tuple[str, ...] = ()
