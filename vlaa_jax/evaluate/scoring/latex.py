r"""The value of a text in LaTeX, as VLMEvalKit comes to one at two dates, by a grammar of our own.

The original turns an answer into an expression and evaluates what that expression prints as. So
only what prints as plain arithmetic has a value: a square root, a power of one half held as a
fraction, pi or any letter has none. The two dates use two readers, which disagree on a good deal:

    ``2025-04``  latex2sympy2 1.9.1            2 1/2 is a product, ``x=5`` is 5
    ``2026-08``  latex2sympy2-extended 1.11.0  whole numbers side by side are a mixed number; boxes,
                                               text macros, degrees, signs of typography

Checked against both libraries on generated texts (``docs/evaluation.md``).
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from vlaa_jax.evaluate.scoring.arithmetic import Number, power

MAX_CHARS = 300
MAX_NESTING = 20
MAX_DIGITS = 60

_OLD, _NEW = "2025-04", "2026-08"
_TOKEN = re.compile(
    r"\s+|(\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+|\\text\s*\{[^{}]*\}|\\[a-zA-Z]+|\\.|\S)",
    re.DOTALL,
)
_PRODUCTS = {"*", "\\times", "\\cdot"}
_QUOTIENTS = {"/", ":", "\\div"}
_FRACTIONS = {"\\frac", "\\dfrac", "\\tfrac"}
_COMMANDS = _FRACTIONS | {"\\sqrt", "\\binom"}
_OPENING = {"(": ")", "{": "}", "[": "]"}
_DROPPED = {
    _OLD: {"\\,", "\\quad", "\\displaystyle", "~", "$", "\\left", "\\right", "'"},
    _NEW: {"\\,", "\\;", "\\quad", "\\displaystyle", "$", "\\$", "\\left", "\\right"} | {"'", '"'},
}
_ENDS = {")", "]", "}", "\\\\", ".", "_"}
"""The older reader takes what stands before one of these and ignores the rest."""
_SPELLINGS = {"−": "-", "×": "*", "÷": "/", " .": " 0.", "\\!": ""}
_SPELLINGS |= {"\\(": "(", "\\)": ")"}
_FONT = re.compile(r"\\(?:math(?:rm|it|bf)|text(?:normal|bf|it|rm))")
_TEXT = re.compile(r"\\text\s*\{\s*(\d+(?:\.\d+)?)\s*\}")
_BOX = re.compile(r"\\f?box(?:ed)?\s*(?=\{|[^\sa-z])")
_PERCENT = re.compile(r"\s*\b(?:percentage|percent|pct)\b")
_DEGREE = re.compile(r"(?<=[\w)}\]])\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)")
_COMMA = re.compile(r"\s*\{\s*,\s*\}")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_SIGNS_AROUND = re.compile(r"\\?\$|\\displaystyle")
_LETTER = r"[a-z](?:_(?:\w|\{\w+\}))?\s*"
_ASSIGNED = re.compile("(?!e)" + _LETTER + "=")
_APPROXIMATED = re.compile(_LETTER + r"\\approx")


class NoValue(Exception):
    """The text is not an expression that prints as arithmetic."""


@dataclass(frozen=True)
class _Term:
    value: Number
    exact: Fraction | None = None
    """Set where the readers hold one rational number rather than an expression."""


def latex_value(text: str, dialect: str) -> Number | None:
    """What the text comes to; None where it has no value.

    Args:
        text: lower-case and stripped, as the original compares it.
        dialect: ``2025-04`` or ``2026-08``.
    """
    if len(text) > MAX_CHARS:
        return None
    try:
        return _Reader(_prepared(text, dialect), dialect).whole().value
    except (NoValue, ArithmeticError, ValueError, TypeError, IndexError):
        return None


def _prepared(text: str, dialect: str) -> str:
    """The text as the reader of that date sees it before its grammar."""
    named = _ASSIGNED if dialect == _OLD else _APPROXIMATED
    if dialect == _NEW:
        text = _boxed(text)
        for sign, plain in _SPELLINGS.items():
            text = text.replace(sign, plain)
        text = _PERCENT.sub(r"\\%", _FONT.sub(r"\\text", _COMMA.sub(",", text)))
        text = _DEGREE.sub("", text)
        if _THOUSANDS.fullmatch(_SIGNS_AROUND.sub("", text).strip()):
            text = text.replace(",", "")
    elif text.startswith("'"):
        raise NoValue
    assigned = named.match(text)
    return text[assigned.end() :] if assigned else text


def _boxed(text: str) -> str:
    """What stands in boxes, if any does; different boxes make a list, which has no value."""
    starts = [box.end() for box in _BOX.finditer(text)]
    contents = {_to_brace(text[start:]) for start in starts}
    contents = {content for content in contents if not _BOX.search(content)}  # the innermost
    return ",".join(sorted(contents)) if contents else text


def _to_brace(text: str) -> str:
    """The content of the braces that the text begins with; without braces all of it."""
    if text[:1] != "{":
        return text
    depth = 0
    for place, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return text[1:place].strip()
    return text


class _Reader:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str, dialect: str) -> None:
        self._new = dialect == _NEW
        found = [match[1] for match in _TOKEN.finditer(text) if match[1]]
        self._tokens = [token for token in found if token not in _DROPPED[dialect]] + ["", ""]
        self._at = 0
        self._depth = 0

    def whole(self) -> _Term:
        """The value of all tokens."""
        if self._new and self._is_one_group():
            raise NoValue  # braces around everything are a set
        term = self._sum()
        if self._next and (self._new or self._next not in _ENDS):
            raise NoValue
        return term

    def _is_one_group(self) -> bool:
        depth = 0
        for place, token in enumerate(self._tokens[:-2]):
            depth += (token == "{") - (token == "}")
            if depth == 0:
                return token == "}" and place == len(self._tokens) - 3
        return False

    @property
    def _next(self) -> str:
        return self._tokens[self._at]

    def _take(self) -> str:
        token = self._tokens[self._at]
        if not token:
            raise NoValue
        self._at += 1
        return token

    def _expect(self, token: str) -> None:
        if self._take() != token:
            raise NoValue

    def _sum(self) -> _Term:
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise NoValue
        term = self._product()
        while self._next in ("+", "-"):
            sign = self._take()
            right = self._product().value
            term = _Term(term.value + right if sign == "+" else term.value - right)
        self._depth -= 1
        return term

    def _product(self) -> _Term:
        term = self._signed()
        while self._next in _PRODUCTS or self._next in _QUOTIENTS:
            if self._take() in _PRODUCTS:
                term = _Term(term.value * self._signed().value)
            else:
                term = self._quotient(term, self._signed())
        return term

    def _quotient(self, above: _Term, below: _Term) -> _Term:
        exact = None
        if self._new and _is_whole(above) and _is_whole(below) and below.exact:
            exact = above.exact / below.exact  # type: ignore[operator]
        return _Term(above.value / below.value, exact)

    def _signed(self) -> _Term:
        signs = 0
        while self._next in ("+", "-"):
            signs += self._take() == "-"
        term = self._side_by_side()
        if signs % 2 == 0:
            return term
        return _Term(-term.value, None if term.exact is None else -term.exact)

    def _side_by_side(self) -> _Term:
        """Terms without a sign between them: a product, or a mixed number."""
        terms = [self._power()]
        while self._begins_term():
            terms.append(self._power())
        result = terms.pop()
        while terms:
            result = self._joined(terms.pop(), result)
        return result

    def _begins_term(self) -> bool:
        token = self._next
        begins = _is_number(token) or token in _OPENING or token in _COMMANDS
        return begins or token.startswith("\\text")

    def _joined(self, left: _Term, right: _Term) -> _Term:
        if self._new and _is_whole(left) and right.exact is not None and right.exact > 0:
            whole = left.exact or Fraction(0)
            exact = whole - right.exact if whole < 0 else whole + right.exact
            return _Term(_plain(exact), exact)
        return _Term(left.value * right.value)

    def _power(self) -> _Term:
        term = self._atom()
        while self._next == "^":
            self._take()
            if self._next in _COMMANDS:
                raise NoValue
            exponent = self._group() if self._next == "{" else self._atom()
            if exponent.exact is not None and abs(exponent.exact) == Fraction(1, 2):
                raise NoValue  # prints as a square root
            term = _Term(power(term.value, exponent.value))
        return term

    def _group(self) -> _Term:
        closing = _OPENING[self._take()]
        term = self._sum()
        self._expect(closing)
        return term

    def _atom(self) -> _Term:
        token = self._next
        if _is_number(token):
            return self._number()
        if token in _OPENING:
            return self._group()
        self._take()
        if self._new and (text := _TEXT.fullmatch(token)):
            return _Term(float(text[1]) if "." in text[1] else int(text[1]))
        if token in _FRACTIONS:
            return self._fraction()
        if token == "\\sqrt":
            return self._root()
        if token == "\\binom":
            above, below = self._braced(), self._braced()
            if not (_is_whole(above) and _is_whole(below) and abs(above.value) < 1_000):  # type: ignore[operator]
                raise NoValue
            number = math.comb(int(above.value.real), int(below.value.real))
            return _Term(number, Fraction(number))
        raise NoValue

    def _number(self) -> _Term:
        text = self._take()
        if len(text) > MAX_DIGITS or not text.isascii() or (self._new and "," in text):
            raise NoValue
        text = text.replace(",", "")
        exact = Fraction(text)
        if "." not in text:
            term = _Term(int(text), exact)
        else:
            term = _Term(float(text), None if self._new else exact)
        if self._next == "_" and self._new:
            self._subscript()
        if self._next == "%" or self._next == "\\%":
            return self._percent(term)
        return term

    def _percent(self, term: _Term) -> _Term:
        if self._take() == "%" and not self._new:
            raise NoValue
        exact = None if self._new or term.exact is None else term.exact / 100
        return _Term(term.value * (1 / 100) if exact is None else _plain(exact), exact)

    def _subscript(self) -> None:
        self._take()
        if self._next != "{":
            self._take()
            return
        while self._take() != "}":
            pass

    def _braced(self) -> _Term:
        if self._next != "{":
            raise NoValue
        return self._group()

    def _fraction(self) -> _Term:
        return self._quotient(self._braced(), self._braced())

    def _root(self) -> _Term:
        if self._next != "[":
            raise NoValue  # a square root prints as a name
        index = self._group()
        under = self._braced()
        if index.value == 2:
            raise NoValue
        return _Term(power(under.value, 1 / index.value))


def _is_number(token: str) -> bool:
    return token[:1].isdigit() or (token[:1] == "." and token[1:2].isdigit())


def _is_whole(term: _Term) -> bool:
    return term.exact is not None and term.exact.denominator == 1


def _plain(exact: Fraction) -> Number:
    return int(exact) if exact.denominator == 1 else exact.numerator / exact.denominator
