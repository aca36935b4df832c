"""S from a scalar head on one of our own models, in this process.

The head itself lives with the models and is handed in; this room sees a protocol and no array
library.
"""

from collections.abc import Sequence
from typing import Protocol

from vlaa_jax.rewards.open_ended import AnswerItem, Judged


class RewardHead(Protocol):
    """A model that gives one number per (question, images, answer)."""

    identity: str
    """Names checkpoint and settings; scores are remembered under it."""

    def score(self, items: Sequence[AnswerItem]) -> Sequence[Judged]:
        """One score or reason per item, in order, batched and sharded as the head likes.

        A score that is not finite counts as failed. Called from a scoring thread: an implementation
        that shares devices with a trainer must order its own work.
        """
        ...


class RewardHeadScorer:
    """A ``RewardHead`` as an ``AnswerScorer``; wrap it in ``ReferenceScorer`` for the reward."""

    name = "reward_head"
    uses_devices = True

    def __init__(self, head: RewardHead) -> None:
        self._head = head
        self.identity = f"head {head.identity}"

    def score_answers(self, items: Sequence[AnswerItem]) -> list[Judged]:
        """What the head says; ``ReferenceScorer`` checks it."""
        return list(self._head.score(items))

    def close(self) -> None:
        """The head belongs to whoever made it."""
