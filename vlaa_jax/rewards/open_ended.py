"""Free-form answers: how much better than the reference a scorer finds them (section 4.1).

R = 1 - exp(-beta * (S(response) - S(reference))) where that is positive, else 0. S is any of four
backends behind one protocol; the paper's is InternLM-XComposer2.5-Reward. A response exactly as
good as the reference earns 0. Only the answer text is scored, never the thinking.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock

from vlaa_jax.foreign import MAX_IMAGE_BYTES, read_bytes
from vlaa_jax.rewards.similarity import BASELINE, SCALE, text_similarity
from vlaa_jax.rewards.verifier import Finish, Item, Missing, Setup, Verdict, Verifier, reason
from vlaa_jax.schema import UserError
from vlaa_jax.settings.rewards import OPEN_ENDED_BACKENDS, RewardSettings

MAX_ANSWER = 20_000
"""Characters of an answer that are sent to a scorer; a longer one is refused with reward 0."""


@dataclass(frozen=True)
class AnswerItem:
    """One text to be scored by itself, be it the model's answer or the reference."""

    question: str
    answer: str
    images: tuple[str, ...] = ()
    reference: str | None = None
    """What the answer has to beat; None for the reference itself."""


@dataclass(frozen=True)
class Judged:
    """S of one text, or why it is unknown."""

    score: float = math.nan
    error: str | None = None


class AnswerScorer(ABC):
    """A source of S: a reward-model server, a judge, a reward head."""

    name: str
    uses_devices: bool = False
    """Whether it computes on the trainer's devices."""
    identity: str
    """Everything but the item that a score depends on (address, model, rubric): part of the cache
    key."""
    sees_images: bool = True
    sees_reference: bool = False
    """What else of an item a score depends on."""

    @abstractmethod
    def score_answers(self, items: Sequence[AnswerItem]) -> Sequence[Judged]:
        """One Judged per item, in order; a score that is not finite counts as failed.

        Blocking; called from one thread at a time.
        """

    def close(self) -> None:  # noqa: B027
        """Release connections or devices."""


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


class TextSimilarityScorer(AnswerScorer):
    """The offline backend; see ``similarity`` for what it is not.

    S(response) = SCALE * similarity(answer, gold), S(reference) = SCALE * BASELINE. The reference
    is not scored against itself: it would be unbeatable.
    """

    name = identity = "text_similarity"
    sees_images, sees_reference = False, True

    def score_answers(self, items: Sequence[AnswerItem]) -> list[Judged]:
        """Score on the calling thread; never fails."""
        texts = ((item.answer, item.reference) for item in items)
        alike = (BASELINE if gold is None else text_similarity(said, gold) for said, gold in texts)
        return [Judged(SCALE * similarity) for similarity in alike]


class RememberedScores:
    """Asks an ``AnswerScorer``; equal texts are asked once and remembered.

    The reference of a question is shared by the whole group of completions and by every epoch, so
    most of the work for S(reference) is done once. Failures are not remembered.

    Args:
        scorer: where scores come from.
        entries: scores kept, least recently used first out; 0 keeps none between calls.
    """

    def __init__(self, scorer: AnswerScorer, entries: int) -> None:
        self._scorer = scorer
        self._capacity = entries
        self._cache: OrderedDict[str, float] = OrderedDict()

    def judge(self, texts: Sequence[AnswerItem]) -> list[Judged]:
        """One Judged per text, in order; one whose images cannot be read fails by itself."""
        keys = [self._key(text) for text in texts]
        named = {key: text for key, text in zip(keys, texts, strict=True) if isinstance(key, str)}
        known = {key: Judged(self._cache[key]) for key in named if key in self._cache}
        for key in known:
            self._cache.move_to_end(key)
        known |= self._ask({key: text for key, text in named.items() if key not in known})
        return [key if isinstance(key, Judged) else known[key] for key in keys]

    def _ask(self, asked: dict[str, AnswerItem]) -> dict[str, Judged]:
        replies = self._scorer.score_answers(list(asked.values())) if asked else []
        if len(replies) != len(asked):
            raise ValueError(f"{len(asked)} texts were sent, {len(replies)} scores came back")
        known = {}
        for key, judged in zip(asked, replies, strict=True):
            if judged.error is None and not math.isfinite(judged.score):
                judged = Judged(error=f"the score is {judged.score}")
            known[key] = judged
            if judged.error is None and self._capacity:
                self._cache[key] = judged.score
        while len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
        return known

    def _key(self, text: AnswerItem) -> str | Judged:
        """What a score is remembered under; why there is none where an image cannot be read."""
        try:
            seen = text.images if self._scorer.sees_images else ()
            stats = [(path, Path(path).stat()) for path in seen]
            images = [_image_digest(path, at.st_size, at.st_mtime_ns) for path, at in stats]
        except (OSError, ValueError) as error:  # ValueError: a path with a null character
            said = " ".join(str(getattr(error, "strerror", None) or error).split())
            names = ", ".join(map(repr, text.images))[:200]
            return Judged(error=f"image {names}: {said}")
        beside = text.reference if self._scorer.sees_reference else None
        parts = [self._scorer.identity, text.question, text.answer, beside, *images]
        return hashlib.sha256(repr(parts).encode()).hexdigest()


