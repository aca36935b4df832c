r"""LaTeX and calculator spelling of ordinary answers to shapes of trees.

Letters have case. Implicit products bind tighter than a slash (``a/bc`` is a/(bc)) except behind a
fraction of two whole numbers (``1/4x`` is a quarter of x); ``x^10`` has the exponent ten; a whole
number before a fraction of whole numbers is a mixed number; ``\log`` has the base ten.
"""

import re
from fractions import Fraction
from functools import lru_cache

from vlaa_jax.rewards.latex_tokens import FUNCTIONS, GREEK, Unreadable, spelled_out, tokens_of
from vlaa_jax.rewards.trees import Shape, Tree, is_plain_fraction, is_whole, pick

MAX_NESTING = 70
MAX_NUMBER = 60
"""Characters of one number."""

_INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_CAPITALS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_SIGNS = frozenset({"=", "<", ">", "<=", ">=", "!=", "in"})


def read(text: str) -> Shape:
    """The shape of an expression without its delimiters.

    Raises:
        Unreadable: it is not understood with certainty.
    """
    text = spelled_out(text)
    matrix = re.fullmatch(
        r"\s*\\begin\{([pbv]?matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{\1\}\s*", text, re.DOTALL
    )
    if matrix:
        rows = re.split(r"\\\\", re.sub(r"\\\\\s*$", "", matrix[2]))
        cells = tuple(tuple(_Reader(c).only_sum() for c in row.split("&")) for row in rows)
        return Shape("matrix", cells)
    return _Reader(text).shape()


