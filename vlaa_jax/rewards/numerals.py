"""Numerals in figures and in words, English and Chinese, with every digit, sign and point."""

import re
from fractions import Fraction

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = {word: value for value, word in enumerate(_ONES.split())}
_SMALL |= {word: 10 * value for value, word in enumerate(_TENS.split(), start=2)} | {"fourty": 40}
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9, "dozen": 12}
_ZH_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_ZH_SCALES = {"十": 10, "百": 100, "千": 1_000, "万": 10_000, "亿": 10**8}

MAX_DIGITS = 40
"""Longer digit strings are not answers; the bound also keeps int() out of quadratic time."""
FIGURES = r"(?:[1-9]\d{0,2}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
"""``12,345.6``, ``12``, ``12.5`` or ``.5``."""
NUMBER_WORDS = "|".join(sorted(_SMALL.keys() | _SCALES.keys(), key=len, reverse=True))
_WORDS = rf"(?:{NUMBER_WORDS})(?:(?:[\s-]+|\s+and\s+)(?:{NUMBER_WORDS}))*"
_ZH = "(?!一[共样些定起直般边致旦切数下])[零〇一二两三四五六七八九十百千万亿]+"
_SIGN = r"(?:(?P<minus>(?:minus|negative)\b(?:-(?=[a-z])|[\s$(]*)|负|-\s*[$(]*(?=[\w.]))"
_SIGN += r"|(?:plus|positive)\b[\s$(]*|正(?=[\d零一-龥])|\+[$(]*)"
NUMERAL = re.compile(
    rf"{_SIGN}?(?:(?P<figures>{FIGURES})(?:\s?/\s?(?P<under>\d+)(?![\d.])"
    rf"|\s?(?:(?P<times>hundred|thousand|million|billion|dozen)\b|(?P<zh_times>[百千万亿])))?"
    rf"|\b(?P<words>(?:a\s+(?=hundred|thousand|million|dozen))?{_WORDS})\b"
    rf"|(?P<chinese>{_ZH}))",
    re.IGNORECASE,
)
ANY_NUMERAL = re.compile(rf"\d|\b(?:{NUMBER_WORDS})\b|{_ZH}", re.IGNORECASE)
"""What a text with a further number holds."""


def value_of(match: re.Match[str]) -> Fraction | None:
    """The value of a match of ``NUMERAL``; None where it is no number, as in ``three four``."""
    if match["figures"]:
        value = _figures(match["figures"], match["under"])
        scale = _SCALES.get((match["times"] or "").lower()) or _ZH_SCALES.get(match["zh_times"], 1)
        value = None if value is None else value * scale
    elif match["words"]:
        value = _english(match["words"].lower())
    else:
        value = _chinese(match["chinese"])
    return -value if value is not None and match["minus"] else value


def _figures(figures: str, under: str | None) -> Fraction | None:
    figures = figures.replace(",", "")
    if len(figures) > MAX_DIGITS or len(under or "") > MAX_DIGITS:
        return None
    # Fraction reads a decimal string exactly, but ten times slower than an int.
    value = Fraction(int(figures)) if figures.isdecimal() else Fraction(figures)
    if not under:
        return value
    return value / int(under) if int(under) else None


def _english(text: str) -> Fraction | None:
    """``two hundred and five``; None for two numbers in a row."""
    total, part, last = 0, 0, 10**12  # finished thousands, the running part, size of the last word
    for word in text.replace("-", " ").split():
        if word in ("and", "a"):
            continue
        if word in _SCALES:
            scale = _SCALES[word]
            if scale == 100:
                part = (part or 1) * 100
            else:
                total, part = total + (part or 1) * scale, 0
            last = scale
        elif last >= 100 or (20 <= last < 100 and 0 < _SMALL[word] < 10):
            part, last = part + _SMALL[word], max(_SMALL[word], 1)
        else:
            return None
    return Fraction(total + part)


def _chinese(text: str) -> Fraction | None:
    """``三十五``, ``两百零六``; None for digits in a row, which are no quantity."""
    total, part, digit = 0, 0, None
    for char in text:
        if char in _ZH_DIGITS:
            if digit:
                return None
            digit = _ZH_DIGITS[char]
        elif _ZH_SCALES[char] >= 10_000:
            total, part, digit = (total + part + (digit or 0)) * _ZH_SCALES[char], 0, None
        else:
            part, digit = part + (1 if digit is None else digit) * _ZH_SCALES[char], None
    return Fraction(total + part + (digit or 0))
