"""Reading exactly one number out of a short text, with every digit, sign and point counted."""

import re
from fractions import Fraction

_UNIT_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TEN_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
_UNITS = {word: value for value, word in enumerate(_UNIT_WORDS.split())}
_TENS = {word: 10 * value for value, word in enumerate(_TEN_WORDS.split(), start=2)}
_TENS["fourty"] = 40
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000}
_SCALES |= {"billion": 1_000_000_000, "dozen": 12}
_WORDS = _UNITS.keys() | _TENS.keys() | _SCALES.keys()
_PARTS = (
    "half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths seventh "
    "sevenths eighth eighths ninth ninths tenth tenths hundredth hundredths"
).replace(" ", "|")
# "2 thirds" and "two and a half" are not 2, nor is "half a dozen" 12.
_NUMERAL = rf"(?:\d|\b(?:{'|'.join(sorted(_WORDS))})\b)"
_FRACTION = re.compile(
    rf"{_NUMERAL}[\s$-]*(?:(?:(?:and|&)[\s-]+)?(?:an?[\s-]+)?\b(?:{_PARTS})\b|\bpoint\s+{_NUMERAL})"
    rf"|\b(?:{_PARTS})\s+(?:of\s+)?(?:(?:an?|the)\s+)?(?<=\s){_NUMERAL}",
    re.IGNORECASE,
)
# Pieces of these words, since looking for a few substrings is ten times faster than the patterns.
_FRACTION_HINTS = ("hal", "third", "quarter", "point", "rth", "fth", "xth", "nth", "hth", "dth")
_SIGN_HINTS = (
    "minus",
    "plus",
    "tive",
    "±",
    "∓",
    "\\pm",
    "\\mp",
    "+-",
    "-+",
    "+/",
    "-/",
    "+ /",
    "- /",
)
_SIGNS = {"minus": -1, "negative": -1, "plus": 1, "positive": 1}

MAX_DIGITS = 40
"""Longer digit strings are not answers; the bound also keeps int() out of quadratic time."""

# Full-width digits and the many minus signs; nothing else is folded, because compatibility folding
# would turn a superscript two into a plain 2.
_FOLD = str.maketrans(
    {chr(0xFF10 + d): str(d) for d in range(10)}
    | {c: "-" for c in "\u2212\u2010\u2011\u2012\u2013\uff0d\ufe63"}
    | {"\uff0e": ".", "\uff0c": ",", "\uff0b": "+", "\u066b": "."}
    | {c: " " for c in "\u00a0\u2009\u202f\u2007"}
)
_LATEX_SPACE = re.compile(r"\\[,;:! ]|\{,\}")

NUMBER = (
    r"(?:[1-9]\d{0,2}(?:,\d{3})+(?![\d,])(?:\.\d+)?"  # 12,345.6
    r"|\d+(?:\.\d+)?"  # 12 or 12.5
    r"|\.\d+)"  # .5
)
# A sign may stand apart from its digits only where nothing else could own it.
_TOKEN = re.compile(
    rf"(?P<sign>[+-]|(?<![^$(])[+-]\s)?(?P<number>{NUMBER})(?P<slash>\s?/\s?(?P<under>\d+))?"
)
_INTEGER = re.compile(r"-?\d{1,18}", re.ASCII)
_DIGIT = re.compile(r"\d")
_NOT_ALONE = re.compile(
    r"\s*(?:%|\\%|percent\b|pct\b|\^(?!\\?\{?\\?circ)|[*/+]\s*[\d(])"
    r"|[_\\](?!circ|degree|text|mathrm|,| |\)|\])|[.,:-]\d|/"
)
_PLAIN = re.compile(rf"\s*(?P<sign>[+-]?)\s?(?P<number>{NUMBER})\s*\.?\s*")
_UNIT_AFTER = re.compile(r"(?:cm|mm|km|m|kg|g|ms|s|cubes?|items?)(?![A-Za-z0-9^])")
_WORD = re.compile(r"[A-Za-z]+")
_SIGN_WORD = rf"\b({'|'.join(_SIGNS)})\b"
# One sign word, perhaps after another ("plus or minus"), perhaps with a sign after it.
_SIGN_BEFORE = re.compile(
    rf"(?:{_SIGN_WORD}(?:[\s$(),/&-]|\b(?:or|and)\b)*)?{_SIGN_WORD}[\s$(]*([+-]?)[\s$(]*$",
    re.IGNORECASE,
)
_BOTH_SIGNS = re.compile(r"(?:[±∓]|\\pm|\\mp|\+\s?/?\s?-|-\s?/?\s?\+)[\s$({]*$")
# The sign of a number word: directly before it, or apart where nothing else could own it.
_SIGN_CHARACTERS = re.compile(r"[+-]+$|(?:^|[$(])\s*([+-])\s+$")
_HYPHEN = re.compile(r"(?<=[A-Za-z0-9])-$")