@lru_cache(maxsize=8_192)  # a gold comes back once per completion
def shape_of(text: str) -> Shape | None:
    """What ``read`` gives; None where that is not understood."""
    try:
        return read(text)
    except Unreadable:
        return None


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

    def only_sum(self) -> Tree:
        """One expression up to the end of the text."""
        tree = self._sum()
        self._expect("")
        return tree

    def shape(self) -> Shape:
        """Everything up to the end of the text."""
        elements = self._elements(("",))
        self._expect("")
        return elements[0] if len(elements) == 1 else Shape("list", tuple(elements))

    def _elements(self, closing: tuple[str, ...]) -> list[Shape]:
        elements = self._element()
        while self._try(",", ";"):
            if self._next in closing:
                break
            elements += self._element()
        return elements

    def _element(self) -> list[Shape]:
        start = self._at
        if self._next in _CAPITALS and self._tokens[start + 1] == "(":
            self._take()  # the name of a point
        first = self._collection()
        if first is None or self._next not in ("", ",", ";", "cup", "rbrace", ")", "]", "}", "="):
            self._at = start
            return self._relation()
        if first.kind == "tuple" and self._next == "=":  # (p, q) = (4, 7)
            self._take()
            second = self._collection()
            if second is None or len(second.parts) != len(first.parts):
                raise Unreadable
            return [Shape("named", (first, second))]
        pieces = [first]
        while self._try("cup"):
            piece = self._collection()
            if piece is None:
                raise Unreadable
            pieces.append(piece)
        return [Shape("union", tuple(pieces)) if len(pieces) > 1 else first]

    def _collection(self) -> Shape | None:
        """A tuple, an interval or a set; None where the bracket is an ordinary parenthesis."""
        opening, start = self._take(), self._at
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise Unreadable
        try:
            if opening == "lbrace" or (opening == "{" and self._has_comma()):
                parts = self._elements(("rbrace", "}"))
                if not self._try("rbrace", "}"):
                    raise Unreadable
                return Shape("set" if opening == "lbrace" else "list", tuple(parts))
            if opening in ("(", "["):
                parts = self._elements((")", "]"))
                if len(parts) > 1 and self._next in (")", "]"):
                    return Shape("tuple", tuple(parts), (opening, self._take()))
        except Unreadable:
            if opening not in ("(", "["):
                raise
        finally:
            self._depth -= 1
        self._at = start - 1
        return None

    def _has_comma(self) -> bool:
        depth, at = 1, self._at
        while depth and self._tokens[at]:
            depth += (self._tokens[at] == "{") - (self._tokens[at] == "}")
            if self._tokens[at] == "," and depth == 1:
                return True
            at += 1
        return False

    def _relation(self) -> list[Shape]:
        both = self._sum(pm=True)
        parts, signs = [both], []
        while self._next in _SIGNS:
            sign = self._take()
            if sign == "in":
                inside = self._element()
                if (
                    len(parts) > 1
                    or len(inside) > 1
                    or inside[0].kind not in ("tuple", "union", "set")
                ):
                    raise Unreadable
                return [Shape("member", (parts[0], inside[0]))]
            signs.append(sign)
            collection = self._collection() if self._next == "lbrace" else None
            if collection is not None:
                return [Shape("member", (parts[0], collection))]
            parts.append(self._sum(pm=True))
        if self._try(":"):
            parts[-1] = ("div", parts[-1], self._sum())
        if signs and self._next == "cup":  # x < 1 or x > 2
            pieces = [Shape("relation", tuple(parts), tuple(signs))]
            while self._try("cup"):
                pieces += self._relation()
            return [Shape("union", tuple(pieces))]
        if any(part[0] == "pm" for part in parts):
            plus, minus = (tuple(pick(part, sign) for part in parts) for sign in (1, -1))
            kind = "relation" if signs else "expr"
            return [Shape(kind, branch, tuple(signs)) for branch in (plus, minus)]
        return [Shape("relation" if signs else "expr", tuple(parts), tuple(signs))]

    # -- expressions

    def _sum(self, pm: bool = False) -> Tree:
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise Unreadable
        tree = ("num", Fraction(0)) if self._next == "pm" else self._product()
        while self._next in ("+", "-", "pm"):
            sign = self._take()
            if sign == "pm":
                if not pm or tree[0] == "pm":
                    raise Unreadable
                tree = ("pm", tree, self._product())
                continue
            term = self._product()
            if tree[0] == "pm":
                raise Unreadable
            tree = ("add", tree, ("neg", term) if sign == "-" else term)
        self._depth -= 1
        return tree

    def _product(self) -> Tree:
        tree = self._signed()
        while self._next in ("*", "/"):
            if self._take() == "*":
                tree = ("mul", tree, self._signed())
            elif is_whole(tree[1] if tree[0] == "neg" else tree) and re.fullmatch(
                r"\d+", self._next
            ):
                tree = ("div", tree, _number(self._take()))
                if self._next == "^":
                    raise Unreadable
                tree = self._followed(tree)
            else:
                tree = ("div", tree, self._signed())
        return tree

    def _followed(self, tree: Tree) -> Tree:
        while self._starts_factor() and not self._next[0].isdigit():
            tree = ("mul", tree, self._power())
        return tree

    def _signed(self) -> Tree:
        minus = False
        while self._next in ("-", "+"):
            minus ^= self._take() == "-"
        tree = self._implicit_product()
        return ("neg", tree) if minus else tree

    def _implicit_product(self) -> Tree:
        tree = self._power()
        first, count = tree, 1
        while self._starts_factor():
            if self._next[0].isdigit():
                if count > 1:
                    raise Unreadable
                return self._mixed(tree)
            factor = self._power()
            if count == 1 and is_whole(first) and is_plain_fraction(factor):
                tree = ("add", tree, factor)  # a mixed number
            else:
                tree = ("mul", tree, factor)
            count += 1
        return tree

    def _mixed(self, whole: Tree) -> Tree:
        over, slash, under = self._take(), self._take(), self._take()
        if not (is_whole(whole) and over.isdigit() and slash == "/" and under.isdigit()):
            raise Unreadable  # two numbers side by side
        return ("add", whole, ("div", _number(over), _number(under)))

    def _starts_factor(self) -> bool:
        token = self._next
        if token == "|":
            return not self._in_bars
        if token in _SIGNS or token in ("cup", "pm", "rbrace", "lbrace", "infty"):
            return False
        return bool(token) and (
            token[0].isalnum() or token in ("(", "{", "\\angle", "∛") or token[0] == "\\"
        )

    def _power(self) -> Tree:
        tree = self._primary()
        while self._next in ("^", "!", "°", "%"):
            if self._try("^"):
                tree = ("pow", tree, self._exponent())
            elif self._try("!"):
                tree = ("call", "factorial", tree)
            else:
                tree = ("call", "degrees" if self._take() == "°" else "percent", tree)
        return tree

    def _exponent(self) -> Tree:
        if self._try("{"):
            return self._closed("}")
        if self._try("("):
            return self._closed(")")
        minus = self._try("-")
        token = self._next
        tree = self._fraction() if self._try("frac") else self._primary()
        if token[:1].isdigit() and self._next == "^":
            tree = ("pow", tree, (self._take(), self._exponent())[1])
        return ("neg", tree) if minus else tree

    def _closed(self, closing: str) -> Tree:
        tree = self._sum()
        self._expect(closing)
        return tree

    def _primary(self) -> Tree:
        token = self._take()
        if not token:
            raise Unreadable
        if token[0].isdigit() or token[0] == ".":
            return self._based(token)
        if token in ("(", "{", "|", "["):
            outer, self._in_bars = self._in_bars, token == "|"
            tree = self._closed({"(": ")", "{": "}", "|": "|", "[": "]"}[token])
            self._in_bars = outer
            if token == "(" and self._next == "_" and tree[0] == "num":
                return self._based(str(tree[1]))
            return ("call", "abs", tree) if token == "|" else tree
        if token == "frac":
            return self._fraction()
        if token == "binom":
            return ("call", "binom", self._argument_group(), self._argument_group())
        if token in ("sqrt", "∛"):
            return self._root(3 if token == "∛" else 2)
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
        if self._next != "_":
            return _number(token)
        self._take()
        inner = ""
        if self._try("{"):
            while self._next not in ("}", ""):
                inner += self._take()
            self._expect("}")
        else:
            inner = self._take()
        base = {"text{two}": "2", "two": "2", "ten": "10", "eight": "8"}.get(inner, inner)
        if not base.isdigit() or not token.isdigit():
            raise Unreadable
        return ("based", token, base)

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
        name = token
        if self._try("_"):
            piece = self._take()
            if piece == "{":
                piece = ""
                while self._next not in ("}", "") and len(piece) < 20:
                    piece += self._take()
                self._expect("}")
            if not piece:
                raise Unreadable
            name += f"_{piece}"
        while self._try("'"):
            name += "'"
        if token in "fghFGP" and self._next == "(":
            return self._applied(name)
        return ("var", name)

    def _applied(self, name: str) -> Tree:
        self._take()
        arguments = [self._sum()]
        while self._try(","):
            arguments.append(self._sum())
        self._expect(")")
        return ("app", name, *arguments)

    def _argument_group(self) -> Tree:
        if self._try("{"):
            return self._closed("}")
        token = self._take()
        if token.isdigit() and len(token) > 1:  # \frac12
            self._at -= 1
            self._tokens[self._at] = token[1:]
            return _number(token[0])
        if token.isdigit():
            return _number(token)
        self._at -= 1
        if token == "pi" or (len(token) == 1 and token.isalpha()) or token in ("sqrt", "frac"):
            return self._primary()
        raise Unreadable

    def _fraction(self) -> Tree:
        over = self._argument_group()
        return ("div", over, self._argument_group())

    def _root(self, degree_of_name: int) -> Tree:
        degree: Tree = ("num", Fraction(degree_of_name))
        if self._try("["):
            degree = self._closed("]")
        if self._next == "(":
            self._take()
            return ("call", "root", self._closed(")"), degree)
        if self._next == "{":
            return ("call", "root", self._argument_group(), degree)
        return ("call", "root", self._primary(), degree)

    def _function(self, name: str) -> Tree:
        base: Tree | None = None
        if name in ("log", "ln") and self._try("_"):
            base = self._argument_group()
        exponent: Tree | None = None
        if self._try("^"):
            exponent = self._exponent()
            if exponent == ("neg", ("num", Fraction(1))) and name in _INVERSES:
                name, exponent = _INVERSES[name], None
        tree: Tree = ("call", name, *self._arguments())
        if base is not None:
            tree = ("div", tree, ("call", name, base))
        return tree if exponent is None else ("pow", tree, exponent)

    def _arguments(self) -> list[Tree]:
        r"""What a function is applied to: a group, or for ``\sin 2x`` the product that follows."""
        if self._next in ("(", "{"):
            closing = ")" if self._take() == "(" else "}"
            found = [self._sum()]
            while self._try(","):
                found.append(self._sum())
            self._expect(closing)
            return found
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
    return ("dec" if exponent or "." in token else "num", Fraction(token))