@lru_cache(maxsize=1 << 16)
def _image_digest(path: str, size: int, mtime_ns: int) -> str:
    return hashlib.sha256(read_bytes(Path(path), MAX_IMAGE_BYTES)).hexdigest()


class OpenEndedVerifier(Verifier):
    """Pays for beating the reference, by the scores of a backend.

    Args:
        scorer: where S comes from.
        beta: smoothing per point of S.
        cache_entries: scores that are remembered.
    """

    def __init__(self, scorer: AnswerScorer, beta: float, cache_entries: int) -> None:
        self._scorer, self._beta = scorer, beta
        self._scores = RememberedScores(scorer, cache_entries)
        self._lock = Lock()
        self.uses_devices = scorer.uses_devices

    def begin(self, items: Sequence[Item]) -> Finish:
        """Ask the backend when asked to finish: it is called from one thread at a time."""
        return lambda: self._finish(items)

    def close(self) -> None:
        """Close the backend."""
        self._scorer.close()

    def _finish(self, items: Sequence[Item]) -> list[Verdict]:
        verdicts = [self._refused(item) for item in items]
        asked = [item for item, verdict in zip(items, verdicts, strict=True) if verdict is None]
        found = iter(self._asked(asked))
        return [verdict or next(found) for verdict in verdicts]

    def _refused(self, item: Item) -> Verdict | None:
        """The verdict on an answer that no backend is asked about."""
        if not item.request.gt.strip():
            return Verdict(error="gold is empty")
        return Verdict(0.0) if len(item.answer) > MAX_ANSWER else None

    def _asked(self, items: Sequence[Item]) -> list[Verdict]:
        texts = []
        for item in items:
            asked = item.request
            texts.append(AnswerItem(asked.question, item.answer, asked.images, asked.gt))
            texts.append(AnswerItem(asked.question, asked.gt, asked.images))
        if not texts:
            return []
        try:
            with self._lock:
                judged = iter(self._scores.judge(texts))
        except Exception as error:
            return [Verdict(error=f"{self._scorer.name}: {reason(error)}")] * len(items)
        return [self._verdict(*pair) for pair in zip(judged, judged, strict=True)]

    def _verdict(self, response: Judged, reference: Judged) -> Verdict:
        for said, of in ((response, ""), (reference, "reference: ")):
            if said.error is not None:
                return Verdict(error=f"{self._scorer.name}: {of}{said.error}")
        reward = reference_reward(response.score, reference.score, self._beta)
        parts = {"response_score": response.score, "reference_score": reference.score}
        return Verdict(reward, parts=parts)


def make(setup: Setup) -> Verifier:
    """The verifier of free-form answers.

    Raises:
        UserError: the settings name a backend that cannot be made from them.
    """
    settings = setup.settings
    if setup.open_ended is None and settings.open_ended == "none":
        return Missing("no open-ended backend: choose rewards.open_ended")
    scorer = setup.open_ended or _backend(settings)
    return OpenEndedVerifier(scorer, settings.beta, settings.cache_entries)


def _backend(settings: RewardSettings) -> AnswerScorer:
    chosen = settings.open_ended
    if chosen == "text_similarity":
        return TextSimilarityScorer()
    if chosen == "reward_head":
        raise UserError(
            "rewards.open_ended is 'reward_head': only a training run loads one; choose "
            + ", ".join(name for name in OPEN_ENDED_BACKENDS if name not in ("none", chosen))
        )
    for name in ("endpoint_url", "endpoint_model"):
        if not getattr(settings, name) and (chosen == "chat_judge" or name != "endpoint_model"):
            raise UserError(f"rewards.open_ended is {chosen!r}: set rewards.{name}")
    # Imported here: an HTTP client takes longer to import than all rules together.
    from vlaa_jax.rewards.chat_judge import ChatJudge
    from vlaa_jax.rewards.score_endpoint import ScoreEndpoint

    return ChatJudge(settings) if chosen == "chat_judge" else ScoreEndpoint(settings)
