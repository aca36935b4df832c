"""Counting questions, "digit": the one number of the answer equals the gold's (section 4.1)."""

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

from vlaa_jax.rewards.commitment import commit, leaves_as_it_is
from vlaa_jax.rewards.extract import strip_answer_tags
from vlaa_jax.rewards.numerals import ANY_NUMERAL, NUMERAL, value_of
from vlaa_jax.rewards.text import plain
from vlaa_jax.rewards.verifier import RuleVerifier, Setup, Verifier

MAX_ANSWER = 1_000
"""Characters; a longer count is an essay."""

_INTEGER = re.compile(r"-?\d{1,18}", re.ASCII)
_APART = re.compile(r"^-\s+(?=\w)")
_SAME = re.compile(r"\s*[(\[]\s*([^()\[\]]{1,40})\s*[)\]]")
_PARTS = re.compile(r"[^()\d]{0,30}\(([^()]{1,80})\)")
"""What a count is made up of: ``3 cubes (2 red, 1 blue)``."""
_NONE = re.compile(
    r"(?:(?:none|nothing)(?:\s+(?:is|are|was|were|of them|left|remains?|there|here|visible))*"
    r"|no\s+(?!one\b|idea|answer|way|longer|more\b|need|number|clue|comment|information)"
    r"[a-z]+(?:\s+[a-z]+){0,4}|(?:没有|无)(?!法)[^\d,.]{0,8})\s*(?:[.,]|$)",
    re.IGNORECASE,
)
_GLUED = re.compile(r"(?:cm|mm|km|m|kg|g|ms|s|cubes?|items?|\^?\{?\\circ\}?|°)(?![A-Za-z0-9^])")


def score_digit(answer: str, gold: str) -> float:
    """1.0 when the answer commits to exactly one number and it equals the gold's, else 0.0.

    Raises:
        ValueError: the gold itself is not one number.
    """
    target = _target(gold)
    if target is None:
        raise ValueError(digit_gold_problem(gold) or "the gold is not one number")
    return float(single_number(answer) == target)


def digit_gold_problem(gold: str) -> str | None:
    """Why no answer can be compared with this gold; None when all is well."""
    if _target(gold) is None:
        return f"gold {gold[:60]!r} is not exactly one number"
    return None


def single_number(text: str) -> Fraction | None:
    """The one number that a short text commits to, such as ``5``, ``-5``, ``twenty-one cubes``."""
    if len(text) > MAX_ANSWER:
        return None
    text = _APART.sub("-", plain(text))
    if _INTEGER.fullmatch(text):
        return Fraction(int(text))
    if not text.isascii() and any(c.isnumeric() and c not in _HAN for c in text):
        return None  # circled and superscript figures
    return commit(text, _read, _names_number)


_HAN = frozenset("0123456789零〇一二两三四五六七八九十百千万亿")


def _read(text: str, start: int) -> Iterator[tuple[Fraction, int]]:
    none = _NONE.match(text, start)
    if none and not ANY_NUMERAL.search(text):
        yield Fraction(0), none.end()
    match = NUMERAL.match(text, start) or NUMERAL.match(text, start + 1)
    if match and match.start() > start and text[start] not in "([{":
        return
    if not match or (value := value_of(match)) is None:
        return
    end = match.end()
    glued = _GLUED.match(text, end)
    if glued:
        end = glued.end()
    elif text[end : end + 1].isalnum() and text[end].isascii():
        return
    if re.match(r"[.,:-]\d", text[end : end + 2]):
        return
    again = _SAME.match(text, end)
    if again and (said := NUMERAL.fullmatch(again[1])) and value_of(said) == value:
        end = again.end()
    parts = _PARTS.match(text, end)
    if parts and leaves_as_it_is(parts[1], lambda piece: False):
        values = [value_of(part) for part in NUMERAL.finditer(parts[1].replace("+", " "))]
        if len(values) > 1 and sum(part or 0 for part in values) == value:
            end = parts.end()
    yield value, end


def _names_number(text: str) -> bool:
    return ANY_NUMERAL.search(text) is not None


@lru_cache(maxsize=4096)  # a gold is compared with a whole group of answers
def _target(gold: str) -> Fraction | None:
    return single_number(strip_answer_tags(gold))


def make(setup: Setup) -> Verifier:
    """The verifier of counting questions."""
    return RuleVerifier(
        lambda request, answer: score_digit(answer, request.gt),
        lambda request: digit_gold_problem(request.gt),
    )