def fold(text: str) -> str:
    """Plain ASCII digits, minus signs, points and spaces for their typographic variants."""
    return text if text.isascii() else text.translate(_FOLD)


def unwrap(text: str) -> str:
    r"""Text without what wraps all of it: ``$..$``, ``\(..\)``, ``\boxed{}``, ``**`` and such."""
    text = text.strip()
    previous = None
    while previous != text and text[-1:] in _LAST_CHARS:
        previous = text
        text = _FINAL_POINT.sub("", text.strip())
        for opening, closing in _WRAPPERS:
            if (
                len(text) >= len(opening) + len(closing)
                and text.startswith(opening)
                and text.endswith(closing)
            ):
                inner = text[len(opening) : len(text) - len(closing)]
                if _is_whole(inner, opening, closing):
                    text = inner
    return text


_LAST_CHARS = frozenset('$)]}*`".')
_FINAL_POINT = re.compile(r"(?<=[$}\])*])\.$")
_WRAPPERS = (
    ("$$", "$$"),
    ("$", "$"),
    ("\\(", "\\)"),
    ("\\[", "\\]"),
    ("\\boxed{", "}"),
    ("\\fbox{", "}"),
    ("\\text{", "}"),
    ("\\textbf{", "}"),
    ("\\mathrm{", "}"),
    ("\\mathbf{", "}"),
    ("**", "**"),
    ("`", "`"),
    ('"', '"'),
)


def _is_whole(inner: str, opening: str, closing: str) -> bool:
    """Whether the wrapper around ``inner`` is one pair, not the ends of two."""
    if closing != "}":
        return closing not in inner and opening not in inner
    depth = 0
    for char in inner:
        depth += (char == "{") - (char == "}")
        if depth < 0:
            return False
    return depth == 0


def plain_number(text: str) -> Fraction | None:
    """The value of a text that is a number and nothing else, wrappers aside; else None."""
    text = _LATEX_SPACE.sub(lambda m: "," if m.group() == "{,}" else "", unwrap(fold(text)))
    if len(text) > MAX_DIGITS:
        return None
    match = _PLAIN.fullmatch(text)
    return _value(match) if match else None


def single_number(text: str) -> Fraction | None:
    """The one number of a short answer, e.g. ``5``, ``-5``, ``1,200``, ``twenty-one cubes``.

    None where there is no number, more than one, or one that is part of a larger thing (``2x``,
    ``A4``, ``50%``, ``5^2``, ``3rd``, ``two thirds``). Sign and decimals count; number and sign
    words (``minus 6``), thousands commas, simple fractions and surrounding words are understood.
    """
    if len(text) > 1_000:
        return None
    text = unwrap(fold(text)).replace("**", " ").strip()
    if _INTEGER.fullmatch(text):
        return Fraction(int(text))
    if "\\" in text or "{" in text:
        text = _LATEX_SPACE.sub(lambda m: "," if m.group() == "{,}" else " ", text)
    if not text.isascii() and any(c.isnumeric() and not ("0" <= c <= "9") for c in text):
        return None
    lower = text.lower()
    has_sign = any(hint in lower for hint in _SIGN_HINTS)
    found: list[Fraction] = []
    rest = []
    position = 0
    for match in _TOKEN.finditer(text):
        if not _stands_alone(text, match):
            return None
        value = _value(match)
        if value is None:
            return None
        if has_sign:
            sign = _said_sign(text[position : match.start()])
            if sign is None or (sign and match["sign"]):
                return None  # a sign too many
            value *= sign or 1
        found.append(value)
        rest.append(text[position : match.start()])
        position = match.end()
    rest.append(text[position:])
    if any(hint in lower for hint in _FRACTION_HINTS) and _FRACTION.search(text):
        return None
    if _DIGIT.search(" ".join(rest)):
        return None
    for piece in rest:
        spelled = _spelled(piece)
        if spelled is None:
            return None
        found.extend(spelled)
    return found[0] if len(found) == 1 else None


