r"""Multiple choice, "mcq": a commitment to one option, by letter or by text (section 4.1).

    answer   =  letters alone, of one option  |  a commitment (commitment.py) to an option
    option   =  letter, marks, its own text or nothing  |  the text of one option, its letter again
    letter   =  in brackets (C)  |  before a point C. C) C:  |  a capital before a mark or a verb
    mention  =  a letter that stands for an option: in brackets, before a point, a capital, or
                behind an option word ("or c")

Up to its reason an answer mentions no other option and quotes none. The article ``A``, the points
of a figure, what is in a formula, and the letters of an equation are no mentions.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType

from vlaa_jax.rewards.commitment import before_reason, commit
from vlaa_jax.rewards.extract import strip_answer_tags
from vlaa_jax.rewards.latex import same_shape
from vlaa_jax.rewards.reading import Reading, factors_between, read_answer
from vlaa_jax.rewards.text import plain
from vlaa_jax.rewards.units import UNIT
from vlaa_jax.rewards.verifier import RuleVerifier, Setup, Verifier

MAX_ANSWER = 2_000
"""Characters; a longer "choice" is an essay."""
VERBS = (
    "is|was|because|since|as|due|given|seems|matches|would|must|should|definitely|certainly|"
    "surely|obviously|clearly"
)
"""Words before which a bare capital is an option."""
OPTION_WORDS = (
    "or|nor|maybe|possibly|perhaps|either|option|choice|answer|both|all of|any of|each of"
)
"""Words behind which a small letter is one."""
FIGURES = (
    "point|points|angle|angles|line|side|sides|segment|vertex|arc|chord|circle|plane|triangle|"
    "center|centre|set|row|column|figure|vitamin|type|class|group|team"
)
"""Words behind which capitals name something else."""

_BARE = re.compile(r"(?:[#•*→>-]\s+|→)?[(\[{<]?\s*([A-Za-z])\s*[)\]}>]?\s*[.:,;]?")
_AND = r"(?:\W+|\s+(?:and|or|nor|then)\s+)"
_ONLY = re.compile(rf"\W*[A-Ha-h]{{1,8}}(?:{_AND}[A-Ha-h]{{1,8}})*(?:\W+(?:and|or|nor|then))*\W*")
"""Nothing but letters."""
_LEAD = re.compile(
    r"^(?:[A-Za-z]+\s+)*(?i:is|are|options?|choose|pick|select|answers?|choices?)\b(?=\W)"
)
_LETTER = re.compile(
    r"[(\[{]\s*([A-Za-z])\s*[)\]}]|([A-Za-z])\s*[).:](?=\W|[A-Z\d]|$)"
    rf"|([A-Z])(?=\s*(?:[,;!=(]|-\s|$|[\u4e00-\u9fff])|\s+(?i:{VERBS})\b)"
)
_ARTICLE = r"A(?=\s+[a-z]{2,}|\s+\d)(?!\s+(?:and|or|is|nor|not|then|maybe)\b)"
_MENTIONS = {
    # (C)  C)  c.  c:
    "marked": r"(?<![\w.'\\])[(\[{]?\s*([A-Ha-h])\s*[)\]}.:](?=\W|$)",
    # B, but not the article, and not in an equation unless marks follow it
    "capital": rf"(?<![A-Za-z0-9_'\\])(?!{_ARTICLE})([A-H])(?![A-Za-z0-9_'])"
    r"(?!\s*[=<>^+*/≤≥](?!.*[:)]\s))",
    # c or
    "offered": r"(?<![\w'\\])([a-h])(?=\s+n?or\s)",
    # or c
    "called": rf"(?:\b(?:{OPTION_WORDS})\b|^\s*[,;/|&-])\s*"
    r"([b-h](?![\w'’]|\s*[\^<>+*=≤≥≠])|a(?=\s*(?:[,;/|.]|$)))",
}
"""What stands for an option, by kind; the last only beside an option that was said."""
_CLEARLY = re.compile("|".join(list(_MENTIONS.values())[:-1]))
_MENTION = re.compile("|".join(_MENTIONS.values()))
_NO_MENTION = re.compile(
    rf"(?i:(?:{FIGURES}|∠|△|\\angle|\\triangle)\s*(?:[A-Z]\b(?:\s*(?:,|and|to|or)\s*)?)+)"
    r"|\b[a-zA-Z]+\([^()]{1,20}\)|[(\[](?=[^()\[\]]*[,+*^-])[^()\[\]:;]*[)\]]"
    r"|(?<![\w.])(?:e\.g|i\.e|a\.k\.a)\.(?!\w)"
)
"""Names of a figure, formulas, abbreviations."""
_MARKS = re.compile(r"(?:[\s.,:;=]|-(?!\d|\\|\.))*")
_VALUE = re.compile(r"[-+\d.($\\€£¥√π∠]|(?:sqrt|pi)\b|[a-z]\s*=|(?:minus|negative)\b")
_OPTION_LINE = re.compile(r"^\s*[(\[]?([A-Z])\s*[)\].:、]\s*(\S.*?)\s*$", re.MULTILINE)
_OPTION_INLINE = re.compile(r"(?:^|[\s,;])[(\[]?([A-Z])\s*[)\].:](?=\s|[^\sA-Za-z])")
_UNIT_FOLLOWS = re.compile(rf"\s*(?!in\s)(?:{UNIT.pattern})(?=\W|$)")
_AROUND_SIGN = re.compile(r"\s*([=<>≤≥+*/,])\s*")
_ENDS = re.compile(r"[.,;:](?=\s|$)|\s(?=[(\[])|\s(?=[a-z]{2,}\b)|\s-\s|\n")


def score_mcq(answer: str, gold: str, question: str = "") -> float:
    """1.0 when the answer commits to exactly the gold's option, else 0.0.

    Args:
        answer: extracted answer text.
        gold: a letter, with any tolerated spelling, or the text of a listed option.
        question: where it lists options, an option's text is as good as its letter.

    Raises:
        ValueError: the gold does not name one option of the question.
    """
    problem = mcq_gold_problem(gold, question)
    if problem:
        raise ValueError(problem)
    return float(chosen_letter(answer, listed_options(question)) == _target(gold, question))


@lru_cache(maxsize=4096)  # a gold is compared with a whole group of answers
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

    Accepts ``B``, ``b``, ``(B)``, ``B. text``, ``Option B``, ``The answer is (B)``, ``B is
    correct`` and the text of one option, also without its unit. A letter with the text of a
    different option is none.
    """
    if len(answer) > MAX_ANSWER:
        return None
    text = plain(answer).rstrip("!")
    bare = _BARE.fullmatch(text)
    if bare:  # "A" may itself be the text of an option ("B: A"); the letter then means the letter
        return bare[1].upper()
    chooser = _Chooser(options or {})
    named = _option_with(text, chooser.options)
    if named or _ONLY.fullmatch(text):
        return named
    said = _LEAD.sub("", text)
    if _ONLY.fullmatch(said) and len(_letters(said) - {"A"}) > 1:
        return _option_with(said.strip(" :."), chooser.options)
    return commit(text, chooser.read, chooser.rivals)


