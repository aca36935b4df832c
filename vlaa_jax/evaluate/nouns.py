"""What the parts of the evaluation hand to each other."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from vlaa_jax.evaluate.scoring.profiles import Profile
from vlaa_jax.evaluate.scoring.storage import Cell

Row = Mapping[str, Cell]
"""The columns of one question; a column that has no value is None."""

Path = Literal["rule", "judge", "failed", "unjudged", "error"]
"""Who decided: a rule; the judge; nobody, because the judge failed, is not there, or the row is one
that stops the original."""


@dataclass(frozen=True)
class Question:
    """What a judge is asked once."""

    stage: str
    """``extract``, ``score`` or ``match``."""
    prompt: str
    attempt: int = 0
    temperature: float | None = None
    """None leaves it to the judge's settings."""
    max_tokens: int = 128


class Judge(Protocol):
    """Whoever answers questions about an output."""

    async def ask(self, question: Question) -> str | None:
        """The reply; None where none came."""
        ...


class NoJudge(Exception):
    """A row needs a judge, and there is none."""


class RowError(Exception):
    """A row on which the original stops. The message is a short reason."""


@dataclass(frozen=True)
class Verdict:
    """What was made of one output."""

    hit: bool
    path: Path
    extracted: str | None = None
    """The answer that was compared; None where there was none."""
    extract_path: Path | None = None
    """MathVerse: who extracted, where the score was decided elsewhere."""
    reason: str = ""
    asked: int = 0
    """Replies asked of the judge."""
    unread: bool = False
    """The judge replied, and no answer could be read from that; wrong, as in the original."""

    @property
    def known(self) -> bool:
        """Whether it is known that the output is right or wrong."""
        return self.unread or self.path in ("rule", "judge", "error")


@dataclass(frozen=True)
class Scored:
    """A question with the verdict on an output."""

    row: Row
    verdict: Verdict


@dataclass(frozen=True)
class Unit:
    """What a headline averages: a row, or the rows of one question or problem together."""

    key: str
    """The same in every run, so that runs can be paired."""
    value: float
    cluster: str
    """Units of a cluster are not independent of each other."""
    known: bool = True
    """False where a failed judge leaves the value open; ``value`` then counts it as wrong."""


Line = dict[str, Any]
"""A line of a printed table."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: its data, its prompt, its rules and its number."""

    name: str
    title: str
    """Of its column on the leaderboard."""
    dataset: str
    """VLMEvalKit's name of the data set; ``dataset.tsv`` is the public file."""
    md5: str
    """Digest of the public file; empty where there is none to check."""
    size: int
    """Rows."""
    columns: tuple[str, ...]
    """That the rules read, apart from ``index`` and ``question``."""
    judge: Literal["always", "sometimes", "optional"]
    """Whether every row needs one, some do, or there is an official way without."""
    prompt: Callable[[Row], str]
    score: Callable[[Row, Cell, Judge | None, Profile], Awaitable[Verdict]]
    units: Callable[[Sequence[Scored]], list[Unit]]
    table: Callable[[Sequence[Scored]], list[Line]]
    from_hub: Callable[[Mapping[str, Any], int], dict[str, str | None] | None]
    """A record of the original on the Hugging Face hub and its place, as columns; None skips it."""
    other_scores: Mapping[str, Callable[[Sequence[Scored]], list[Unit]]] = field(
        default_factory=dict
    )
