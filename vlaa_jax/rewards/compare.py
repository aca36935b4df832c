"""Whether two answers are the same: expressions, named values, relations, intervals, collections.

A name on the left (``x = 6``, ``AN = 6``, ``f(x) = 2x``) may be left out, and may not be another
one; y and f(x) are one name. Pairs have an order, lists and sets have none. Equations and
inequalities are the same when one is a constant multiple of the other.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from vlaa_jax.rewards.evaluate import equal, mp, ratio, sample, variables
from vlaa_jax.rewards.trees import MATRIX, Shape, Tree

ONE = Fraction(1)
_TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_INFINITE: Tree = ("inf",)


def same(gold: Shape, answer: Shape, factor: Fraction = ONE) -> bool:
    """Whether an answer is the gold; ``factor`` turns the answer's unit into the gold's."""
    gold, answer = _plain(gold), _plain(answer)
    left, right = _span(gold), _span(answer)
    if left and right and _is_span(gold, answer):
        return left[0] == right[0] and equal(left[1], right[1]) and equal(left[2], right[2])
    ours, said = _named_pair(gold), _named_pair(answer)
    if ours and said and any(name is not None for name, _ in (*ours, *said)):
        return _same_pairs(ours, said)
    if gold.kind == "list" or answer.kind == "list" or gold.kind in ("set", "tuple"):
        return _same_collections(gold, answer, factor)
    if gold.kind == answer.kind == "union":
        return _matched(gold.parts, answer.parts, same)
    if gold.kind == answer.kind == "member":
        return equal(gold.parts[0], answer.parts[0]) and same(gold.parts[1], answer.parts[1])
    if "member" in (gold.kind, answer.kind):
        inside = [shape.parts[1] if shape.kind == "member" else shape for shape in (gold, answer)]
        return inside[0].kind == inside[1].kind and same(inside[0], inside[1])
    if gold.kind in ("expr", "relation") and answer.kind in ("expr", "relation"):
        return _same_values(gold, answer, factor)
    return False


def problem_of(gold: Shape) -> str | None:
    """Why nothing can equal a gold; None when all is well."""
    trees = gold.parts if gold.kind in ("expr", "relation") else ()
    if any(tree[0] != "inf" and all(value is None for value in sample(tree)) for tree in trees):
        return "has no value"
    return None


def _plain(shape: Shape) -> Shape:
    """A list, set or tuple of one thing is that thing, and ``7 + 7 = 14`` is 14."""
    if shape.kind in ("list", "set") and len(shape.parts) == 1:
        return _plain(shape.parts[0])
    if shape.kind == "relation" and set(shape.signs) == {"="} and _is_true(*shape.parts):
        return Shape("expr", shape.parts[-1:])
    return shape


def _is_true(*trees: Tree) -> bool:
    """Whether all are one number."""
    return not any(map(variables, trees)) and all(equal(trees[0], tree) for tree in trees[1:])


# -- values and relations


def _same_values(gold: Shape, answer: Shape, factor: Fraction) -> bool:
    our_name, ours = _named(gold)
    said_name, said = _named(answer)
    if ours is None or said is None:
        return _same_relations(gold, answer)
    if our_name is None or said_name is None or _same_name(our_name, said_name):
        return equal(ours, said, factor) or _same_relations(gold, answer)
    return _is_equation(gold, answer) and _same_relations(gold, answer)


def _is_equation(*shapes: Shape) -> bool:
    """Whether both are equations in variables, as ``3x - y = 2``, not values of names."""
    return all(
        shape.kind == "relation" and len(set().union(*map(variables, shape.parts))) > 1
        for shape in shapes
    )


def _named(shape: Shape) -> tuple[Tree | None, Tree | None]:
    """(name, value) of ``AN = 6``; (None, value) of ``6``; (None, None) of other relations."""
    if shape.kind == "expr":
        return None, shape.parts[0]
    if set(shape.signs) == {"="}:
        first, *_, last = shape.parts
        if _is_name(first):
            own = variables(first) if first[0] == "var" else frozenset()
            if any(own & variables(part) for part in shape.parts[1:]):
                return None, None  # an equation in y, or two of them in a row
            return first, last
        if len(shape.parts) == 2 and _is_name(last) and not variables(first):
            return last, first
        if len(shape.parts) == 2 and not variables(last) and _is_geometry(first):
            return first, last
    return None, None


def _is_name(tree: Tree) -> bool:
    return tree[0] in ("var", "app")


def _is_geometry(tree: Tree) -> bool:
    """``AN`` or ``\\frac{AN}{NB}``: nothing but capital names, added, multiplied or divided."""
    if tree[0] in ("add", "mul", "div") or tree[:2] == ("call", "abs"):
        return all(_is_geometry(part) for part in tree[1:] if part != "abs")
    return tree[0] == "var" and (tree[1][0].isupper() or " " in tree[1])


def _same_name(left: Tree, right: Tree) -> bool:
    if _is_function(left) and _is_function(right):
        if str(left[1]).count("'") != str(right[1]).count("'"):
            return False
        return left[0] != right[0] or left[2:] == right[2:] or equal(left[2], right[2])
    return equal(left, right)


def _is_function(tree: Tree) -> bool:
    return (tree[0] == "var" and tree[1].rstrip("'") == "y") or (
        tree[0] == "app" and len(tree) == 3 and bool(variables(tree[2]))
    )


def _same_relations(gold: Shape, answer: Shape) -> bool:
    ours, said = _simple_relations(gold), _simple_relations(answer)
    return bool(ours) and _matched(ours, said, _same_relation)


def _simple_relations(shape: Shape) -> list[tuple[str, Tree]]:
    """``a < b < c`` as differences that are compared with zero: > 0, >= 0, = 0 or != 0."""
    if shape.kind != "relation":
        return []
    found = []
    for left, sign, right in zip(shape.parts, shape.signs, shape.parts[1:], strict=False):
        if sign in ("<", "<="):
            left, right, sign = right, left, _TURNED[sign]
        found.append((sign, ("add", left, ("neg", right))))
    return found


def _same_relation(left: tuple[str, Tree], right: tuple[str, Tree]) -> bool:
    if left[0] != right[0]:
        return False
    for cleared in (False, True):
        trees = [_over(side[1])[0] if cleared else side[1] for side in (left, right)]
        if variables(trees[0]) != variables(trees[1]) or (cleared and left[0] not in ("=", "!=")):
            return False
        constant = ratio(*trees)
        if constant is not None:
            return left[0] in ("=", "!=") or bool(mp.re(constant) > 0)
    return False


def _over(tree: Tree) -> tuple[Tree, Tree]:
    """A tree as numerator and denominator, so that ``x/y = 2`` is ``x = 2y``."""
    if tree[0] == "neg":
        over, under = _over(tree[1])
        return ("neg", over), under
    if tree[0] not in ("add", "mul", "div"):
        return tree, ("num", ONE)
    (a, b), (c, d) = _over(tree[1]), _over(tree[2])
    if tree[0] == "add":
        return ("add", ("mul", a, d), ("mul", c, b)), ("mul", b, d)
    if tree[0] == "div":
        c, d = d, c
    return ("mul", a, c), ("mul", b, d)


# -- intervals


def _span(shape: Shape) -> tuple[str, Tree, Tree] | None:
    """(brackets, low, high) of an interval or of an inequality in one variable."""
    if shape.kind == "member":
        return _span(shape.parts[1])
    if shape.kind == "tuple" and len(shape.parts) == 2 and shape.signs != MATRIX:
        low, high = shape.parts
        if low.kind == high.kind == "expr" and _ascends(low.parts[0], high.parts[0]):
            return _interval("".join(shape.signs), low.parts[0], high.parts[0])
        return None
    if shape.kind != "relation" or not set(shape.signs) <= _TURNED.keys():
        return None
    parts, signs = shape.parts, shape.signs
    if signs[0] in (">", ">="):
        parts, signs = parts[::-1], tuple(_TURNED[sign] for sign in signs[::-1])
    if not set(signs) <= {"<", "<="}:
        return None
    if len(parts) == 2 and _is_name(parts[0]):
        parts, signs = (("neg", _INFINITE), *parts), ("<", *signs)
    elif len(parts) == 2 and _is_name(parts[1]):
        parts, signs = (*parts, _INFINITE), (*signs, "<")
    if len(parts) != 3 or not _is_name(parts[1]) or variables(parts[0]) | variables(parts[2]):
        return None
    brackets = ("[" if signs[0] == "<=" else "(") + ("]" if signs[1] == "<=" else ")")
    return _interval(brackets, parts[0], parts[2])


def _interval(brackets: str, low: Tree, high: Tree) -> tuple[str, Tree, Tree]:
    """An interval, open where it is endless."""
    left = "(" if _is_endless(low) else brackets[0]
    right = ")" if _is_endless(high) else brackets[1]
    return left + right, low, high


def _is_endless(tree: Tree) -> bool:
    return tree in (_INFINITE, ("neg", _INFINITE))


def _is_span(gold: Shape, answer: Shape) -> bool:
    """Whether both are meant as intervals: two pairs in parentheses are points."""
    if gold.kind == answer.kind == "relation":
        names = [{v for part in shape.parts for v in variables(part)} for shape in (gold, answer)]
        return names[0] == names[1]
    if gold.kind == "tuple" and gold.signs == ("(", ")"):
        said = answer.parts if answer.kind == "tuple" else ()
        ends = [part for shape in (*gold.parts, *said) for part in shape.parts[:1]]
        return any(map(_is_endless, ends))
    return True


def _ascends(low: Tree, high: Tree) -> bool:
    """Whether a pair may be an interval."""
    if variables(low) | variables(high) or "inf" in (low[0], high[0]):
        return True
    below, above = sample(low)[0], sample(high)[0]
    return below is not None and above is not None and bool(mp.re(below) <= mp.re(above))


# -- collections


def _named_pair(shape: Shape) -> list[tuple[Tree | None, Tree]] | None:
    """[(name, value), ...] of ``p = 4, q = 7`` and of ``(4, 7)``."""
    if shape.kind not in ("list", "tuple", "set") or not all(
        part.kind in ("expr", "relation") for part in shape.parts
    ):
        return None
    pairs = [_named(part) for part in shape.parts]
    if any(value is None for _, value in pairs):
        return None
    names = [name for name, _ in pairs if name is not None]
    distinct = all(not _same_name(a, b) for i, a in enumerate(names) for b in names[:i])
    if names and (len(names) < len(pairs) or not distinct):
        return None
    return [(name, value) for name, value in pairs if value is not None]


def _same_pairs(ours: Any, said: Any) -> bool:
    """Values by name where both name them; else in their order, if either side has names."""
    if len(ours) != len(said):
        return False
    named = [all(name is not None for name, _ in side) for side in (ours, said)]
    if all(named):
        return _matched(ours, said, lambda a, b: _same_name(a[0], b[0]) and equal(a[1], b[1]))
    ours, said = (sorted(side, key=_axis) for side in (ours, said))
    return all(equal(a[1], b[1]) for a, b in zip(ours, said, strict=True))


def _axis(pair: tuple[Tree | None, Tree]) -> str:
    """What puts ``y = 7, x = 4`` in the order of a point."""
    name = pair[0]
    return name[1] if name in (("var", "x"), ("var", "y"), ("var", "z")) else ""


def _same_collections(gold: Shape, answer: Shape, factor: Fraction) -> bool:
    ours = gold.parts if gold.kind in ("list", "set", "tuple") else (gold,)
    said = answer.parts if answer.kind in ("list", "set", "tuple") else (answer,)
    if MATRIX in (gold.signs, answer.signs) and gold.signs != answer.signs:
        # A row lies as it stands.
        ours, said = (
            p[0].parts if len(p) == 1 and p[0].kind == "tuple" else p for p in (ours, said)
        )
    if gold.kind != "tuple":
        return _matched(ours, said, lambda a, b: same(a, b, factor))
    if len(ours) != len(said) or answer.kind not in ("tuple", "list"):
        return False
    is_open = answer.kind == "tuple" and answer.signs not in (gold.signs, MATRIX)
    if is_open and _span(gold):
        return False  # an interval may be open or closed, a point may not
    return all(same(a, b, factor) for a, b in zip(ours, said, strict=True))


def _matched(ours: Sequence[Any], said: Sequence[Any], alike: Callable[[Any, Any], bool]) -> bool:
    """Whether a one-to-one matching exists; being alike carries over, so the first will do."""
    left = list(said)
    if len(ours) != len(left) or len(ours) > 50:
        return False
    for one in ours:
        found = next((other for other in left if alike(one, other)), None)
        if found is None:
            return False
        left.remove(found)
    return True
