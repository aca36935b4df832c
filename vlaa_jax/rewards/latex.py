r"""LaTeX and calculator spelling of ordinary answers to shapes of trees.

Letters have case. Implicit products bind tighter than a slash (``a/bc`` is a/(bc)) except behind a
fraction of two whole numbers (``1/4x`` is a quarter of x); ``x^10`` has the exponent ten; a whole
number before a fraction of whole numbers is a mixed number; ``\log`` has the base ten.
"""

import re
from fractions import Fraction
from functools import lru_cache

from vlaa_jax.rewards.latex_tokens import FUNCTIONS, GREEK, Unreadable, spelled_out, tokens_of
from vlaa_jax.rewards.trees import MATRIX, Shape, Tree, pick

MAX_NESTING = 70
MAX_NUMBER = 60
"""Characters of one number."""

_MATRIX = re.compile(
    r"\s*\\begin\{([pbv]?matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{\1\}\s*", re.DOTALL
)
_CAPITALS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_SIGNS = frozenset({"=", "<", ">", "<=", ">=", "!=", "in"})
_OPENING = frozenset({"(", "[", "{", "lbrace"})
_CLOSING = frozenset({")", "]", "}", "rbrace", ""})
_GROUPS = {"(": ")", "{": "}", "|": "|", "[": "]"}
_BEHIND = {"!": "factorial", "°": "degrees", "%": "percent"}
_DEGREES = {"sqrt": "2", "∛": "3"}
_LEVELS = {"+": 1, "-": 1, "pm": 1, "*": 2, "/": 2}
"""How tight an operator binds; a product without signs binds tighter."""
_OPERATORS = {"+": "add", "-": "add", "pm": "pm", "*": "mul", "/": "div"}
_NO_FACTORS = _SIGNS | {"cup", "pm", "rbrace", "lbrace", "infty"}


@lru_cache(maxsize=8_192)  # a gold comes back once per completion
def shape_of(text: str) -> Shape | None:
    """The shape of an expression without its delimiters; None where that is not certain."""
    try:
        text = spelled_out(text)
        matrix = _MATRIX.fullmatch(text)
        return _matrix(matrix[2]) if matrix else _Reader(text).shape()
    except Unreadable:
        return None


def same_shape(left: str, right: str) -> bool:
    """Whether two expressions are understood, and mean the same as they stand."""
    shape = shape_of(left)
    return shape is not None and shape == shape_of(right)


def _matrix(inside: str) -> Shape:
    rows = re.split(r"\\\\", re.sub(r"\\\\\s*$", "", inside))
    cells = [[_Reader(cell).cell() for cell in row.split("&")] for row in rows]
    if all(len(row) == 1 for row in cells):
        return Shape("tuple", tuple(cell for (cell,) in cells), MATRIX)
    return Shape("tuple", tuple(Shape("tuple", tuple(row), MATRIX) for row in cells), MATRIX)


