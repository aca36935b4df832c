"""Free-form answers: how much better than the reference a scorer finds them (section 4.1).

R = 1 - exp(-beta * (S(response) - S(reference))) where that is positive, else 0. S is any of four
backends behind one protocol; the paper's is InternLM-XComposer2.5-Reward. A response exactly as
good as the reference earns 0. Only the answer text is scored, never the thinking.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Protocol

from vlaa_jax.foreign import MAX_IMAGE_BYTES, read_bytes
from vlaa_jax.rewards import similarity
from vlaa_jax.rewards.verifier import Finish, Item, Setup, Verdict, Verifier, reason
from vlaa_jax.schema import ScoreRequest

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


@dataclass(frozen=True)
class Margin:
    """S(response) and S(reference), or why they are unknown."""

    response: float = math.nan
    reference: float = math.nan
    error: str | None = None


class OpenEndedScorer(Protocol):
    """A source of S. Must not raise for a single item: failures are ``Margin(error=...)``."""

    name: str
    uses_devices: bool
    """Whether it computes on the trainer's devices."""

    def margins(self, items: Sequence[OpenItem]) -> list[Margin]:
        """One Margin per item, in order. Blocking; called from one thread at a time."""
        ...

    def close(self) -> None:
        """Release connections or devices."""
        ...


class AnswerScorer(Protocol):
    """Scores single texts: a reward-model server, a judge, a reward head."""

    name: str
    uses_devices: bool
    """Whether it computes on the trainer's devices."""
    identity: str
    """Everything but the item that a score depends on (address, model, rubric): part of the cache
    key."""

    def score_answers(self, items: Sequence[AnswerItem]) -> list[Judged]:
        """One Judged per item, in order."""
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
    uses_devices = False

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


