r"""What a maths text says, before any parser: a number, a letter, a literal word, or LaTeX.

The grammar of commitment finds the one expression; here its unit and the noun it counts are taken
off, and what is left is LaTeX or calculator spelling for the reader in the workers (latex.py).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from vlaa_jax.rewards.commitment import commit, leads, leaves_as_it_is
from vlaa_jax.rewards.commitment_words import HEDGES, RETRACTIONS
from vlaa_jax.rewards.latex import shape_of
from vlaa_jax.rewards.latex_tokens import BEYOND, WORDS
from vlaa_jax.rewards.numerals import NUMERAL, value_of
from vlaa_jax.rewards.text import LATEX_SPACE, brace_end, fold, unwrap
from vlaa_jax.rewards.trees import rational
from vlaa_jax.rewards.units import UNIT, Unit, read_unit

MAX_EXPRESSION = 1_000
"""Characters; a longer answer is no expression, and costs the parser more than it is worth."""

_LITERALS = {
    "yes": "yes", "no": "no", "true": "true", "false": "false", "undefined": "undefined",
    "no solution": "no solution", "no solutions": "no solution", "无解": "no solution",
    "no real solution": "no solution", "no real solutions": "no solution", "dne": "does not exist",
    "does not exist": "does not exist", "increasing": "increasing", "decreasing": "decreasing",
}  # fmt: skip
_LITERAL = re.compile(
    "(?:" + "|".join(sorted(_LITERALS, key=len, reverse=True)) + r")(?![A-Za-z'])", re.IGNORECASE
)
_NEGATIVE = frozenset({"no", "false", "no solution", "does not exist", "undefined"})
_UNSETTLED = re.compile(rf"\b(?:{HEDGES}|{RETRACTIONS}|or|but)\b|\?", re.IGNORECASE)
_NEGATED = re.compile(r"\b(?:not|never)\b|n't\b", re.IGNORECASE)

_KNOWN = frozenset(WORDS) - {"in", "cup"} | {"gamma", "inf", "mod", "lim", "det", "and", "or"}
"""Words that may stand in an expression."""
_KNOWN_WORD = re.compile("|".join(sorted(_KNOWN, key=len, reverse=True)))
_SMALL_WORDS = "is as at by in of on to an the are not but so we it if no yes my its for has was"
_SHORT_WORDS = frozenset(_SMALL_WORDS.split())
_COMMANDS = re.compile(
    r"\\(?:begin|end|operatorname\*?|overline|angle|triangle|vec|widehat)\s*\{[^{}]*\}|\\[A-Za-z]+"
)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_APART = "\x01"  # stands where \text{} began: what follows is set apart
_TEXT = re.compile(
    r"\\(?:text|textnormal|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|rm|mbox)\s*"
    r"\{\s*((?:[^{}]|\^\{-?\d\})*?)\s*\}"
)
_DEGREES = re.compile(
    r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z])|\{\s*o\s*\}|°)|\\degree(?![A-Za-z])"
)
_SIZED = re.compile(r"\\(?:left|right|big|Big)(?![A-Za-z])")
_OUTPUT = re.compile(r"^Output\s+\d+\s*:\s*")
_CURRENCY = re.compile(
    r"^(?P<sign>-?)\s*(?:US\s*)?(?P<unit>[$＄€£¥]|(?:USD|EUR|GBP|RMB|CNY)(?=\s))\s*(?=[\d.(])"
)
_JOINS = re.compile(r"\s*(?:,\s*(?:and|or)\b|[,;]|\band\b|\bor\b|[和或])\s*", re.IGNORECASE)
_ALTERNATIVES = re.compile(
    r"(?:(?!\band\b|[,;和]).)*[<>≤≥](?:(?!\band\b|[,;和]).)*\bor\b[^,;]*[<>≤≥][^,;]*"
)
_LOOSE = re.compile(r"^(?:and|or)\b|(?:\b(?:and|or)|[,;+*/=-]|, I)$")
_AGAIN = re.compile(r"\s*\$?\s*(?:≈|\\approx|\\simeq)\s*\$?-?[\d.,]*\d\s*(?:°|\s*[a-z]{1,3}\b)?\$?")
"""The value once more, rounded."""
_TIME = re.compile(r"(\d{1,2}):(00|\d\d(?=\s*[ap]))\s*(am|pm|a\.m|p\.m)?", re.IGNORECASE)
_ARC = re.compile(  # degrees, minutes, seconds
    r"\$?(\d{1,4})\s*(?:°|degrees?|度)\s*(\d{1,2}(?:\.\d{1,9})?)\s*(?:'|minutes?|分|\^\{?\\prime\}?)"
    r"(?:\s*(\d{1,2}(?:\.\d{1,9})?)\s*(?:''|\"|seconds?|秒|\^\{?\\prime\\prime\}?))?\$?"
)
_IN_WORDS = ("words", "chinese", "times", "zh_times", "minus")
"""Groups of a numeral that is more than figures."""
_PARTS = ["", "", "hal", "thi", "qua", "fif", "six", "sev", "eig", "nin", "ten"]
_PART = re.compile(
    r"(?:(?P<over>[a-z]+|\d+)[\s-]+)?(?P<part>hal(?:f|ves)|thirds?|quarters?|fifths?|sixths?"
    r"|sevenths?|eighths?|ninths?|tenths?)|(?P<zh_under>[百\d二三四五六七八九十]+)分之(?P<zh_over>[\d一-龥]+)",
    re.IGNORECASE,
)
_BRACKETED = re.compile(r"(?<=\d)\s*\(\s*([A-Za-z°²³/^Ω%\u4e00-\u9fff]{1,16})\s*\)$")
_ANGLE = re.compile(r"(?:sin|cos|tan|cot|sec|csc)(?:\^\{?\d\}?)?\s*\(?\s*[\d.]+\s*°\s*\)?$")
_UNIT_TAIL = re.compile(
    rf"(?<=[\d}}\])π²³!A-Za-z{_APART}])(?P<gap>\s*{_APART}\s*|\s*)(?P<unit>{UNIT.pattern})[\s.]*$"
)
_NOUNS = re.compile(
    rf"(?<=[\d}})π])[\s{_APART}]+(?P<nouns>(?!(?:and|or)\b)[A-Za-z]{{3,}}"
    rf"(?:[\s{_APART}]+[A-Za-z]+){{0,7}})[\s.]*$|(?<=[\d}})π])(?P<zh>[\u4e00-\u9fff]{{1,6}})[\s.]*$"
)
_ENDS = re.compile(
    r"\s*\$?\s*(?:≈|\\approx)|[.,;:!?](?=[\s\u4e00-\u9fff]|$)|\s(?=[A-Za-z]{2,}\b)|\s(?=\()|(?<![\u4e00-\u9fff])[\u4e00-\u9fff]|\n|\s-\s|(?<=\$)\s"
)
_GROUPED = re.compile(r"[+-]?\s*\d{1,3}(?: \d{3})+(?:\.\d+)?")
_SPACED = re.compile(r"(?<=\d) ")
_ZERO_COMMA = re.compile(r"^([+-]?\s*0),(\d+)$")
_COMMA = re.compile(r"([+-]?)(\d{1,30}),(\d{1,30})")
_RIVAL = re.compile(r"\d|\\(?:sqrt|frac|dfrac|pi|boxed)(?![A-Za-z])|[π√½]")
_LABELS = re.compile(r"_\s*\{?\d{1,3}\}?|(?:∠|\\angle|\bangle|△|Angle)\s*\d+")


@dataclass(frozen=True)
class Reading:
    """What the host makes of one text before any parser sees it."""

    latex: str = ""
    """The expression, without delimiters and unit."""
    number: Fraction | None = None
    literal: str | None = None
    letter: str | None = None
    unit: Unit | None = None
    nouns: frozenset[str] = frozenset()

    @property
    def has_pi(self) -> bool:
        """Whether a bare angle of this value is meant in radians."""
        return bool(re.search(r"\\pi(?![A-Za-z])|π|\bpi\b", self.latex))


def read_answer(text: str) -> Reading | None:
    """The one value that an answer commits to; None where there is none."""
    if len(text) > MAX_EXPRESSION:
        return None
    return _boxed(text) or commit(_prepared(text), _read, _names_value)


def _boxed(text: str) -> Reading | None:
    """The one box of a text that leads to it: whatever was said before, it is the answer."""
    if text.count("\\boxed") != 1:
        return None
    start = text.index("\\boxed")
    inside = text.find("{", start) + 1
    end = brace_end(text, inside)
    if end < 0 or text[start + 6 : inside - 1].strip():
        return None
    lead = fold(text[:start]).rstrip("$ \n([\\")
    tail = fold(text[end + 1 :]).strip("$ \n)]\\")
    if not lead or not leads(lead) or not leaves_as_it_is(tail, _names_value):
        return None
    return _value(_prepared(text[inside:end]))


def read_gold(text: str) -> Reading | None:
    """The value of a gold; None where it is no mathematics. A capital letter is an option."""
    core = unwrap(fold(_OUTPUT.sub("", text.strip())))
    if not core or len(core) > MAX_EXPRESSION:
        return None
    if re.fullmatch(r"\(?[A-Z]\)?\.?", core):
        return Reading(letter=core.strip("()."))
    prepared = _prepared(text)
    whole = _value(prepared)
    if whole is not None and not (whole.number is not None and not re.search(r"\d", prepared)):
        return whole
    if not re.search(r"[\d$\\=]", prepared) and not _LITERAL.match(prepared):
        return None  # words
    return commit(prepared, _read, _names_value)


def with_decimal_comma(text: str) -> Fraction | None:
    """``1000,99`` as a decimal; only asked for where the gold is one number, not a list."""
    match = _COMMA.fullmatch(unwrap(fold(text)).strip())
    return Fraction(f"{match[1]}{match[2]}.{match[3]}") if match else None


def _exact(text: str) -> Fraction | None:
    """Value of a text that is one number: figures, thousands, a simple or mixed fraction."""
    text = _SPACED.sub("", text) if _GROUPED.fullmatch(text) else _ZERO_COMMA.sub(r"\1.\2", text)
    shape = shape_of(text) if len(text) <= 60 else None
    return rational(shape.parts[0]) if shape is not None and shape.kind == "expr" else None


def factors_between(gold: Reading, answer: Reading) -> list[Fraction]:
    """Factors by which an answer's value may be multiplied to be the gold's; none: units differ."""
    ours, said = gold.unit, answer.unit
    if gold.nouns and answer.nouns and not gold.nouns & answer.nouns:
        return []
    if (ours and ours.dimension and answer.nouns) or (said and said.dimension and gold.nouns):
        return []
    if ours and said:
        if ours.is_percent != said.is_percent or ours.dimension != said.dimension:
            return []
        return [said.scale / ours.scale]
    if ours and ours.is_percent:
        return [Fraction(1), Fraction(100)]
    if said and said.is_percent:
        return [Fraction(1), Fraction(1, 100)]
    if ours and ours.is_angle and answer.has_pi and not gold.has_pi:
        return [1 / ours.scale]
    if said and said.is_angle and gold.has_pi:
        return [said.scale]
    return [Fraction(1)]


def _prepared(text: str) -> str:
    """One kind of delimiter and of degree sign, and ``\\text`` as words that are set apart."""
    text = unwrap(fold(_OUTPUT.sub("", text.strip())))
    if "\\" in text or "~" in text:
        text = text.replace("\\$", "＄")  # dollars, not a delimiter
        text = re.sub(r"\\[(\[]|\\[)\]]|\${2}", "$", _SIZED.sub("", text))
        text = _unboxed(text)
        text = re.sub(r"\\!\s*", "", text)
        text = _DEGREES.sub("°", LATEX_SPACE.sub(" ", text)).replace("\\%", "%").replace("{,}", ",")
        text = _TEXT.sub(lambda match: f" {_APART}{match[1]} ", text)
    else:
        text = text.replace("$$", "$")
    text = re.sub(rf"°\s*{_APART}?\s*([CF])(?![A-Za-z])", r" deg\1 ", text)
    text = re.sub(r"(?<=\d)\s*[xX]\s*(?=10\s*[\^⁰¹²³⁴-⁹⁻])", r"\\times ", text)
    return text.replace("**", "").strip() if not re.search(r"\w\*\*\s*[\w(-]", text) else text


def _unboxed(text: str) -> str:
    r"""Boxes as delimiters: ``\boxed{6}`` is ``$6$``, and inside of delimiters just ``6``."""
    while match := re.search(r"\\(?:boxed|fbox)\s*\{", text):
        end = brace_end(text, match.end())
        if end < 0:
            return text
        inside = text[: match.start()].count("$") % 2
        content = unwrap(text[match.end() : end])
        mark = "" if inside else "$"
        text = f"{text[: match.start()]}{mark}{content.replace('$', '')}{mark}{text[end + 1 :]}"
    return text


def _read(text: str, start: int) -> Iterator[tuple[Reading, int]]:
    literal = _LITERAL.match(text, start)
    if literal:
        value = _LITERALS[literal[0].lower()]
        if _stands(value, text[literal.end() :]):
            yield Reading(literal=value), len(text)
        return
    ends = [match.start() for match in _ENDS.finditer(text, start + 1)]
    for end in [len(text), *reversed(ends[:12])]:
        reading = _value(text[start:end])
        if reading is not None and _is_known(reading):
            again = _AGAIN.match(text, end) if _RIVAL.search(reading.latex) else None
            yield reading, again.end() if again else end


def _is_known(reading: Reading) -> bool:
    """Whether a reading is decided, is understood, or goes to Math-Verify."""
    if reading.number is not None or reading.literal is not None:
        return True
    return BEYOND.search(reading.latex) is not None or shape_of(reading.latex) is not None


def _stands(value: str, tail: str) -> bool:
    """Whether a sentence after a literal answer is in keeping with it."""
    denied = value not in _NEGATIVE and _NEGATED.search(tail)
    if denied or _names_value(tail) or _UNSETTLED.search(tail):
        return False
    others = {_LITERALS[said.lower()] for said in _LITERAL.findall(tail)} - {value}
    return not others & {"yes", "no", "true", "false"}


def _value(text: str) -> Reading | None:
    """A text that is one value with its unit and nothing else."""
    text = text.strip().rstrip(".").strip()
    if time := _TIME.fullmatch(text):
        return Reading(literal=f"{int(time[1])}:{time[2]}{(time[3] or '')[:1].lower()}")
    if arc := _ARC.fullmatch(text):
        degrees = sum(Fraction(part or 0) / 60**i for i, part in enumerate(arc.groups()))
        return Reading(str(degrees), Fraction(degrees), unit=read_unit("°"))
    if not text or text.startswith("=") or "≈" in text or "\\approx" in text or _LOOSE.search(text):
        return None
    if text.rstrip().endswith("\\"):
        text = text.rstrip("\\ ")
    currency = _CURRENCY.match(text)
    if currency and text.count("$") <= 1:
        unit, text = currency["unit"].replace("＄", "$"), currency["sign"] + text[currency.end() :]
        reading = _value(text)
        return reading and (reading if reading.unit else replace(reading, unit=read_unit(unit)))
    if text.count("$") == 1:
        text = text.strip("$").strip()
    if "$" in text:
        pieces = text.split("$")
        joints = [piece.strip(" \x01") for piece in pieces[2:-1:2]]
        if len(pieces) % 2 == 0 or not all(joints):  # side by side
            return None
        text = " ".join(pieces).strip()
    if part := _PART.fullmatch(text):
        return _part(part)
    numeral = NUMERAL.fullmatch(text)
    if numeral and any(map(numeral.group, _IN_WORDS)):
        number = value_of(numeral)
        return None if number is None else Reading(str(number), number)
    head, unit, nouns = _split_unit(text)
    head = head.replace(_APART, " ").strip()
    if not head or _is_prose(head):
        return None
    joint = " \\cup " if _ALTERNATIVES.fullmatch(head) else ", "
    head = _JOINS.sub(lambda match: match[0] if match[0].strip() in ",;" else joint, head)
    numeral = NUMERAL.fullmatch(head)
    number = value_of(numeral) if numeral and not numeral["under"] else _exact(head)
    return Reading(head, number, unit=unit, nouns=nouns)


def _part(match: re.Match[str]) -> Reading | None:
    """``three quarters`` and ``四分之三``."""
    under = str(_PARTS.index(match["part"].lower()[:3])) if match["part"] else match["zh_under"]
    said = (match["over"] or match["zh_over"] or "one", under)
    numerals = [NUMERAL.fullmatch(text) for text in said]
    over, by = (value_of(numeral) if numeral else None for numeral in numerals)
    return Reading(str(over / by), over / by) if over is not None and by else None


def _split_unit(text: str) -> tuple[str, Unit | None, frozenset[str]]:
    if _ANGLE.search(text):  # the degrees of an argument
        return text, None, frozenset()
    bracketed = _BRACKETED.search(text)
    if bracketed and read_unit(bracketed[1]):
        text = f"{text[: bracketed.start()]} {_APART}{bracketed[1]}"
    if match := _UNIT_TAIL.search(text):
        head, gap, name = text[: match.start()], match["gap"], match["unit"]
        if head and _is_set_apart(head, gap, name) and (unit := read_unit(name)):
            return head, unit, frozenset()
    if match := _NOUNS.search(text):
        head, tail = text[: match.start()], " " + match[0].replace(_APART, "")
        words = (match["nouns"] or "").replace(_APART, " ").lower().split()
        joins = _KNOWN.intersection(words) or (match["zh"] or "").startswith(("和", "或"))
        if head and not joins and leaves_as_it_is(tail, _names_value):
            return head, None, frozenset(word.rstrip("s") for word in words if len(word) > 3)
    return text, None, frozenset()


def _is_set_apart(head: str, gap: str, unit: str) -> bool:
    if _APART in gap or head.endswith(_APART) or not re.match(r"[A-Za-z]", unit):
        return True
    bare = re.sub(r"\\[A-Za-z]+|(?<=\d)[eE](?=[-+]?\d)", " ", head)
    single = re.match(r"[A-Za-z](?![A-Za-z])", unit)
    if single and re.search("[A-Za-z]", bare):
        return False
    touches = head[-1:].isdigit() and (not single or re.search(r"/|\bper\b", unit))
    return bool(touches or (gap and head[-1:] in "0123456789})]π²³"))


def _is_prose(text: str) -> bool:
    """Whether a text has words that are no function, product of letters or LaTeX command."""
    for match in _WORD.finditer(_COMMANDS.sub(" ", text)):
        word = match[0].casefold()
        if word not in _KNOWN and (
            len(word) > 3 or (word in _SHORT_WORDS and not match[0].isupper())
        ):
            rest = _KNOWN_WORD.sub(" ", match[0])
            if any(len(piece) > 1 for piece in rest.split()) or rest == match[0]:
                return True
    return bool(re.search(r"[\u4e00-\u9fff#@?]", text))


def _names_value(text: str) -> bool:
    return _RIVAL.search(_LABELS.sub("", text)) is not None
