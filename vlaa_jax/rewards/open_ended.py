"""Free-form answers: how much better than the reference a scorer finds them (section 4.1).

R = 1 - exp(-beta * (S(response) - S(reference))) where that is positive, else 0. S is any of four
backends behind one protocol; the paper's is InternLM-XComposer2.5-Reward. A response exactly as
good as the reference earns 0. Only the answer text is scored, never the thinking.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vlaa_jax.rewards import similarity

MAX_ANSWER = 20_000
"""Characters of an answer that are sent to a scorer; a longer one is refused with reward 0."""


@dataclass(frozen=True)
class OpenItem:
    """One question with the answer to judge and the reference to beat."""

    question: str
    answer: str
    reference: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Margin:
    """S(response) and S(reference), or why they are unknown."""

    response: float = math.nan
    reference: float = math.nan
    error: str | None = None


class OpenEndedScorer(Protocol):
    """A source of S. Must not raise for a single item: failures are ``Margin(error=...)``."""

    name: str

    def margins(self, items: Sequence[OpenItem]) -> list[Margin]:
        """One Margin per item, in order. Blocking; called from one thread at a time."""
        ...

    def close(self) -> None:
        """Release connections or devices."""
        ...


def reference_reward(response: float, reference: float, beta: float = 0.2) -> float:
    """1 - exp(-beta * (response - reference)) if the response scores higher, else 0.0.

    Args:
        response: S(response), in the scorer's own units.
        reference: S(reference), same units.
        beta: smoothing per point; 0.2 is ScoreRS's value for the same formula (arXiv 2503.00743).

    Raises:
        ValueError: a score is not finite.
    """
    if not (math.isfinite(response) and math.isfinite(reference)):
        raise ValueError(f"scores must be finite, got {response} and {reference}")
    gap = response - reference
    return -math.expm1(-beta * gap) if gap > 0 else 0.0


class TextSimilarityScorer:
    """The offline backend; see ``similarity`` for what it is not.

    S(response) = SCALE * similarity(answer, gold), S(reference) = SCALE * BASELINE. The reference
    is not scored against itself: it would be unbeatable.
    """

    name = "text_similarity"

    def margins(self, items: Sequence[OpenItem]) -> list[Margin]:
        """Score on the calling thread; never fails."""
        return [
            Margin(
                similarity.SCALE * similarity.text_similarity(item.answer, item.reference),
                similarity.SCALE * similarity.BASELINE,
            )
            for item in items
        ]

    def close(self) -> None:
        """Nothing to release."""
