r"""The grammar of commitment: when a short answer says exactly one value, and stands by it.

    answer  =  lead  value  tail
    lead    =  nothing, or words that end in a CONNECTOR and QUALIFIERS: "The area is exactly"
    value   =  what a verifier reads: a number, a letter, an expression, boxes
    tail    =  nothing, or words that leave the value as it is: ", since AB = AC"

A lead or tail that denies (``not 14``), hedges (``maybe``, a second value), takes back
(``14, wait, 15``), bounds (``at least``) or scales (``14 dozen``, ``half of 14``) leaves no
commitment. Between connector and value only qualifiers may stand, so that whatever changes a value
from the left (``twice``, ``minus``, ``other than``, ``one over``) needs no list. Behind a REASON
word values may be named, since they explain the one that was said.

The words are tables (commitment_words.py); docs/rewards.md shows them by example. Text comes
folded (text.py).
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from vlaa_jax.rewards import commitment_words as w

V = TypeVar("V")
MAX_STARTS = 40
"""Places tried, the last ones; a short answer has a handful of connectors."""
Reader = Callable[[str, int], Iterable[tuple[V, int]]]
"""Values that may begin at a place of a text, each with its end, likeliest first."""


def _any(*tables: str) -> str:
    """A pattern of the phrases of some tables; spaces match any white space."""
    phrases = [phrase for table in tables for phrase in table.split("|")]
    phrases.sort(key=len, reverse=True)
    return "(?:" + "|".join(phrase.replace(" ", r"\s+") for phrase in phrases) + ")"


def _words(*tables: str) -> str:
    return rf"\b{_any(*tables)}\b"


_MARKS = (
    r"(?<![!<>])[:=≈~]|\\(?:approx|implies|Rightarrow|therefore)(?![A-Za-z])|(?<![\d.,])[.,;!](?=\s)"
    r"|[;!](?=\s)|\n|(?<=[\w)]\s)-\s|(?<=\w)[.,](?=\s)"
)
_QUALIFIER = rf"{_words(w.QUALIFIERS)}|{_any(w.ZH_QUALIFIERS)}|[=:≈~#]|\\approx(?![A-Za-z])"
_BULLET = r"^[\s#•*→✓✔✅☑\U0001f300-\U0001faff]*"
_START = re.compile(
    rf"(?:{_BULLET}|{_words(w.CONNECTORS, w.CONCLUSIONS)}|{_any(w.ZH_CONNECTORS)}|{_MARKS})"
    rf"(?:[\s,:]*(?:-\s+)?(?:{_QUALIFIER}))*[\s,:]*(?:(?<!^)-\s+)?",
    re.IGNORECASE,
)
_LEAD_BAD = re.compile(
    rf"{_words(w.DENIALS, w.HEDGES, w.RETRACTIONS)}|n't\b|\?"
    rf"|{_any(w.ZH_DENIALS, w.ZH_HEDGES, w.ZH_RETRACTIONS)}",
    re.IGNORECASE,
)
_TAIL_BAD = re.compile(
    rf"{_LEAD_BAD.pattern}|{_words(w.TAIL_DENIALS, w.TAIL_HEDGES, w.TAIL_RETRACTIONS, w.BOUNDS)}"
    r"|[±]|\\pm(?![A-Za-z])"
    rf"|{_any(w.ZH_TAIL_DENIALS, w.ZH_TAIL_HEDGES, w.ZH_TAIL_RETRACTIONS, w.ZH_BOUNDS)}",
    re.IGNORECASE,
)
_RETRACTED = re.compile(
    rf"{_words(w.RETRACTIONS, 'actually|no, it')}|\?|{_any(w.ZH_RETRACTIONS, '其实')}",
    re.IGNORECASE,
)
_SCALED = re.compile(
    rf"[\s$)-]*(?:{_words(w.SCALES)}|{_any(w.ZH_SCALES)}|[\^_*/+!%²³×÷√\\]|-\s*(?:[\d(]|$))",
    re.IGNORECASE,
)
_BOUNDED = re.compile(  # "less than or equal to", and no value yet
    r"\b(?:than|most|least)(?:\s+or)?(?:\s+equals?)?(?:\s+to)?[\s:]*$", re.IGNORECASE
)
_REASON = re.compile(rf"{_words(w.REASONS)}|{_any(w.ZH_REASONS)}", re.IGNORECASE)
_CLAIM = re.compile(rf"{_words(w.CLAIMS)}|{_any(w.ZH_CLAIMS)}", re.IGNORECASE)
_STRONG = re.compile(
    rf"(?:{_words(w.CONCLUSIONS, w.CLAIMS)}|{_any(w.ZH_CONCLUSIONS)}"
    r"|\\(?:therefore|implies)(?![A-Za-z]))(?!.*\n)",
    re.IGNORECASE,
)


def commit(text: str, read: Reader[V], rivals: Callable[[str], bool]) -> V | None:
    """The one value that a text commits to; None where there is none.

    Args:
        text: folded, without outer wrappers.
        read: finds values at a place.
        rivals: whether a piece of text names a further value.
    """
    for start in list(_starts(text))[-MAX_STARTS:]:
        lead = text[:start]
        if _LEAD_BAD.search(lead):
            return None
        if not _concludes(lead, rivals):
            continue
        for value, end in read(text, start):
            if leaves_as_it_is(text[end:], rivals):
                return value
    return None


def leaves_as_it_is(tail: str, rivals: Callable[[str], bool]) -> bool:
    """Whether what follows a value neither changes it nor casts doubt on it."""
    if not tail.strip(" .!;,:)"):
        return not _SCALED.match(tail)
    if _SCALED.match(tail):
        return False
    said = before_reason(tail)
    if _TAIL_BAD.search(said) or rivals(said):
        return False
    rest = tail[len(said) :]
    return not (_RETRACTED.search(rest) or (_CLAIM.search(rest) and rivals(rest)))


def before_reason(tail: str) -> str:
    """What follows a value, up to the explanation."""
    reason = _REASON.search(tail)
    return tail[: reason.start()] if reason else tail


def leads(lead: str) -> bool:
    """Whether words end in a connector and deny nothing, so that a marked value may follow."""
    return not _LEAD_BAD.search(lead) and any(start == len(lead) for start in _starts(lead))


def stands_around(lead: str, tail: str) -> bool:
    """Whether the words before and after values that were found by other means commit to them."""
    lead_is_bad = _LEAD_BAD.search(lead) or _BOUNDED.search(lead)
    return not lead_is_bad and leaves_as_it_is(tail, lambda piece: False)


def _starts(text: str) -> Iterator[int]:
    """Where a value may begin, from the left."""
    last = -1
    for match in _START.finditer(text):
        if match.end() != last:
            last = match.end()
            yield last


def _concludes(lead: str, rivals: Callable[[str], bool]) -> bool:
    """Whether a lead may be followed by the value: it names no other, unless it concludes."""
    if _BOUNDED.search(lead):
        return False
    if not rivals(lead):
        return True
    strong = max((match.start() for match in _STRONG.finditer(lead)), default=None)
    if strong is None or rivals(lead[strong:]):
        return False
    before = lead[:strong]
    return not (_TAIL_BAD.search(before) or _CLAIM.search(before))
