"""Multiple choice: exactly one option letter, or the text of exactly one listed option."""

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from vlaa_jax.rewards.extract import strip_answer_tags
from vlaa_jax.rewards.numbers import fold, unwrap

MAX_ANSWER = 2_000
"""Characters; a longer "choice" is an essay."""

_BARE = re.compile(r"[(\[{]?\s*([A-Za-z])\s*[)\]}]?\s*[.:,;]?")
_LETTER_TEXT = re.compile(
    r"(?:[(\[{]\s*([A-Za-z])\s*[)\]}]\s*[.:,-]?|([A-Za-z])\s*[).:]|([A-Z])\s+[-=]\s)\s*(\S.*)",
    re.DOTALL,
)
_LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore)\s*,?\s+)?"
    r"(?:(?:the|my|our)\s+)?(?:(?:final|correct|right|best|most\s+likely)\s+)*"
    r"(?:answer|option|choice|selection|response)\s*"
    r"(?:(?:is|would\s+be|should\s+be|must\s+be)\s*)?[:=]?\s*(?:(?:option|choice|letter)\s+)?"
    r"|(?:i\s+(?:choose|pick|select)|choose|select|pick)\s+(?:(?:option|choice|letter)\s+)?"
    r"|it\s+is\s+",
    re.IGNORECASE,
)
_TRAIL = re.compile(
    r"[(\[]?([A-Z])[)\]]?\s+is\s+(?:the\s+)?(?:(?:correct|right|best|final)\s*)*"
    r"(?:answer|option|choice)?\s*\.?",
)
# A second option named after the first: "B or C", "B, C", "B: 3, C: 4", "(A) 3 (B) 4".
_ANOTHER = re.compile(
    r"(?:\b(?i:or|and|not|nor|maybe|possibly|perhaps|either|also|both|option|choice|answer)\b"
    r"(?:\s+(?:is|be|option|choice))*|[,;/|&+>])"
    r"\s*[(\[]?([A-Z])[)\]]?(?=\W|$)(?!['’])"
    r"|[(\[]\s*([A-Z])\s*[)\]]|(?:^|\s)([A-Z])\s*[:)](?=\W|$)|(?:^|\s)([A-Z])\.\s+\S"
)
_STYLED = re.compile(r"\\text\{([^{}]*)\}|\*\*([^*]*)\*\*")
_STANDALONE = re.compile(r"(?<![\w\\])([A-H])(?![\w'’])")
# A lower-case letter that stands alone: not the article ("a dog", "a 45 degree angle"), and not a
# variable of a formula ("c = 5", "b > 0", "a^2 + b^2") or a function.
_JOINING = "and|are|choice|is|maybe|nor|not|option|or|perhaps|possibly|then"
_A = rf"a(?!\s+(?:(?!(?:{_JOINING})\b)[^\W_]{{2,}}|\d))"
_SMALL = rf"(?:[b-e]|[f-h](?!\()|{_A})(?![\w'’]|\s*(?:=\s*[-\d.\\]|[\^<>+*≤≥≠]|=\s*[a-z(]))"
_IN_FORMULA = r"(?<![\w\\∠△])(?<![\^<>=+*≤≥≠-])(?<![\^<>=+*≤≥≠-]\s)"
# One that looks like an option beside a capital as well: marked, in the first place, or offered.
_MARKED = (
    rf"(?:^|(?<=[\s,;/|&])){_SMALL}(?=\s*[:)\]}}]|\.\s+\S)"
    rf"|(?<![\w\\])[(\[{{]\s*{_SMALL}(?=\s*[)\]}}])"
)
_OFFERED = rf"^{_SMALL}|\b(?i:or|nor|maybe|possibly|perhaps|either|option|choice|answer)\s+{_SMALL}"
# Brackets around a formula, and arguments: "(a, b)", "(c - d)", "f(a)". "(or c)" has a word.
_FORMULA = (
    r"\b(?:[A-Za-z]|sin|cos|tan|log|ln)\(\s*\w\s*\)"
    r"|[(\[](?!\s*[a-h]\s*[)\]])(?:(?![A-Za-z]{2})[^()\[\]:;])*[)\]]"
)
_SMALL_ALONE = re.compile(rf"(?P<formula>{_FORMULA})|{_MARKED}|{_IN_FORMULA}{_SMALL}")
_SMALL_MARKED = re.compile(rf"(?P<formula>{_FORMULA})|{_MARKED}|{_OFFERED}")
_SMALL_LISTED = re.compile(rf"(?P<formula>{_FORMULA})|{_MARKED}")
_ABBREVIATION = re.compile(r"(?<![\w.])(?:e\.g|i\.e|a\.k\.a)\.(?!\w)", re.IGNORECASE)
_ALONE = re.compile(r"\b[A-H]\b")
_CAPITALS = re.compile(r"(?<!\w)[A-H]{1,8}(?!\w)")
_SMALL_RUN = re.compile(r"(?<!\w)[A-Ha-h]{1,8}(?!\w)")
# A rest of nothing but letters, runs of letters and what stands between them.
_ONLY_LETTERS = re.compile(
    rf"(?:(?<!\w)(?:[A-Ha-h]{{1,8}}|{_JOINING}|either|both|also)(?!\w)|[\s,;:./|&=()\[\]{{}}-])+"
)
_CHAIN = re.compile(
    r"(?<![\w\\])[a-h](?:\s*(?:[,;/|&]|,?\s*\b(?:and|or|nor)\b)\s*[a-h](?!\w)){2,}(?!\s*[\^<>=+*≤≥≠])"
)
_OPTION_LINE = re.compile(r"^\s*[(\[]?([A-Z])\s*[)\].:、]\s*(\S.*?)\s*$", re.MULTILINE)
_OPTION_INLINE = re.compile(r"(?:^|[\s,;])[(\[]?([A-Z])\s*[)\].:](?=\s|[^\sA-Za-z])")


