r"""LaTeX of ordinary answers to trees, in exactly the reading that Math-Verify's grammar gives it.

Where that grammar, its clean-up rules or plain doubt would come between a text and its tree, this
reader raises ``Unsupported`` and Math-Verify decides. Its conventions that differ from typeset
intuition: implicit products bind tighter than a slash (``1/2x`` is 1/(2x)), ``x^10`` has the
exponent ten, a whole number before a fraction of whole numbers is a mixed number, ``\log`` has the
base ten, letters have no case.
"""

import re
from fractions import Fraction

from vlaa_jax.rewards.exact.trees import Shape, Tree, Unsupported

MAX_TEXT = 300
MAX_NESTING = 10
MAX_NUMBER = 18
"""Characters of one number."""

_FUNCTION_NAMES = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh exp ln log"
FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_GREEK_NAMES = "alpha beta gamma delta theta lambda mu rho sigma tau phi omega"
_LOWER_GREEK = frozenset(_GREEK_NAMES.split())
_SIGNS = {
    "=": "=", "<": "<", ">": ">", "\\lt": "<", "\\gt": ">", "\\le": "<=", "\\leq": "<=",
    "\\leqslant": "<=", "\\ge": ">=", "\\geq": ">=", "\\geqslant": ">=",
}  # fmt: skip
_PRODUCTS = {"*": "mul", "\\cdot": "mul", "\\times": "mul", "/": "div", "\\div": "div"}
_FRACS = frozenset({"\\frac", "\\dfrac", "\\tfrac"})
_DROPPED = frozenset({"\\,", "\\;", "\\:", "\\ ", "\\!", "\\left", "\\right", "\\displaystyle"})
_LONGHAND = {"\\lvert": "|", "\\rvert": "|", "\\vert": "|", "\\lbrace": "\\{", "\\rbrace": "\\}"}
_MATRICES = frozenset({"pmatrix", "bmatrix"})

_TOKEN = re.compile(
    r"\s+|(\d+(?:\.\d+)?|\.\d+|\\(?:[A-Za-z]+|[{},;:! \\])|[A-Za-z]|[-+*/^_(){}\[\]|=<>,&])"
)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_DEGREES = re.compile(r"(?<=[\d}])\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*$")
_AND_OR = re.compile(r",?\s*\\text\s*\{\s*(?:and|or)\s*\}")
_THOUSANDS = re.compile(r"(?<!\d)\d{1,3},\d{3}(?!\d)")
_WORD = re.compile(r"[A-Za-z]{3}|or|ln|lg|pi|in|if|as|at")
_TAIL = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{1,2}$")
_UNIT_LETTERS = frozenset("otchlsgmd")
_NO_UNIT = re.compile(r"[xyznkpquvwfj]+")


def read(text: str) -> Shape:
    """The shape of LaTeX that stands between its delimiters.

    Raises:
        Unsupported: it is not understood with certainty.
    """
    text = text.strip()
    if len(text) > MAX_TEXT:
        raise Unsupported
    if "matrix" in text:
        return _Reader(text).matrix()
    if "\\text" in text:
        text = _AND_OR.sub(",", text)
    if "circ" in text:
        text = _DEGREES.sub("", text)
    if _WORD.search(_COMMAND.sub(" ", text)) or _ends_in_unit(text):
        raise Unsupported
    return _Reader(text).shape()


def _ends_in_unit(text: str) -> bool:
    """Whether Math-Verify would drop the last letters as a unit, and might be right.

    It drops the h of ``2\\pi r h``, too; letters after a letter are read as variables here.
    """
    tail = _TAIL.search(text)
    if not tail or _NO_UNIT.fullmatch(tail[0]):
        return False
    if len(tail[0]) == 1 and tail[0] not in _UNIT_LETTERS:
        return False
    before = text[: tail.start()]
    if not before or not (before[-1].isdigit() or before[-1] in "} \t"):
        return False
    return not re.search(r"(?:^|[^A-Za-z\\])[A-Za-z]{1,2}\s+$", before)