class ReferenceScorer:
    """Makes margins from an ``AnswerScorer``: equal texts are asked once and remembered.

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

    def margins(self, items: Sequence[OpenItem]) -> list[Margin]:
        """One Margin per item, in order; an item whose images cannot be read fails by itself."""
        pairs = [
            (
                AnswerItem(item.question, item.answer, item.images),
                AnswerItem(item.question, item.reference, item.images),
            )
            for item in items
        ]
        judged = self._judge([text for pair in pairs for text in pair])
        return [_margin(judged[2 * i], judged[2 * i + 1]) for i in range(len(pairs))]

    def close(self) -> None:
        """Close the scorer."""
        self._scorer.close()

    def _judge(self, texts: Sequence[AnswerItem]) -> list[Judged]:
        keys: list[str | None] = []
        known: dict[str, Judged] = {}
        asked: dict[str, AnswerItem] = {}
        unread: dict[int, Judged] = {}
        for index, text in enumerate(texts):
            try:
                key = self._key(text)
            except (OSError, ValueError) as error:  # ValueError: a path with a null character
                reason = " ".join(str(getattr(error, "strerror", None) or error).split())
                names = ", ".join(map(repr, text.images))[:200]
                keys.append(None)
                unread[index] = Judged(error=f"image {names}: {reason}")
                continue
            keys.append(key)
            if key in self._cache:
                self._cache.move_to_end(key)
                known[key] = Judged(self._cache[key])
            else:
                asked[key] = text
        if asked:
            known.update(self._ask(asked))
        return [unread[i] if key is None else known[key] for i, key in enumerate(keys)]

    def _ask(self, asked: dict[str, AnswerItem]) -> dict[str, Judged]:
        replies = self._scorer.score_answers(list(asked.values()))
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

    def _key(self, text: AnswerItem) -> str:
        parts = [self._scorer.identity, text.question, text.answer]
        return _digest([*parts, *(self._image_digest(path) for path in text.images)])

    def _image_digest(self, path: str) -> str:
        stat = Path(path).stat()
        key = (path, stat.st_size, stat.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = hashlib.sha256(read_bytes(Path(path), MAX_IMAGE_BYTES)).hexdigest()
        return self._digests[key]


class OpenEndedVerifier:
    """Pays for beating the reference, by the scores of a backend.

    Args:
        backend: where S comes from; None: nothing was chosen, so no answer has a score.
        beta: smoothing per point of S.
    """

    def __init__(self, backend: OpenEndedScorer | None, beta: float) -> None:
        self._backend, self._beta = backend, beta
        self._lock = Lock()

    @property
    def uses_devices(self) -> bool:
        """Whether the backend does."""
        return self._backend is not None and self._backend.uses_devices

    def start(self) -> None:
        """Nothing to start."""

    def begin(self, items: Sequence[Item]) -> Finish:
        """Ask the backend when asked to finish: it is called from one thread at a time."""
        return lambda: self._finish(items)

    def gold_problems(self, requests: Sequence[ScoreRequest]) -> list[str | None]:
        """Any text can be a reference."""
        return [None] * len(requests)

    def close(self) -> None:
        """Close the backend."""
        if self._backend is not None:
            self._backend.close()

    def _finish(self, items: Sequence[Item]) -> list[Verdict]:
        verdicts = [self._refused(item) for item in items]
        asked = [i for i, verdict in enumerate(verdicts) if verdict is None]
        if asked and self._backend is not None:
            for i, margin in zip(asked, self._margins(self._backend, items, asked), strict=True):
                verdicts[i] = self._verdict(self._backend.name, margin)
        return [verdict or Verdict(0.0) for verdict in verdicts]

    def _refused(self, item: Item) -> Verdict | None:
        """The verdict on an answer that no backend is asked about."""
        if not item.request.gt.strip():
            return Verdict(error="gold is empty")
        if self._backend is None:
            return Verdict(error="no open-ended backend: choose rewards.open_ended")
        return Verdict(0.0) if len(item.answer) > MAX_ANSWER else None

    def _margins(
        self, backend: OpenEndedScorer, items: Sequence[Item], asked: Sequence[int]
    ) -> list[Margin]:
        requests = [items[i].request for i in asked]
        texts = [
            OpenItem(request.question, items[i].answer, request.gt, request.images)
            for i, request in zip(asked, requests, strict=True)
        ]
        try:
            with self._lock:
                margins = backend.margins(texts)
            if len(margins) != len(texts):
                raise ValueError(f"{len(texts)} answers were sent, {len(margins)} scores came back")
        except Exception as error:
            return [Margin(error=reason(error))] * len(texts)
        return margins

    def _verdict(self, name: str, margin: Margin) -> Verdict:
        if margin.error is not None:
            return Verdict(error=f"{name}: {margin.error}")
        try:
            reward = reference_reward(margin.response, margin.reference, self._beta)
        except ValueError as error:
            return Verdict(error=f"{name}: {error}")
        parts = {"response_score": margin.response, "reference_score": margin.reference}
        return Verdict(reward, parts=parts)


def make(setup: Setup) -> Verifier:
    """The verifier of free-form answers.

    Raises:
        UserError: the settings name a backend that cannot be made from them.
    """
    from vlaa_jax.rewards.backends import make_open_ended  # it imports this module

    backend = setup.open_ended or make_open_ended(setup.settings)
    return OpenEndedVerifier(backend, setup.settings.beta)


def _digest(parts: Iterable[str]) -> str:
    # Lengths keep ("ab", "c") and ("a", "bc") apart; lone surrogates occur in sampled text.
    data = [part.encode(errors="surrogatepass") for part in parts]
    framed = b"".join(len(part).to_bytes(8, "big") + part for part in data)
    return hashlib.sha256(framed).hexdigest()


def _margin(response: Judged, reference: Judged) -> Margin:
    if response.error is not None:
        return Margin(error=response.error)
    if reference.error is not None:
        return Margin(error=f"reference: {reference.error}")
    return Margin(response.score, reference.score)