def score_mcq(answer: str, gold: str, question: str = "") -> float:
    """1.0 when the answer chooses exactly the gold's option, else 0.0.

    Args:
        answer: extracted answer text.
        gold: a letter, with any tolerated spelling, or the text of a listed option.
        question: where it lists options, an option's text is as good as its letter.

    Raises:
        ValueError: the gold does not name one option.
    """
    options = listed_options(question)
    target = _target(gold, question)
    if target is None:
        raise ValueError(mcq_gold_problem(gold, question) or "the gold names no option")
    return float(chosen_letter(answer, options) == target)


def mcq_gold_problem(gold: str, question: str = "") -> str | None:
    """Why no answer can be compared with this gold; None when all is well."""
    options = listed_options(question)
    letter = _target(gold, question)
    if letter is None:
        return f"gold {gold[:60]!r} does not name exactly one option"
    if options and letter not in options:
        return f"gold option {letter} is not among the listed {', '.join(options)}"
    return None


def chosen_letter(answer: str, options: Mapping[str, str] | None = None) -> str | None:
    """The one option an answer commits to, upper-case; None when none or several.

    Accepts ``B``, ``b``, ``(B)``, ``B.``, ``B: text``, ``(B) text``, ``Option B``, ``The answer is
    (B)``, ``B is correct`` and the exact text of one option. Several letters give None, and so does
    a letter with the text of a different option.
    """
    options = options or {}
    if len(answer) > MAX_ANSWER:
        return None
    text = _tidy(answer)
    by_text = _option_with_text(text, options)
    # "A" may itself be the text of an option ("B: A"); the letter then still means the letter.
    match = _BARE.fullmatch(text)
    if match:
        return match[1].upper()
    if by_text:
        return by_text
    match = _TRAIL.fullmatch(text)
    if match:
        return match[1]
    lead = _LEAD.match(text)
    if lead and lead.end() < len(text):
        return _leading_letter(_tidy(text[lead.end() :]), options, stated=True)
    return _leading_letter(text, options)


@lru_cache(maxsize=4096)  # a question is asked of a whole group of answers
def listed_options(question: str) -> Mapping[str, str]:
    """Options listed in a question, as ``{"A": text, ...}``; empty when there is no list.

    Understands one option per line and options in a row, as ``A: x``, ``A. x``, ``A) x`` or
    ``(A) x``; the letters must run from A without a gap and be at least two.
    """
    by_line = _run_from_a([(match[1], match[2]) for match in _OPTION_LINE.finditer(question)])
    starts = list(_OPTION_INLINE.finditer(question))
    pieces = [
        (match[1], question[match.end() : after.start() if after else len(question)].strip(" ,;\n"))
        for match, after in zip(starts, [*starts[1:], None], strict=False)
    ]
    in_a_row = _run_from_a(pieces)
    return MappingProxyType(by_line if len(by_line) >= len(in_a_row) else in_a_row)


