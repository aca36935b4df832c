"""What a text says: a number, a letter, a word that is an answer, LaTeX, or no mathematics at all.

Nothing here knows of a parser: the readings are made on the host, from golds and answers alike.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from vlaa_jax.rewards.numbers import fold, plain_number, unwrap

MAX_EXPRESSION = 1_000
"""Characters; a longer answer is no expression, and costs the parser more than it is worth."""

_LITERALS = {
    "yes": "yes",
    "no": "no",
    "true": "true",
    "false": "false",
    "undefined": "undefined",
    "no solution": "no solution",
    "no solutions": "no solution",
    "no real solution": "no solution",
    "does not exist": "does not exist",
    "dne": "does not exist",
    "increasing": "increasing",
    "decreasing": "decreasing",
}
_COMMAND_NAMES = (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp pi theta alpha beta "
    "gamma phi infty"
)
_OTHER_NAMES = "sqrt abs max min mod lim det inf infinity and or"
_COMMANDS = frozenset(_COMMAND_NAMES.split())
_FUNCTIONS = _COMMANDS | frozenset(_OTHER_NAMES.split())
_UNITS = (
    r"(?:square|cubic)?\s*(?:meters?|metres?|centimeters?|centimetres?|millimeters?|kilometers?|"
    r"inches|inch|feet|foot|yards?|miles?|units?|seconds?|minutes?|hours?|days?|years?|grams?|"
    r"kilograms?|degrees?|radians?|dollars?|cents?|liters?|litres?|km|cm|mm|kg|ft|min|rad|mph|mL|"
    r"m|g|s|h|L)(?:\s*\^\s*\{?[23]\}?|[²³])?"
)
_UNIT_TAIL = re.compile(
    rf"(?<=[\d)}}°])(?:\s|\\[,;: ])*"
    rf"(?:\\(?:text|mathrm|rm)\s*\{{\s*(?P<wrapped>{_UNITS})\s*\.?\s*\}}"
    rf"(?:\s*\^\s*\{{?(?P<power>[23])\}}?)?|(?P<bare>{_UNITS}))\s*\.?\s*$"
)
_DIMENSIONLESS = frozenset({"degree", "radian", "rad", "unit"})
_UNIT_NAMES = {
    "metre": "m", "meter": "m", "centimetre": "cm", "centimeter": "cm", "millimeter": "mm",
    "kilometer": "km", "inche": "inch", "feet": "ft", "foot": "ft", "second": "s", "minute": "min",
    "hour": "h", "gram": "g", "kilogram": "kg", "liter": "L", "litre": "L",
}  # fmt: skip
_SYMBOLS = {
    "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "°": r"^{\circ}", "²": "^2", "³": "^3",
    "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ",
    "∪": r"\cup ", "∈": r"\in ", "½": r"\frac{1}{2}", "±": r"\pm ",
}  # fmt: skip
_DELIMITED = re.compile(r"\$|\\\(|\\\[|\\boxed|\\fbox")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_MIXED = re.compile(r"(?<![\w.^{/])(\d{1,6})\s+(\d{1,6})\s*/\s*(\d{1,6})(?![\w.])")
_DECIMAL_COMMA = re.compile(r"([+-]?)(\d{1,30}),(\d{1,30})")
_SPACED = re.compile(r"[+-]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_PERCENT = re.compile(r"\s*(?:\\?%|percent|pct|percentage)\.?\s*$", re.IGNORECASE)
_FRACTION = re.compile(
    r"(?P<sign>[+-]?)\s*(?:\\[dt]?frac\s*\{\s*(?P<a>-?\d{1,18})\s*\}\s*\{\s*(?P<b>\d{1,18})\s*\}"
    r"|(?P<c>\d{1,18})\s*/\s*(?P<d>\d{1,18}))"
)
_PROSE_LEAD = re.compile(
    r"^.{0,200}?(?:\b(?:is|are|equals?|be|gives?|answer|result|value)\b\s*(?:(?:equal\s+)?to\b)?)"
    r"\s*[:=]?\s*",
    re.IGNORECASE | re.DOTALL,
)
_FUNCTION_HEAD = re.compile(r"^\s*(?:[fghy]\s*\(\s*([a-z])\s*\)|[fghy])\s*=(?!.*=)\s*(?=.*[a-z])")
_NUMBERS = re.compile(
    r"(?<![\w.,])[-+]?[$€£¥]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:[.,]\d+)?(?:\s*/\s*\d+)?|\.\d+)"
)


@dataclass(frozen=True)
class Reading:
    """What the host makes of one text before any parser sees it."""

    number: Fraction | None = None
    letter: str | None = None
    literal: str | None = None
    latex: str | None = None
    """Text for Math-Verify, delimiters included; None when there is no mathematics in it."""
    unit: str | None = None
    exact: bool = False
    """The number is an integer, so comparing it needs no rounding rule."""


def read_expression(text: str, is_gold: bool = False) -> Reading:
    """Classify a text: number, letter, literal word, LaTeX, or none of these.

    Prose around one expression is stripped from answers, never from golds.
    """
    core = re.sub(r"^Output\s+\d+\s*:\s*", "", text.strip())
    core = unwrap(fold(core)).strip()
    if not core or len(core) > MAX_EXPRESSION:
        return Reading()
    literal = _LITERALS.get(re.sub(r"\s+", " ", core).rstrip(".").casefold())
    if literal:
        return Reading(literal=literal)
    if is_gold and re.fullmatch(r"\(?[A-Z]\)?\.?", core):
        return Reading(letter=core.strip("()."))
    if core.count("\\boxed{") == 1:
        core = _boxed(core)
    core = re.sub(r"^\\?\$\s*(?=[\d.][\d.,]*$)", "", core)  # dollars, not a delimiter
    if _DELIMITED.search(core):
        return _read_delimited(core, is_gold)
    core, unit = _split_unit(core)
    number = _number(core)
    if number is not None:
        return Reading(number=number, latex=_wrap(core), unit=unit, exact=number.denominator == 1)
    if not _is_prose(core):
        return Reading(latex=_wrap(core), unit=unit)
    return Reading() if is_gold else _read_prose(core)


def _read_delimited(core: str, is_gold: bool) -> Reading:
    """Text with its own delimiters. Words outside them are prose, words inside are not read."""
    cleaned = _normalize(core)
    inside = re.findall(r"\$+([^$]+)\$+|\\\((.+?)\\\)|\\\[(.+?)\\\]", core, re.DOTALL)
    pieces = ["".join(groups) for groups in inside] or [core]
    if all(_is_prose(unwrap(piece)) for piece in pieces):
        return Reading()
    if is_gold and len(pieces) == 1 and _is_prose(re.sub(r"\$.*\$", "", core, flags=re.DOTALL)):
        cleaned = f"${_normalize(unwrap(pieces[0]))}$"
    return Reading(latex=cleaned)


def _boxed(text: str) -> str:
    """Content of the one box in a text; the text itself when the box never closes."""
    start = text.index("\\boxed{") + len("\\boxed{")
    depth = 1
    for index in range(start, len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            # A percent sign after the box belongs to it.
            tail = re.match(r"[\s$)\]\\]*(?:\\?%|(?:percent|pct)\b)", text[index + 1 :])
            return text[start:index] + (r"\%" if tail else "")
    return text


def _read_prose(core: str) -> Reading:
    """The one expression of a sentence: what follows "is", or the only number in it."""
    lead = _PROSE_LEAD.match(core)
    while lead:
        tail, unit = _split_unit(core[lead.end() :].strip().rstrip("."))
        number = _number(tail)
        if number is not None:
            if len(_NUMBERS.findall(core[: lead.end()])) == 0:
                return Reading(number, latex=_wrap(tail), unit=unit, exact=number.denominator == 1)
            break
        if tail and not _is_prose(tail) and not re.search(r"\d", core[: lead.end()]):
            return Reading(latex=_wrap(tail), unit=unit)
        following = _PROSE_LEAD.match(tail)
        if not following or following.end() == 0:
            break
        core, lead = tail, following
    found = _NUMBERS.findall(core)
    if len(found) == 1 and not re.search(r"[\\^_=<>{}|]", core):
        number = _number(found[0].replace("$", ""))
        if number is not None:
            return Reading(number, latex=_wrap(found[0]), exact=number.denominator == 1)
    return Reading()


def _number(text: str) -> Fraction | None:
    """Value of a text that is one number: decimals, thousands, percent, a simple fraction."""
    text = text.strip().strip("€£¥").removeprefix("\\$").removeprefix("$").strip()
    percent = _PERCENT.search(text)
    if percent:
        text = text[: percent.start()]
    text = re.sub(r"\s*\^\s*\{?\s*\\?circ\s*\}?\s*\.?$|°\.?$|\\degree\.?$", "", text)
    value = plain_number(text)
    if value is None:
        value = _fraction(text)
    if value is None and _SPACED.fullmatch(text.strip()):
        value = plain_number(text.replace(" ", ""))
    if value is None and re.fullmatch(r"[+-]?0,\d+", text.strip()):
        value = with_decimal_comma(text)
    if value is not None and percent:
        value /= 100
    return value


def _fraction(text: str) -> Fraction | None:
    match = _FRACTION.fullmatch(text.strip().rstrip("."))
    if not match:
        return None
    over, under = int(match["a"] or match["c"]), int(match["b"] or match["d"])
    if under == 0:
        return None
    return Fraction(-over if match["sign"] == "-" else over, under)


def with_decimal_comma(text: str) -> Fraction | None:
    """``1000,99`` as a decimal; only asked for where the gold is one number, not a list."""
    match = _DECIMAL_COMMA.fullmatch(unwrap(fold(text)).strip())
    if not match:
        return None
    value = Fraction(f"{match[2]}.{match[3]}")
    return -value if match[1] == "-" else value


def _split_unit(text: str) -> tuple[str, str | None]:
    match = _UNIT_TAIL.search(text)
    if not match or match.start() == 0:
        return text, None
    unit = re.sub(r"[\s{}]", "", match["wrapped"] or match["bare"])
    power = match["power"] or (re.findall(r"[23²³]$", unit) or [""])[0]
    name = re.sub(r"\^?[23²³]$", "", unit)
    name = name if len(name) <= 2 else name.removesuffix("s")
    for word, prefix_power in (("square", "2"), ("cubic", "3")):
        if name.startswith(word):
            name, power = name.removeprefix(word).removesuffix("s"), prefix_power
    name = _UNIT_NAMES.get(name, name)
    power = {"²": "2", "³": "3"}.get(power, power)
    if name in _DIMENSIONLESS:
        return text[: match.start()], None
    return text[: match.start()], name + power


def _is_prose(text: str) -> bool:
    """Whether a text has words that are no function, unit or LaTeX command."""
    bare = re.sub(r"\\(?:text|mathrm|textbf|operatorname|rm)\s*\{([^{}]*)\}", r" \1 ", text)
    bare = re.sub(r"\\(?:begin|end)\s*\{[a-z]+\*?\}|\\[A-Za-z]+", " ", bare)
    words = [match.group() for match in _WORD.finditer(bare)]
    return any(word.casefold() not in _FUNCTIONS and not _is_product(word) for word in words)


def _is_product(word: str) -> bool:
    """``xy`` and ``ab`` are products of variables; longer runs of letters are words."""
    return len(word) <= 3 and word.casefold() not in _SHORT_WORDS


_SMALL_WORDS = "is as at by in of on to an the are not but so we it if no yes my its for has was"
_SHORT_WORDS = frozenset(_SMALL_WORDS.split())


def _wrap(core: str) -> str:
    return f"${_normalize(core)}$"


def _normalize(text: str) -> str:
    """Spellings that Math-Verify misreads, in LaTeX that it reads."""
    for symbol, latex in _SYMBOLS.items():
        text = text.replace(symbol, latex)
    text = re.sub(r"\\sqrt\s*(\d)", r"\\sqrt{\1}", text) if "√" in text else text
    text = re.sub(r"\\(?:mathrm|text|rm)\s*\{\s*([a-z])\s*\}", r"\1", text)
    text = text.replace(r"\degree", r"^{\circ}").replace(r"\pct", r"\%")
    text = re.sub(r"(?<!\\)%|\b(?:pct|percent)\b", r"\\%", text)
    text = _MIXED.sub(r"(\1+\\frac{\2}{\3})", text)
    text = re.sub(r"\babs\s*\(([^()]*)\)", r"|\1|", text)
    text = re.sub(
        r"(?<![\\A-Za-z])([A-Za-z]{2,})(?=\s*[\^({\d\s]|$|[A-Za-z])",
        lambda m: f"\\{m[1]} " if m[1] in _COMMANDS else m[1],
        text,
    )
    text = re.sub(r"(?<=\d)\s*\*\s*(?=[\w(\\])|(?<=[\w)])\s*\*\s*(?=[\w(\\])", r"\\cdot ", text)
    return _FUNCTION_HEAD.sub("y=", text)
