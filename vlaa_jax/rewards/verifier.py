"""What a verifier is: golds checked beforehand, answers scored in batches that begin and finish.

A verifier is a module of this room, named after its ``verifier_type``, with

    def make(setup: Setup) -> Verifier: ...

and a row in ``schema.VERIFIER_TYPES``. One that scores answer by answer is a ``RuleVerifier``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlaa_jax.schema import ScoreRequest
from vlaa_jax.settings.rewards import RewardSettings

if TYPE_CHECKING:
    from vlaa_jax.rewards.open_ended import AnswerScorer


@dataclass(frozen=True)
class Item:
    """An answer that was found in an output, with the request it belongs to."""

    request: ScoreRequest
    answer: str


@dataclass(frozen=True)
class Verdict:
    """A reward in [0, 1], or why there is none."""

    reward: float = math.nan
    error: str | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


Finish = Callable[[], list[Verdict]]
"""Waits for a batch that was begun; one verdict per item, in order."""


@dataclass(frozen=True)
class Setup:
    """What verifiers are made from."""

    settings: RewardSettings
    open_ended: "AnswerScorer | None" = None
    """A scorer to use instead of the one the settings name."""


class Verifier(ABC):
    """Scores answers of one type. Thread-safe; failures are verdicts, not exceptions.

    Where a verifier does not say otherwise, it needs no devices, holds nothing, and any gold will
    do.
    """

    uses_devices: bool = False
    """Whether it computes on the trainer's devices."""

    def start(self) -> None:  # noqa: B027
        """Begin what is slow to start, in the background."""

    @abstractmethod
    def begin(self, items: Sequence[Item]) -> Finish:
        """Start on a batch and return soon; processes and servers go on meanwhile."""

    def gold_problems(self, requests: Sequence[ScoreRequest]) -> list[str | None]:
        """Why each gold cannot be scored, in words for the user; None where it can.

        Raises:
            UserError: nothing can be said about the golds.
        """
        return [None] * len(requests)

    def close(self) -> None:  # noqa: B027
        """Release processes, connections and devices."""


class Missing(Verifier):
    """A verifier that was not chosen: no answer has a score, for the reason given."""

    def __init__(self, why: str) -> None:
        self._why = why

    def begin(self, items: Sequence[Item]) -> Finish:
        """Nothing is begun."""
        return lambda: [Verdict(error=self._why)] * len(items)


class RuleVerifier(Verifier):
    """A verifier that is two functions of one request.

    Args:
        rule: the reward of an answer; raises ValueError for a gold it cannot score.
        gold_problem: why a request's gold cannot be scored; None when it can.
    """

    def __init__(
        self,
        rule: Callable[[ScoreRequest, str], float],
        gold_problem: Callable[[ScoreRequest], str | None],
    ) -> None:
        self._rule, self._gold_problem = rule, gold_problem

    def begin(self, items: Sequence[Item]) -> Finish:
        """Score when asked to finish, so that other verifiers' processes start first."""
        return lambda: [self._verdict(item) for item in items]

    def gold_problems(self, requests: Sequence[ScoreRequest]) -> list[str | None]:
        """Ask about one gold after the other."""
        return [self._gold_problem(request) for request in requests]

    def _verdict(self, item: Item) -> Verdict:
        try:
            return Verdict(self._rule(item.request, item.answer))
        except Exception as error:  # a verifier's own fault must not look like a wrong answer
            return Verdict(error=reason(error))


def reason(error: Exception) -> str:
    """One line that says what went wrong."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
