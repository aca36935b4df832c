"""Shapes as the SymPy objects that Math-Verify compares; imported in the workers only.

Math-Verify's own parser takes ten times as long for the same objects. Numbers with a decimal point
become Floats and nothing is evaluated, as there.
"""

from typing import Any

import sympy
from latex2sympy2_extended.sets import FiniteSet

from vlaa_jax.rewards.exact.trees import Shape, Tree, Unsupported

_RELATIONS = {
    "=": sympy.Eq,
    "<": sympy.StrictLessThan,
    ">": sympy.StrictGreaterThan,
    "<=": sympy.LessThan,
    ">=": sympy.GreaterThan,
}
_NAMES = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "ln": "log", "abs": "Abs"}


def build(shape: Shape) -> Any:
    """A SymPy object for an expression, a relation, a matrix, or a set of these.

    Raises:
        Unsupported: Math-Verify reads this shape by rules of its own (intervals, chains).
    """
    if shape.kind == "expr":
        return _tree(shape.parts[0])
    if shape.kind == "relation" and len(shape.signs) == 1:
        left, right = map(_tree, shape.parts)
        return _RELATIONS[shape.signs[0]](left, right, evaluate=False)
    if shape.kind == "matrix":
        return sympy.Matrix([[_tree(entry) for entry in row] for row in shape.parts])
    if shape.kind == "set" and all(part.kind in ("expr", "relation") for part in shape.parts):
        return FiniteSet(*map(build, shape.parts))
    raise Unsupported


def _tree(tree: Tree) -> Any:
    kind = tree[0]
    if kind == "num":
        value = sympy.Rational(tree[1].numerator, tree[1].denominator)
        return value if tree[1].denominator == 1 else value.n(15)
    if kind == "var":
        return _symbol(tree[1])
    if kind in ("pi", "e"):
        return sympy.pi if kind == "pi" else sympy.E
    if kind == "root":
        return sympy.Pow(_tree(tree[2]), sympy.Rational(1, tree[1]), evaluate=False)
    if kind == "fn":
        return getattr(sympy, _NAMES.get(str(tree[1]), str(tree[1])))(
            _tree(tree[2]), evaluate=False
        )
    parts = [_tree(part) for part in tree[1:]]
    if kind == "add":
        return sympy.Add(*parts, evaluate=False)
    if kind == "mul":
        return sympy.Mul(*parts, evaluate=False)
    if kind == "neg":
        return -parts[0] if parts[0].is_Number else sympy.Mul(-1, parts[0], evaluate=False)
    if kind == "pow":
        return sympy.exp(parts[1]) if tree[1] == ("e",) else sympy.Pow(*parts, evaluate=False)
    if kind == "div":
        if all(part.is_Integer for part in parts) and parts[1]:
            return sympy.Rational(*parts)
        return sympy.Mul(parts[0], sympy.Pow(parts[1], -1, evaluate=False), evaluate=False)
    if kind == "log":
        return sympy.log(parts[1], parts[0], evaluate=False)
    raise Unsupported


def _symbol(name: str) -> Any:
    name = name.removeprefix("\\")
    letter, _, index = name.partition("_")
    if len(index) > 1:
        name = f"{letter}_{{{index}}}"
    return sympy.Symbol(name.lower(), real=True)