class _Reader:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[str] = []
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if not match:
                raise Unsupported
            position = match.end()
            if match[1] and match[1] not in _DROPPED:
                self._tokens.append(_LONGHAND.get(match[1], match[1]))
        self._tokens += ["", ""]
        self._at = 0
        self._depth = 0
        self._in_bars = False

    # -- tokens

    @property
    def _next(self) -> str:
        return self._tokens[self._at]

    def _take(self) -> str:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _expect(self, token: str) -> None:
        if self._take() != token:
            raise Unsupported

    # -- whole answers

    def shape(self) -> Shape:
        """Everything up to the end of the text."""
        first = self._element()
        if self._next == "\\cup":
            return self._union(first)
        if self._next == "\\pm":
            return self._either(first)
        elements = [first]
        while self._next == ",":
            self._take()
            elements.append(self._element())
        self._expect("")
        if len(elements) == 1:
            return first
        if _THOUSANDS.search(self._text):
            raise Unsupported  # 1,234 may be one number
        return Shape("set", tuple(elements))

    def _either(self, first: Shape) -> Shape:
        """``a \\pm b`` is the set of a+b and a-b."""
        self._take()
        tree = self._sum()
        self._expect("")
        if first.kind != "expr":
            raise Unsupported
        both = (("add", first.parts[0], other) for other in (tree, ("neg", tree)))
        return Shape("set", tuple(Shape("expr", (part,)) for part in both))

    def _union(self, first: Shape) -> Shape:
        pieces = [first]
        while self._next == "\\cup":
            self._take()
            pieces.append(self._element())
        self._expect("")
        if any(piece.kind != "tuple" for piece in pieces):
            raise Unsupported
        return Shape("union", tuple(pieces))

    def _element(self) -> Shape:
        if self._next == "\\{":
            return self._braces()
        if self._next in ("(", "["):
            start = self._at
            opening = self._take()
            parts = [self._bound()]
            if self._next == ",":
                while self._next == ",":
                    self._take()
                    parts.append(self._bound())
                closing = self._take()
                if closing not in (")", "]") or self._next not in ("", ",", "\\}", "\\cup"):
                    raise Unsupported
                return Shape("tuple", tuple(parts), (opening, closing))
            self._at = start  # an ordinary parenthesis
        parts, signs = [self._sum()], []
        while self._next in _SIGNS:
            signs.append(_SIGNS[self._take()])
            parts.append(self._sum())
        return Shape("relation" if signs else "expr", tuple(parts), tuple(signs))

    def _braces(self) -> Shape:
        self._take()
        elements = [self._element()]
        while self._next == ",":
            self._take()
            elements.append(self._element())
        self._expect("\\}")
        return Shape("set", tuple(elements))

    def _bound(self) -> Tree:
        """A coordinate or an end of an interval, which may be infinite."""
        sign = self._next if self._next in ("-", "+") else ""
        if self._tokens[self._at + bool(sign)] == "\\infty":
            self._at += 1 + bool(sign)
            return ("neg", ("inf",)) if sign == "-" else ("inf",)
        return self._sum()

    def matrix(self) -> Shape:
        """One matrix and nothing else."""
        self._expect("\\begin")
        name = self._environment()
        if name not in _MATRICES:
            raise Unsupported
        rows = [[self._sum()]]
        while self._next in ("&", "\\\\"):
            if self._take() == "&":
                rows[-1].append(self._sum())
            elif self._next != "\\end":
                rows.append([self._sum()])
        self._expect("\\end")
        if self._environment() != name or len({len(row) for row in rows}) != 1:
            raise Unsupported
        self._expect("")
        return Shape("matrix", tuple(tuple(row) for row in rows))

    def _environment(self) -> str:
        self._expect("{")
        letters: list[str] = []
        while self._next != "}" and len(letters) < 10:
            letters.append(self._take())
        self._expect("}")
        return "".join(letters)

    # -- expressions

    def _sum(self) -> Tree:
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise Unsupported
        tree = self._product()
        while self._next in ("+", "-"):
            sign = self._take()
            term = self._product()
            tree = ("add", tree, ("neg", term) if sign == "-" else term)
        self._depth -= 1
        return tree

    def _product(self) -> Tree:
        tree = self._signed()
        while self._next in _PRODUCTS:
            operation = _PRODUCTS[self._take()]
            tree = (operation, tree, self._signed())
        return tree

    def _signed(self) -> Tree:
        minus = False
        while self._next in ("-", "+"):
            minus ^= self._take() == "-"
        tree = self._implicit_product()
        return ("neg", tree) if minus else tree

    def _implicit_product(self) -> Tree:
        factors = [self._power()]
        while self._starts_factor():
            if self._next[0].isdigit() or self._next[0] == ".":
                raise Unsupported  # two numbers side by side
            factors.append(self._power())
        if len(factors) == 2 and _is_whole(factors[0]) and _is_plain_fraction(factors[1]):
            return ("add", *factors)  # a mixed number
        if _is_whole(factors[0]) and len(factors) > 1 and _is_constant_number(factors[1]):
            raise Unsupported
        tree = factors[0]
        for factor in factors[1:]:
            tree = ("mul", tree, factor)
        return tree

    def _starts_factor(self) -> bool:
        token = self._next
        if token == "|":
            return not self._in_bars
        return bool(token) and (
            token[0].isalnum()
            or token in ("(", "{", ".")
            or (token[0] == "\\" and token[1:].isalpha() and token not in _NO_FACTOR)
        )

    def _power(self) -> Tree:
        tree = self._primary()
        if self._next == "^":
            self._take()
            tree = ("pow", tree, self._exponent())
        if self._next in ("^", "_"):
            raise Unsupported
        return tree

    def _exponent(self) -> Tree:
        if self._next == "{":
            return self._group()
        token = self._take()
        if token[:1].isdigit():
            return _number(token)
        if len(token) == 1 and token.isalpha():
            return _letter(token)
        raise Unsupported

    def _group(self) -> Tree:
        self._expect("{")
        tree = self._sum()
        self._expect("}")
        return tree

    def _primary(self) -> Tree:
        token = self._take()
        if not token:
            raise Unsupported
        if token[0].isdigit() or token[0] == ".":
            return _number(token)
        if token.isalpha():
            return self._variable(token)
        if token in ("(", "{", "|"):
            return self._enclosed(token)
        if token in _FRACS:
            return self._fraction()
        if token == "\\sqrt":
            return self._root()
        name = token[1:]
        if name == "pi":
            return self._no_call(("pi",))
        if name in _LOWER_GREEK:
            return self._no_call(("var", token))
        if name in FUNCTIONS:
            return self._function(name)
        raise Unsupported

    def _enclosed(self, opening: str) -> Tree:
        outer, self._in_bars = self._in_bars, opening == "|"
        tree = self._sum()
        self._in_bars = outer
        self._expect({"(": ")", "{": "}", "|": "|"}[opening])
        return ("fn", "abs", tree) if opening == "|" else tree

    def _variable(self, token: str) -> Tree:
        if token == "d" and (self._next.isalpha() or self._next[:1] == "\\"):
            raise Unsupported  # a differential
        tree = _letter(token)
        if self._next == "_":
            self._take()
            name = self._take()
            if name == "{":
                name = self._take()
                self._expect("}")
            if tree[0] != "var" or not re.fullmatch(r"\d{1,3}|[A-Za-z]", name):
                raise Unsupported
            tree = ("var", f"{tree[1]}_{name}")
        return self._no_call(tree)

    def _no_call(self, tree: Tree) -> Tree:
        """``a(x)`` is a function's value; only a sum in the parentheses makes it a product."""
        if self._next == "(":
            start = self._at
            self._take()
            content = self._sum()
            self._expect(")")
            if content[0] != "add":
                raise Unsupported
            self._at = start
        return tree

    def _fraction(self) -> Tree:
        if self._next == "{":
            if self._tokens[self._at + 1] == "d":
                raise Unsupported
            over = self._group()
            return ("div", over, self._group())
        token = self._take()
        if len(token) == 2 and token.isdigit():
            return ("div", _number(token[0]), _number(token[1]))
        raise Unsupported

    def _root(self) -> Tree:
        degree = 2
        if self._next == "[":
            self._take()
            token = self._take()
            if not token.isdigit() or not 2 <= int(token) <= 9:
                raise Unsupported
            degree = int(token)
            self._expect("]")
        if self._next == "{":
            return ("root", degree, self._group())
        token = self._take()
        if len(token) == 1 and token.isalnum() and degree == 2 and not self._next[:1].isdigit():
            return ("root", 2, _number(token) if token.isdigit() else _letter(token))
        raise Unsupported

    def _function(self, name: str) -> Tree:
        base: Tree = ("num", Fraction(10))
        if name == "log" and self._next == "_":
            self._take()
            if self._next == "{":
                base = self._group()
            else:
                token = self._take()
                if not re.fullmatch(r"\d", token):
                    raise Unsupported
                base = _number(token)
        exponent: Tree | None = None
        if self._next == "^":
            self._take()
            exponent = self._exponent()
            if exponent == ("neg", ("num", Fraction(1))) and name in _INVERSES:
                name, exponent = _INVERSES[name], None
            elif exponent[0] != "num":
                raise Unsupported
        argument = self._argument()
        tree = ("log", base, argument) if name == "log" else ("fn", name, argument)
        return tree if exponent is None else ("pow", tree, exponent)

    def _argument(self) -> Tree:
        r"""What a function is applied to: a group, or for ``\sin 2x`` the product that follows."""
        if self._next in ("(", "{"):
            closing = ")" if self._take() == "(" else "}"
            inner = self._sum()
            self._expect(closing)
            return inner
        tree: Tree | None = None
        while self._next and (
            self._next.isalnum()
            or self._next[0].isdigit()
            or self._next[1:] in _LOWER_GREEK
            or self._next in ("\\pi", "\\sqrt", *_FRACS)
        ):
            if tree is not None and self._next[0].isdigit():
                raise Unsupported
            factor = self._power()
            tree = factor if tree is None else ("mul", tree, factor)
        if tree is None or self._next in ("(", "{", "|") or self._next in _PRODUCTS:
            raise Unsupported
        return tree


_NO_FACTOR = frozenset({*_SIGNS, *_PRODUCTS, "\\pm", "\\cup", "\\end", "\\infty", "\\circ"})


def _number(token: str) -> Tree:
    if len(token) > MAX_NUMBER:
        raise Unsupported
    return ("num", Fraction(token))


def _letter(token: str) -> Tree:
    if token == "e":
        return ("e",)
    if token in "iIE":
        raise Unsupported  # the imaginary unit, or not
    return ("var", token.lower())


def _is_whole(tree: Tree) -> bool:
    return tree[0] == "num" and tree[1].denominator == 1


def _is_plain_fraction(tree: Tree) -> bool:
    return tree[0] == "div" and _is_whole(tree[1]) and _is_whole(tree[2]) and tree[1][1] > 0


def _is_constant_number(tree: Tree) -> bool:
    """Whether Math-Verify would see a rational number, and make a mixed number of it."""
    if tree[0] in ("num", "e", "pi", "var"):
        return bool(tree[0] == "num")
    if tree[0] in ("add", "mul", "div", "neg", "pow"):
        return all(_is_constant_number(part) for part in tree[1:])
    return False