@lru_cache(maxsize=4096)
def _target(gold: str, question: str) -> str | None:
    return chosen_letter(strip_answer_tags(gold), listed_options(question))


def _run_from_a(pieces: list[tuple[str, str]]) -> dict[str, str]:
    """The last run A, B, C, ... in a list of (letter, text)."""
    best: dict[str, str] = {}
    run: dict[str, str] = {}
    for letter, text in pieces:
        if letter == "A":
            run = {"A": text}
        elif run and letter == chr(ord("A") + len(run)):
            run[letter] = text
        if len(run) >= 2:
            best = run
    return best


def _leading_letter(text: str, options: Mapping[str, str], stated: bool = False) -> str | None:
    match = _BARE.fullmatch(text)
    if match:
        return match[1].upper()
    match = _LETTER_TEXT.fullmatch(text)
    if not match:
        return _option_with_text(text, options) if stated else None
    letter = (match[1] or match[2] or match[3]).upper()
    rest = match[4].strip()
    named = _option_with_text(rest, options)
    if named:
        return letter if named == letter or _same(rest, options.get(letter, "")) else None
    rest = _ABBREVIATION.sub(" ", rest).strip()
    if _names_all(rest, letter, options):
        return None
    # Small letters are options where the first one is small; beside a capital they are names of
    # sides and the like, unless they look like options.
    is_small = (match[1] or match[2] or match[3]).islower()
    rest = _raised(rest, _SMALL_ALONE if is_small else _SMALL_MARKED)
    others = {group for found in _ANOTHER.finditer(rest) for group in found.groups() if group}
    if others - {letter}:
        return None
    # "A: B" and "A: B C D": letters where the option's text should be, or several strewn in it.
    strewn = set(_STANDALONE.findall(rest)) - {letter}
    if len(strewn) > 1 or (strewn and _STANDALONE.match(rest)):
        return None
    # Nor may the explanation quote another option in full, next to or instead of its own.
    if _quotes_other(rest, letter, options):
        return None
    return letter


def _raised(text: str, pattern: re.Pattern[str]) -> str:
    return pattern.sub(lambda match: match[0] if match["formula"] else match[0].upper(), text)


def _names_all(rest: str, letter: str, options: Mapping[str, str]) -> bool:
    """Whether every option's letter is there, apart or in runs (``BCD``).

    Small letters count where they are marked (``b)``), where they are listed in full (``a, b, c,
    d``), and where nothing else follows the answer; elsewhere they are the names of variables.
    """
    every = set(options) or set("ABCD")
    if _ONLY_LETTERS.fullmatch(rest):
        runs = _SMALL_RUN.findall(rest)
        lists = [run.upper() for run in runs if run.isupper() or set(run.upper()) <= every]
        named = set().union(*lists)
    else:
        named = set().union(*_CAPITALS.findall(_raised(rest, _SMALL_LISTED)))
        if any(every <= set(_ALONE.findall(chain.upper())) for chain in _CHAIN.findall(rest)):
            return True
    return every <= named | {letter}


def _quotes_other(rest: str, letter: str, options: Mapping[str, str]) -> bool:
    said = _plain(rest)
    own = _plain(options.get(letter, ""))
    for other, text in options.items():
        text = _plain(text)
        if other == letter or not text or text in own:
            continue
        if re.search(rf"(?<!\w){re.escape(text)}(?!\w)", said):
            return True
    return False


def _option_with_text(text: str, options: Mapping[str, str]) -> str | None:
    matches = [letter for letter, option in options.items() if _same(text, option)]
    return matches[0] if len(matches) == 1 else None


def _same(left: str, right: str) -> bool:
    return bool(_plain(left)) and _plain(left) == _plain(right)


@lru_cache(maxsize=8192)
def _plain(text: str) -> str:
    """Option text for comparison: case, spaces, wrappers and a final point do not matter."""
    text = unwrap(fold(text)).replace("^\\circ", "°").replace("^{\\circ}", "°")
    return " ".join(text.split()).rstrip(".").strip().casefold()


def _tidy(text: str) -> str:
    text = unwrap(fold(text))
    if "\\" in text or "*" in text:
        text = _STYLED.sub(lambda m: m[1] or m[2] or "", text)
    return " ".join(text.split()).strip("$").strip()