class _Chooser:
    """Reads options in an answer to one question."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self.options = options

    def read(self, text: str, start: int) -> Iterator[tuple[str, int]]:
        """Options that may be named at a place: by text, then by letter."""
        if self.options:
            yield from self._read_text(text, start)
        bare = _BARE.fullmatch(text, start)
        if bare and (start or bare[1].isupper()):
            yield bare[1].upper(), len(text)
        match = _LETTER.match(text, start)
        said = match[match.lastindex or 0] if match else text[start : start + 1]
        letter, end = said.upper(), match.end() if match else start + 1
        marks = _MARKS.match(text, end)
        rest = marks.end() if marks else end
        if self._is_own(letter, text[rest:]):
            if match or ("A" <= said <= "Z" and rest > end):  # "B 30°" needs no mark
                yield letter, len(text)
        elif match:
            own = self.options.get(letter, "").rstrip(".")
            if own and text[rest:].casefold().startswith(own.casefold()):
                end = rest = rest + len(own)
            if not self._contradicts(letter, text[end:]):
                yield letter, rest

    def rivals(self, text: str) -> bool:
        """Whether a piece of text names an option."""
        text = _NO_MENTION.sub(" ", text)
        return _CLEARLY.search(text) is not None or self._quotes_other(text, "")

    def _read_text(self, text: str, start: int) -> Iterator[tuple[str, int]]:
        ends = [match.start() for match in _ENDS.finditer(text, start + 1)]
        for end in [len(text), *reversed(ends[:8])]:
            named = _option_with(text[start:end], self.options)
            if named and not _UNIT_FOLLOWS.match(text, end):
                again = re.compile(rf"[\s,.]*(?:[(\[]\s*{named}\s*[)\]]|{named}(?=\W*$))")
                match = again.match(text, end)
                yield named, match.end() if match else end

    def _is_own(self, letter: str, said: str) -> bool:
        own = {name: text for name, text in self.options.items() if name == letter}
        return _option_with(said.strip(" .,:;()[]"), own) is not None

    def _contradicts(self, letter: str, rest: str) -> bool:
        """Whether what follows a letter names another option, by letter or by text."""
        named = _option_with(_MARKS.sub("", rest, count=1).strip("()[].,:; "), self.options)
        if named:
            return named != letter
        said = before_reason(rest)
        if _ONLY.fullmatch(said):
            return _letters(said) != {letter}
        found = _MENTION.finditer(_NO_MENTION.sub(" ", said))
        others = {match[match.lastindex or 0].upper() for match in found} - {letter}
        return bool(others) or self._quotes_other(said, letter)

    def _quotes_other(self, rest: str, letter: str) -> bool:
        said, own = _plain(rest), _plain(self.options.get(letter, ""))
        others = {_plain(text) for other, text in self.options.items() if other != letter} - {""}
        return any(
            re.search(rf"(?<![\w.-]){re.escape(text)}(?!\w)", said)
            for text in others
            if text not in own
        )


def _letters(text: str) -> set[str]:
    return set(re.findall("[A-H]", text.upper()))


@lru_cache(maxsize=4096)  # a question is asked of a whole group of answers
def listed_options(question: str) -> Mapping[str, str]:
    """Options listed in a question, as ``{"A": text, ...}``; empty when there is no list.

    Understands one option per line and options in a row, as ``A: x``, ``A. x``, ``A) x`` or
    ``(A) x``; the letters must run from A without a gap and be at least two.
    """
    by_line = _run_from_a([(match[1], match[2]) for match in _OPTION_LINE.finditer(question)])
    starts = list(_OPTION_INLINE.finditer(question))
    ends = [*(match.start() for match in starts[1:]), len(question)]
    pieces = [question[at.end() : end] for at, end in zip(starts, ends, strict=False)]
    texts = [piece.strip(" ,;\n") for piece in pieces]
    in_a_row = _run_from_a([(at[1], text) for at, text in zip(starts, texts, strict=True)])
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


def _option_with(text: str, options: Mapping[str, str]) -> str | None:
    """The one option whose text this is; the same text first, then the same value."""
    if not options or not text.strip():
        return None
    for alike in (_same_words, _same_value):
        found = [letter for letter, option in options.items() if alike(text, option)]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _same_words(left: str, right: str) -> bool:
    return bool(_plain(left)) and _plain(left) == _plain(right)


def _same_value(left: str, right: str) -> bool:
    """Two quantities of one value; the unit of the option may be left out."""
    said, ours = _quantity(left), _quantity(right)
    if said is None or ours is None or (said.nouns and not ours.nouns):
        return False
    if said.unit and not ours.unit:
        return False
    factors = factors_between(ours, said)[:1]
    if said.number is None or ours.number is None:
        return factors == [1] and same_shape(said.latex, ours.latex)
    return any(said.number * factor == ours.number for factor in factors)


@lru_cache(maxsize=8192)
def _quantity(text: str) -> Reading | None:
    text = plain(text)
    if len(text) > 60 or not re.search(r"\d", text) or not _VALUE.match(text):
        return None
    text = re.sub(r"\\[dt]?frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    return read_answer(re.sub(r"^[a-z]\s*=", "", text))


@lru_cache(maxsize=8192)
def _plain(text: str) -> str:
    """Option text for comparison: case, spaces, wrappers and a final point do not matter."""
    text = plain(text).replace("^\\circ", "°").replace("^{\\circ}", "°")
    return _AROUND_SIGN.sub(r"\1", " ".join(text.split())).rstrip(".").strip().casefold()


def make(setup: Setup) -> Verifier:
    """The verifier of multiple-choice questions."""
    return RuleVerifier(
        lambda request, answer: score_mcq(answer, request.gt, request.question),
        lambda request: mcq_gold_problem(request.gt, request.question),
    )
