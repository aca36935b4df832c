"""Free-form answers: how much better than the reference a scorer finds them (section 4.1).

R = 1 - exp(-beta * (S(response) - S(reference))) where that is positive, else 0. S is any of four
backends behind one protocol; the paper's is InternLM-XComposer2.5-Reward. A response exactly as
good as the reference earns 0. Only the answer text is scored, never the thinking.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from vlaa_jax.foreign import MAX_IMAGE_BYTES, read_bytes
from vlaa_jax.rewards.similarity import BASELINE, SCALE, text_similarity
from vlaa_jax.rewards.verifier import Finish, Item, Setup, Verdict, Verifier, reason
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


@dataclass(frozen=True)
class Judged:
    """S of one text, or why it is unknown."""

    score: float = math.nan
    error: str | None = None


class OpenEndedScorer(ABC):
    """A source of S for answers beside their references."""

    name: str
    uses_devices: bool = False
    """Whether it computes on the trainer's devices."""

    @abstractmethod
    def margins(
        self, pairs: Sequence[tuple[AnswerItem, AnswerItem]]
    ) -> list[tuple[Judged, Judged]]:
        """S(response) and S(reference) of each (response, reference), in order.

        Blocking; called from one thread at a time. What fails for one text is its error.
        """

    def close(self) -> None:  # noqa: B027
        """Release connections or devices."""


class AnswerScorer(ABC):
    """Scores single texts: a reward-model server, a judge, a reward head."""

    name: str
    uses_devices: bool = False
    """Whether it computes on the trainer's devices."""
    identity: str
    """Everything but the item that a score depends on (address, model, rubric): part of the cache
    key."""

    @abstractmethod
    def score_answers(self, items: Sequence[AnswerItem]) -> Sequence[Judged]:
        """One Judged per item, in order; a score that is not finite counts as failed."""

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


class TextSimilarityScorer(OpenEndedScorer):
    """The offline backend; see ``similarity`` for what it is not.

    S(response) = SCALE * similarity(answer, gold), S(reference) = SCALE * BASELINE. The reference
    is not scored against itself: it would be unbeatable.
    """

    name = "text_similarity"

    def margins(
        self, pairs: Sequence[tuple[AnswerItem, AnswerItem]]
    ) -> list[tuple[Judged, Judged]]:
        """Score on the calling thread; never fails."""
        baseline = Judged(SCALE * BASELINE)
        return [
            (Judged(SCALE * text_similarity(response.answer, reference.answer)), baseline)
            for response, reference in pairs
        ]


