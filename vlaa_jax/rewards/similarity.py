"""An offline stand-in for a reward model: how alike two texts are.

It is **not** equivalent to a reward model: it sees no image, knows no synonyms, and can be raised
by copying the gold's wording. It exists so that the whole loop runs without a network or a second
model, and is the default of ``:tiny`` and ``:small`` only.
"""

import re
from collections import Counter

from rapidfuzz.distance import Indel

from vlaa_jax.rewards.text import fold

BASELINE = 0.4
"""Similarity that stands for S(reference): what an on-topic answer with no knowledge of the gold
reaches. Over the pairs of generic and true answers in ``tests/rewards/test_open_ended.py`` the
largest is below it, so constant and evasive answers earn 0."""
SCALE = 19.2
"""Points per unit of similarity: a perfect answer is SCALE * (1 - BASELINE) = 11.5 points above the
reference and earns 1 - exp(-0.2 * 11.5) = 0.90; published reward-model gaps are 1 to 9 points."""

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+(?:[.,:]\d+)*|[^\W\d_]+", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_NEGATION_WORDS = (
    "no not never none nothing neither nor cannot without isn't aren't wasn't don't doesn't "
    "didn't can't won't couldn't"
)
_NEGATIONS = frozenset(_NEGATION_WORDS.split())
_ARTICLES = frozenset(("a", "an", "the"))
_MAX_WORDS = 2_000


def text_similarity(answer: str, gold: str) -> float:
    """Likeness of two texts in [0, 1]; symmetric; 1 for the same words, case and articles aside.

    The mean of ROUGE-L F1 over words and the edit similarity over characters (counted from one half
    up, as in ANLS), times the F1 of the numbers in both; 0 when one text negates and the other does
    not. Close numbers and flipped negations look alike to edit distances but are wrong answers.
    """
    words, gold_words = _words(answer), _words(gold)
    if not words or not gold_words:
        return 0.0
    if bool(_NEGATIONS & set(words)) != bool(_NEGATIONS & set(gold_words)):
        return 0.0
    numbers = _f1(_numbers(answer), _numbers(gold))
    if numbers == 0.0:
        return 0.0
    overlap = Indel.normalized_similarity(words, gold_words)
    characters = Indel.normalized_similarity(" ".join(words), " ".join(gold_words))
    return numbers * (overlap + (characters if characters >= 0.5 else 0.0)) / 2


def _words(text: str) -> list[str]:
    found = [match.group().casefold() for match in _WORD.finditer(fold(text).replace("’", "'"))]
    return [word for word in found if word not in _ARTICLES][:_MAX_WORDS]


def _numbers(text: str) -> Counter[str]:
    return Counter(match.group().replace(",", "") for match in _NUMBER.finditer(fold(text)))


def _f1(left: Counter[str], right: Counter[str]) -> float:
    """F1 of two bags; 1 when both are empty."""
    if not left and not right:
        return 1.0
    return 2 * (left & right).total() / (left.total() + right.total())
