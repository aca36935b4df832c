r"""Boxes in a text: JSON, Python lists, the models' own grounding formats, and bare numbers.

    boxes  =  four numbers, with or without brackets
           |  two points: (x1, y1), (x2, y2)                                  Qwen2-VL
           |  an object with a key for the box, or with x1, y1, x2, y2         Qwen2.5-VL
           |  a list of these

Brackets must close. Labels are quoted text or stand between the tags of an object reference; what
is in them is not read.
"""

import re
from collections.abc import Sequence
from typing import Any

from vlaa_jax.rewards.text import fold, unwrap

Box = tuple[float, float, float, float]

MAX_TEXT = 20_000
MAX_DEPTH = 8
MAX_BOXES = 100

_N = r"[-+]?(?:(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][-+]?\d{1,3})?|nan\b|inf(?:inity)?\b)"
_LABEL = re.compile(
    r"<\|object_ref_start\|>.{0,500}?<\|object_ref_end\|>|<ref>.{0,500}?</ref>|```(?:json)?",
    re.DOTALL,
)
_TAG = re.compile(
    r"<\|?/?(?:box|quad)(?:_start|_end)?\|?>|\\(?:boxed|fbox)\s*(?=\{)|\\(?=[\[\](){}])|\$"
)
_MARKED = re.compile(r"[<`\\$*]")
_NUMBER = re.compile(_N, re.IGNORECASE)
_FOUR = re.compile(rf"[\s(\[]*{_N}(?:[\s,]+{_N}){{3}}[\s)\]]*", re.IGNORECASE)
_TOKEN = re.compile(
    rf"\s+|(?P<open>[\[({{])|(?P<close>[\])}}])|\"(?P<double>(?:[^\"\\]|\\.)*)\""
    rf"|'(?P<single>(?:[^'\\]|\\.|'(?=\w))*)'|(?P<number>(?<![\w.]){_N}(?![\w.]*\w))"
    r"|(?P<word>[^\W\d]\w*)|(?P<sign>.)",
    re.IGNORECASE | re.DOTALL,
)
_CORNERS = {
    name: place
    for place, names in enumerate(
        ("x1 x_1 xmin x_min left", "y1 y_1 ymin y_min top", "x2 x_2 xmax x_max right",
         "y2 y_2 ymax y_max bottom")
    )
    for name in names.split()
}  # fmt: skip
_PAIRS = {"(": ")", "[": "]", "{": "}"}


class _Key(str):
    """Text before a colon in braces."""


class _Malformed(Exception):
    """No boxes, or some that cannot be read."""


def parse_boxes(text: str) -> list[Box] | None:
    """All boxes of a text in order; None when it has none or anything malformed."""
    found = find_boxes(text)
    return found[0] if found else None


def find_boxes(text: str) -> tuple[list[Box], str, str] | None:
    """All boxes of a text in order, with the words before and after them; None as above."""
    if len(text) > MAX_TEXT:
        return None
    text = unwrap(fold(text))
    if _MARKED.search(text):
        text = _TAG.sub(" ", _LABEL.sub(" ", text.replace("**", " ")))
    try:
        return _read(text)
    except _Malformed:
        return None


def _read(text: str) -> tuple[list[Box], str, str]:
    stack: list[tuple[str, list[Any]]] = [("", [])]  # what closes a bracket, and what is in it
    bracketed: list[int] = []  # where brackets stand
    bare: list[int] = []  # and where numbers do
    for match in _TOKEN.finditer(text):
        kind, token, (closing, items) = match.lastgroup, match[match.lastgroup or 0], stack[-1]
        if kind == "open":
            bracketed += match.span()
            stack.append((_PAIRS[token], []))
            if len(stack) > MAX_DEPTH:
                raise _Malformed
        elif kind == "close":
            bracketed += match.span()
            if token != closing:
                raise _Malformed
            stack.pop()
            stack[-1][1].append(items)
        elif kind == "number":
            if not closing:
                bare += match.span()
            items.append(float(token))
        elif kind == "sign":
            if token == ":" and closing == "}" and items and isinstance(items[-1], str):
                items[-1] = _Key(items[-1])
        elif kind is not None:
            items.append(token if kind == "word" else _quoted(token))
    if len(stack) > 1:
        raise _Malformed
    boxes = _boxes_in(stack[0][1], outermost=True)
    if not boxes or len(boxes) > MAX_BOXES:
        raise _Malformed
    around = bracketed or bare
    return boxes, text[: around[0]], text[around[-1] :]


def _quoted(text: str) -> Any:
    """Text in quotation marks: a number, four numbers, or a label."""
    if _NUMBER.fullmatch(text.strip()):
        return float(text)
    if _FOUR.fullmatch(text):
        return [float(number) for number in _NUMBER.findall(text)]
    return text


def _boxes_in(items: Sequence[Any], outermost: bool = False) -> list[Box]:
    """Boxes of one bracket, in order; its numbers must make up boxes."""
    corners, rest = _keyed(items)
    numbers = [item for item in rest if isinstance(item, float)]
    lists = [item for item in rest if isinstance(item, list)]
    boxes = [corners] if corners else []
    if outermost and lists:  # numbers among the words of a sentence
        numbers = []
    if numbers and (lists or len(numbers) != 4):
        raise _Malformed
    if numbers:
        return [*boxes, _box(numbers)]
    points: list[float] = []
    for inside in lists:
        if len(inside) == 2 and all(isinstance(item, float) for item in inside):
            points += inside
            if len(points) == 4:
                boxes.append(_box(points))
                points = []
        else:
            boxes += _boxes_in(inside)
    if points:
        raise _Malformed
    return boxes


def _keyed(items: Sequence[Any]) -> tuple[Box | None, list[Any]]:
    """The box in keys x1 ... y2, and the items that are no value of another number's key."""
    corners: dict[int, float] = {}
    rest = []
    key, is_label = "", False
    for item in items:
        if isinstance(item, str):
            is_label = isinstance(item, _Key) and "box" not in item
            key = item.casefold()
        elif isinstance(item, float) and key in _CORNERS:
            corners[_CORNERS[key]] = item
            key = ""
        elif not (isinstance(item, float) and is_label):
            rest.append(item)
            key, is_label = "", False
    if corners and len(corners) != 4:
        raise _Malformed
    return (_box([corners[i] for i in range(4)]) if corners else None), rest


def _box(numbers: Sequence[float]) -> Box:
    x1, y1, x2, y2 = numbers
    return x1, y1, x2, y2