class _Reader:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self._tokens = [*tokens_of(text), "", "", ""]
        self._at = self._depth = 0
        self._in_bars = False

    @property
    def _next(self) -> str:
        return self._tokens[self._at]

    def _take(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1]

    def _expect(self, token: str) -> None:
        if self._take() != token:
            raise Unreadable

    def _try(self, *tokens: str) -> bool:
        found = self._next in tokens
        self._at += found
        return found

    # -- whole answers

    def cell(self) -> Shape:
        """One expression up to the end of the text."""
        return Shape("expr", (self._closed(""),))

    def shape(self) -> Shape:
        """Everything up to the end of the text."""
        elements = self._elements()
        self._expect("")
        return elements[0] if len(elements) == 1 else Shape("list", tuple(elements))

    def _elements(self) -> list[Shape]:
        elements = self._element()
        while self._try(",", ";"):
            if self._next in _CLOSING:
                break
            elements += self._element()
        return elements

    def _element(self) -> list[Shape]:
        is_named = self._next in _CAPITALS and self._tokens[self._at + 1] == "("  # P(4, 7)
        if not self._holds_list(self._at + is_named):
            return self._relation()
        self._at += is_named
        first = self._collection()
        if first.kind == "tuple" and self._try("="):  # (p, q) = (4, 7)
            names, values = first.parts, self._collection().parts
            if len(names) != len(values) or any(p.kind != "expr" for p in (*names, *values)):
                raise Unreadable
            pairs = zip(names, values, strict=True)
            equations = (Shape("relation", n.parts + v.parts, ("=",)) for n, v in pairs)
            return [Shape("tuple", tuple(equations), first.signs)]
        pieces = [first]
        while self._try("cup"):
            pieces.append(self._collection())
        return [Shape("union", tuple(pieces)) if len(pieces) > 1 else first]

    def _collection(self) -> Shape:
        """A tuple, an interval, a set or a list in braces."""
        if not self._holds_list(self._at):
            raise Unreadable
        opening = self._take()
        self._deepen()
        parts = tuple(self._elements())
        closing = self._take()
        self._depth -= 1
        if opening in ("lbrace", "{") and closing in ("rbrace", "}"):
            return Shape("set" if opening == "lbrace" else "list", parts)
        if opening in ("(", "[") and closing in (")", "]") and len(parts) > 1:
            return Shape("tuple", parts, (opening, closing))
        raise Unreadable

    def _holds_list(self, at: int) -> bool:
        """Whether a bracket stands here that is no ordinary parenthesis."""
        if self._tokens[at] not in ("(", "[", "{"):
            return self._tokens[at] == "lbrace"
        depth = 0
        for token in self._tokens[at:]:
            depth += (token in _OPENING) - (token in _CLOSING)
            if depth == 1 and token in (",", ";"):
                return True
            if depth <= 0:
                return False
        return False

    def _relation(self) -> list[Shape]:
        parts, signs = [self._sum(pm=True)], []
        while self._next in _SIGNS:
            sign = self._take()
            if sign == "in" or self._next == "lbrace":
                inside = self._element()
                kinds = [shape.kind for shape in inside]
                if len(parts) > 1 or kinds not in (["tuple"], ["union"], ["set"]):
                    raise Unreadable
                return [Shape("member", (parts[0], inside[0]))]
            signs.append(sign)
            parts.append(self._sum(pm=True))
        if self._try(":"):
            parts[-1] = ("div", parts[-1], self._sum())
        if signs and self._next == "cup":  # x < 1 or x > 2
            pieces = [Shape("relation", tuple(parts), tuple(signs))]
            while self._try("cup"):
                pieces += self._relation()
            return [Shape("union", tuple(pieces))]
        kind = "relation" if signs else "expr"
        branches = (1, -1) if any(part[0] == "pm" for part in parts) else (1,)
        return [
            Shape(kind, tuple(pick(part, sign) for part in parts), tuple(signs))
            for sign in branches
        ]

    # -- expressions

    def _sum(self, above: int = 0, pm: bool = False) -> Tree:
        """The longest expression whose operators bind tighter than a level."""
        self._deepen(above == 0)
        starts_with_pm = above == 0 and self._next == "pm"
        tree: Tree = ("num", Fraction(0)) if starts_with_pm else self._signed()
        while (level := _LEVELS.get(self._next, 0)) > above:
            sign = self._take()
            if tree[0] == "pm" or (sign == "pm" and not pm):
                raise Unreadable
            number = tree[1] if tree[0] == "neg" else tree
            if sign == "/" and number[0] == "num" and self._next.isdigit():
                tree = ("div", tree, _number(self._take()))
                if self._next == "^":
                    raise Unreadable
                tree = self._juxtaposed(tree)  # 1/4x
            else:
                term = self._sum(level)
                tree = (_OPERATORS[sign], tree, ("neg", term) if sign == "-" else term)
        self._depth -= above == 0
        return tree

    def _signed(self) -> Tree:
        minus = False
        while self._next in ("-", "+"):
            minus ^= self._take() == "-"
        tree = self._juxtaposed(self._power())
        return ("neg", tree) if minus else tree

    def _juxtaposed(self, first: Tree) -> Tree:
        """A product without signs that begins with a factor; a mixed number is a sum."""
        tree = first
        while self._starts_factor():
            whole = tree is first and first[0] == "num"
            if self._next[0].isdigit():
                over, slash, under = self._take(), self._take(), self._take()
                if not (whole and over.isdigit() and slash == "/" and under.isdigit()):
                    raise Unreadable  # two numbers side by side
                return ("add", tree, ("div", _number(over), _number(under)))
            factor = self._power()
            is_mixed = whole and factor[0] == "div" and factor[1][0] == factor[2][0] == "num"
            tree = ("add" if is_mixed else "mul", tree, factor)
        return tree

    def _starts_factor(self) -> bool:
        token = self._next
        if token == "|":
            return not self._in_bars
        if token in _NO_FACTORS:
            return False
        return token[:1].isalnum() or token in ("(", "{", "∛") or token[:1] == "\\"

    def _power(self) -> Tree:
        tree = self._primary()
        while True:
            if self._try("^"):
                tree = ("pow", tree, self._exponent())
            elif self._next in _BEHIND:
                tree = ("call", _BEHIND[self._take()], tree)
            else:
                return tree

    def _exponent(self) -> Tree:
        minus = self._try("-")
        base = self._next
        tree = self._primary()
        if base[:1].isdigit() and self._try("^"):
            tree = ("pow", tree, self._exponent())
        return ("neg", tree) if minus else tree

    def _closed(self, closing: str) -> Tree:
        tree = self._sum()
        self._expect(closing)
        return tree

    def _deepen(self, by: int = 1) -> None:
        self._depth += by
        if self._depth > MAX_NESTING:
            raise Unreadable

    def _primary(self) -> Tree:
        token = self._take()
        if not token:
            raise Unreadable
        if token[0].isdigit() or token[0] == ".":
            return self._based(token)
        if token in _GROUPS:
            outer, self._in_bars = self._in_bars, token == "|"
            tree = self._closed(_GROUPS[token])
            self._in_bars = outer
            if token == "(" and self._next == "_" and tree[0] == "num":
                return self._based(str(tree[1]))
            return ("call", "abs", tree) if token == "|" else tree
        if token in ("frac", "binom"):
            kind = ("div",) if token == "frac" else ("call", "binom")
            return (*kind, self._argument_group(), self._argument_group())
        if token in _DEGREES:
            degree = self._closed("]") if self._try("[") else _number(_DEGREES[token])
            return ("call", "root", self._primary(), degree)
        if token in FUNCTIONS:
            return self._function(token)
        if token in ("pi", "infty"):
            return ("call", "pi") if token == "pi" else ("inf",)
        if token in ("angle", "triangle", "overline", "vec", "widehat", "text", "mathrm", "mathbf"):
            return self._name(token)
        if (len(token) == 1 and token.isalpha()) or token in GREEK:
            return self._variable(token)
        raise Unreadable

    def _based(self, token: str) -> Tree:
        if not self._try("_"):
            return _number(token)
        inner = self._subscript()
        base = {"two": "2", "ten": "10", "eight": "8"}.get(inner, inner)
        if not base.isdigit() or not token.isdigit():
            raise Unreadable
        return ("based", token, base)

    def _subscript(self) -> str:
        piece = self._take()
        if piece == "{":
            piece = ""
            while self._next not in ("}", ""):
                piece += self._take()
            self._expect("}")
        if not piece:
            raise Unreadable
        return piece

    def _name(self, kind: str) -> Tree:
        """What geometry names: an angle, a triangle, a segment, a word."""
        letters: list[str] = []
        braced = self._try("{")
        while self._next.isalpha() or (not letters and self._next.isdigit()) or self._next == "'":
            letters.append(self._take())
        if braced:
            self._expect("}")
        if not letters:
            raise Unreadable
        name = "".join(letters)
        if kind in ("angle", "overline"):
            name = min(name, name[::-1])  # ABC and CBA are one angle
        return ("var", f"{kind} {name}")

    def _variable(self, token: str) -> Tree:
        if token in ("e", "i"):
            return ("call", token)
        name = f"{token}_{self._subscript()}" if self._try("_") else token
        while self._try("'"):
            name += "'"
        if token in "fghFGP" and self._try("("):
            return ("app", name, *self._trees(")"))
        return ("var", name)

    def _trees(self, closing: str) -> list[Tree]:
        trees = [self._sum()]
        while self._try(","):
            trees.append(self._sum())
        self._expect(closing)
        return trees

    def _argument_group(self) -> Tree:
        r"""What a command applies to: braces, a letter, another command, or one digit."""
        token = self._next
        if not token.isdigit():
            return self._primary()
        self._tokens[self._at] = token[1:]  # \frac12
        self._at += len(token) == 1
        return _number(token[0])

    def _function(self, name: str) -> Tree:
        has_base = name in ("log", "ln") and self._try("_")
        base = self._argument_group() if has_base else None
        exponent = self._exponent() if self._try("^") else None
        if exponent == ("neg", ("num", Fraction(1))) and name in ("sin", "cos", "tan"):
            name, exponent = f"arc{name}", None
        tree: Tree = ("call", name, *self._arguments())
        if base is not None:
            tree = ("div", tree, ("call", name, base))
        return tree if exponent is None else ("pow", tree, exponent)

    def _arguments(self) -> list[Tree]:
        r"""What a function is applied to: a group, or for ``\sin 2x`` the product that follows."""
        if self._next in ("(", "{"):
            return self._trees(_GROUPS[self._take()])
        minus = self._try("-")
        tree: Tree | None = None
        while self._starts_factor() and self._next not in FUNCTIONS - {"sqrt"}:
            if tree is not None and (self._next == "(" or self._next[0].isdigit()):
                break
            factor = self._power()
            tree = factor if tree is None else ("mul", tree, factor)
        if tree is None:
            raise Unreadable
        return [("neg", tree) if minus else tree]


def _number(token: str) -> Tree:
    exponent = re.split("[eE]", token)[1:]
    if len(token) > MAX_NUMBER or (exponent and abs(int(exponent[0])) > 1000):
        raise Unreadable
    try:
        return ("dec" if exponent or "." in token else "num", Fraction(token))
    except ValueError:  # a point alone, a circled digit
        raise Unreadable from None