class ReferenceScorer(OpenEndedScorer):
    """Asks an ``AnswerScorer`` about both; equal texts are asked once and remembered.

    The reference of a question is shared by the whole group of completions and by every epoch, so
    most of the work for S(reference) is done once. Failures are not remembered.

    Args:
        scorer: where scores come from.
        cache_entries: scores kept, least recently used first out; 0 keeps none between calls.
    """

    def __init__(self, scorer: AnswerScorer, cache_entries: int = 100_000) -> None:
        self.name = scorer.name
        self.uses_devices = scorer.uses_devices
        self._scorer = scorer
        self._capacity = cache_entries
        self._cache: OrderedDict[str, float] = OrderedDict()
        self._digests: dict[tuple[str, int, int], str] = {}

    def margins(
        self, pairs: Sequence[tuple[AnswerItem, AnswerItem]]
    ) -> list[tuple[Judged, Judged]]:
        """Both scores of each pair; one whose images cannot be read fails by itself."""
        judged = iter(self._judge([text for pair in pairs for text in pair]))
        return list(zip(judged, judged, strict=True))

    def close(self) -> None:
        """Close the scorer."""
        self._scorer.close()

    def _judge(self, texts: Sequence[AnswerItem]) -> list[Judged]:
        keys = [self._key(text) for text in texts]
        known = {key: Judged(self._cache[key]) for key in keys if key in self._cache}
        for key in known:
            self._cache.move_to_end(key)
        asked = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        known |= self._ask({key: text for key, text in asked.items() if isinstance(key, str)})
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
            images = [self._image_digest(path) for path in text.images]
        except (OSError, ValueError) as error:  # ValueError: a path with a null character
            said = " ".join(str(getattr(error, "strerror", None) or error).split())
            names = ", ".join(map(repr, text.images))[:200]
            return Judged(error=f"image {names}: {said}")
        return _digest([self._scorer.identity, text.question, text.answer, *images])

    def _image_digest(self, path: str) -> str:
        stat = Path(path).stat()
        key = (path, stat.st_size, stat.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = hashlib.sha256(read_bytes(Path(path), MAX_IMAGE_BYTES)).hexdigest()
        return self._digests[key]


class OpenEndedVerifier(Verifier):
    """Pays for beating the reference, by the scores of a backend.

    Args:
        backend: where S comes from; None: nothing was chosen, so no answer has a score.
        beta: smoothing per point of S.
    """

    def __init__(self, backend: OpenEndedScorer | None, beta: float) -> None:
        self._backend, self._beta = backend, beta
        self._lock = Lock()
        self.uses_devices = backend is not None and backend.uses_devices

    def begin(self, items: Sequence[Item]) -> Finish:
        """Ask the backend when asked to finish: it is called from one thread at a time."""
        return lambda: self._finish(items)

    def close(self) -> None:
        """Close the backend."""
        if self._backend is not None:
            self._backend.close()

    def _finish(self, items: Sequence[Item]) -> list[Verdict]:
        verdicts = [self._refused(item) for item in items]
        asked = [item for item, verdict in zip(items, verdicts, strict=True) if verdict is None]
        found = iter(self._asked(self._backend, asked) if self._backend and asked else ())
        return [verdict or next(found) for verdict in verdicts]

    def _refused(self, item: Item) -> Verdict | None:
        """The verdict on an answer that no backend is asked about."""
        if not item.request.gt.strip():
            return Verdict(error="gold is empty")
        if self._backend is None:
            return Verdict(error="no open-ended backend: choose rewards.open_ended")
        return Verdict(0.0) if len(item.answer) > MAX_ANSWER else None

    def _asked(self, backend: OpenEndedScorer, items: Sequence[Item]) -> list[Verdict]:
        pairs = [
            (
                AnswerItem(item.request.question, item.answer, item.request.images),
                AnswerItem(item.request.question, item.request.gt, item.request.images),
            )
            for item in items
        ]
        try:
            with self._lock:
                margins = backend.margins(pairs)
            if len(margins) != len(pairs):
                raise ValueError(f"{len(pairs)} answers were sent, {len(margins)} scores came back")
        except Exception as error:
            return [Verdict(error=f"{backend.name}: {reason(error)}")] * len(pairs)
        return [self._verdict(backend.name, *margin) for margin in margins]

    def _verdict(self, name: str, response: Judged, reference: Judged) -> Verdict:
        for said, of in ((response, ""), (reference, "reference: ")):
            if said.error is not None:
                return Verdict(error=f"{name}: {of}{said.error}")
        try:
            reward = reference_reward(response.score, reference.score, self._beta)
        except ValueError as error:
            return Verdict(error=f"{name}: {error}")
        parts = {"response_score": response.score, "reference_score": reference.score}
        return Verdict(reward, parts=parts)


def make(setup: Setup) -> Verifier:
    """The verifier of free-form answers.

    Raises:
        UserError: the settings name a backend that cannot be made from them.
    """
    return OpenEndedVerifier(setup.open_ended or make_backend(setup.settings), setup.settings.beta)


def make_backend(settings: RewardSettings) -> OpenEndedScorer | None:
    """The backend these settings describe; None for ``none``.

    Raises:
        UserError: the backend needs something that is not set.
    """
    chosen = settings.open_ended
    if chosen == "none":
        return None
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

    scorer = (ChatJudge if chosen == "chat_judge" else ScoreEndpoint)(settings)
    return ReferenceScorer(scorer, settings.cache_entries)


def _digest(parts: Iterable[str]) -> str:
    # Lengths keep ("ab", "c") and ("a", "bc") apart; lone surrogates occur in sampled text.
    data = [part.encode(errors="surrogatepass") for part in parts]
    framed = b"".join(len(part).to_bytes(8, "big") + part for part in data)
    return hashlib.sha256(framed).hexdigest()
