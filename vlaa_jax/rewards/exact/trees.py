"""What a text means, as plain values: trees of expressions, and shapes of whole answers.

A tree is a nested tuple: ("num", Fraction), ("var", name), ("pi",), ("e",), ("inf",),
("add", a, b), ("mul", a, b), ("div", a, b), ("neg", a), ("pow", a, b), ("root", n, a),
("fn", name, a), ("log", base, a).
"""

from dataclasses import dataclass
from typing import Any

Tree = tuple[Any, ...]


class Unsupported(Exception):
    """The text is outside of what is decided here; that says nothing about its worth."""


@dataclass(frozen=True)
class Shape:
    """What a whole answer is.

    ======== ======================================================================
    kind     parts
    ======== ======================================================================
    expr     one tree
    relation trees; ``signs`` between them, each one of = < > <= >=
    tuple    trees; ``signs`` are the two brackets
    set      shapes, of a bare list or of braces
    union    tuple shapes
    matrix   rows, each a tuple of trees
    ======== ======================================================================
    """

    kind: str
    parts: tuple[Any, ...]
    signs: tuple[str, ...] = ()