def _stands_alone(text: str, match: re.Match[str]) -> bool:
    before = text[match.start() - 1] if match.start() else " "
    after = text[match.end() :]
    if before.isalnum() or before in "._^%,/*+-\\" or (before == "=" and match["sign"] == "+"):
        return False
    if after[:1].isalpha():
        return bool(_UNIT_AFTER.match(after))
    return not _NOT_ALONE.match(after)


def _value(match: re.Match[str]) -> Fraction | None:
    number = match["number"].replace(",", "")
    if len(number) > MAX_DIGITS:
        return None
    # Fraction reads a decimal string exactly, but ten times slower than an int.
    value = Fraction(int(number)) if number.isdecimal() else Fraction(number)
    groups = match.groupdict()
    if groups.get("under"):
        if len(groups["under"]) > MAX_DIGITS or int(groups["under"]) == 0:
            return None
        value /= int(groups["under"])
    return -value if (match["sign"] or "").strip() == "-" else value


def _said_sign(before: str) -> int | None:
    """The sign that words give to the number after this text: 1, -1, 0 for none said.

    None where there is more than one sign, as in ``minus minus``, ``plus or minus`` and ``±``.
    """
    if _BOTH_SIGNS.search(before):
        return None
    sign = _SIGN_BEFORE.search(before)
    if not sign:
        return 0
    return None if sign[1] or sign[3] else _SIGNS[sign[2].lower()]


def _spelled_sign(before: str) -> int | None:
    """``_said_sign`` for a number word, whose sign may also be a character: ``-five``."""
    before = _HYPHEN.sub("", before)  # "negative-five", "question-five"
    said = _said_sign(before)
    character = _SIGN_CHARACTERS.search(before)
    if said or not character:
        return said
    signs = character[0].strip(" $(\n")
    return None if said is None or len(signs) > 1 else {"+": 1, "-": -1}[signs]


def _spelled(text: str) -> list[Fraction] | None:
    """Values of the number words in a text; ``two hundred and five`` is one of them.

    None where one of them has more than one sign.
    """
    matches = list(_WORD.finditer(text))
    words = [match.group().lower() for match in matches]
    values: list[Fraction] = []
    index = 0
    while index < len(words):
        if words[index] not in _WORDS:
            index += 1
            continue
        sign = _spelled_sign(text[: matches[index].start()])
        if sign is None:
            return None
        end = index
        while end < len(words) and (
            words[end] in _WORDS
            or (
                words[end] == "and"
                and end + 1 < len(words)
                and words[end - 1] in _SCALES
                and words[end + 1] in _WORDS
            )
        ):
            end += 1
        run = [word for word in words[index:end] if word != "and"]
        values.extend(Fraction((sign or 1) * value) for value in _read_words(run))
        index = end
    return values


def _read_words(words: list[str]) -> list[int]:
    """Values of consecutive number words; ``three four`` is two numbers."""
    numbers: list[int] = []
    total, part, last = 0, 0, 0  # finished thousands, the running part, size of the last word
    open_number = False
    for word in words:
        if word in _SCALES:
            scale = _SCALES[word]
            if scale == 100:
                part = (part or 1) * 100
            else:
                total, part = total + (part or 1) * scale, 0
            last, open_number = scale, True
            continue
        value = _UNITS.get(word, _TENS.get(word, 0))
        fits = (not open_number) or last >= 100 or (last >= 20 and 0 < value < 10)
        if not fits:
            numbers.append(total + part)
            total, part = 0, 0
        part, last, open_number = part + value, max(value, 1), True
    if open_number:
        numbers.append(total + part)
    return numbers
