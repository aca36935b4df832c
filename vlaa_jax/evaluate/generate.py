"""Outputs for all questions, each recorded as soon as it is there.

A run that was killed goes on where it was: what is recorded is never asked for again, what was in
flight is.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vlaa_jax.evaluate.ledger import Ledger
from vlaa_jax.evaluate.nouns import Benchmark
from vlaa_jax.evaluate.predictions import Prediction
from vlaa_jax.evaluate.questions import Questions
from vlaa_jax.evaluate.score import stored_row
from vlaa_jax.evaluate.scoring.profiles import PROFILES
from vlaa_jax.schema import UserError

_AS_IS = PROFILES["2026-08-lossless"]


@dataclass(frozen=True)
class Job:
    """One output that is wanted."""

    benchmark: str
    index: str
    sample: int
    prompt: str
    """What the user says; images come before it."""
    images: Callable[[], list[bytes]]
    """Encoded images, read when they are needed."""

    @property
    def name(self) -> str:
        """For messages and seeds."""
        return f"{self.benchmark} {self.index} sample {self.sample}"


@dataclass(frozen=True)
class Generated:
    """One output."""

    text: str
    finish_reason: str
    """``stop`` or ``length``."""
    tokens: int | None = None


Done = Callable[[Job, Generated], None]


class Generator(Protocol):
    """Whoever answers questions on images: a server, or an engine."""

    async def generate(self, jobs: Sequence[Job], done: Done) -> None:
        """Answer all jobs, in any order; ``done`` is called for each as soon as it is answered.

        Raises:
            UserError: a job cannot be answered, and why.
        """
        ...

    def describe(self) -> Mapping[str, Any]:
        """What decides its outputs, for the record of the run."""
        ...


def jobs_of(benchmark: Benchmark, questions: Questions, samples: int) -> Iterator[Job]:
    """All outputs that a benchmark wants, sample by sample."""
    for sample in range(samples):
        for place, row in enumerate(questions.rows):
            prompt = benchmark.prompt(stored_row(benchmark, row, _AS_IS))

            def images(place: int = place) -> list[bytes]:
                return questions.images(place)

            yield Job(benchmark.name, str(row["index"]), sample, prompt, images)


def seed_of(job: Job, seed: int) -> int:
    """A seed for one output that does not depend on what is generated beside it."""
    text = json.dumps([seed, job.benchmark, job.index, job.sample])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


class Outputs:
    """The record of a run's outputs.

    Args:
        path: of the file.
        made_by: what decides the outputs; a record that was made otherwise is refused.

    Raises:
        UserError: the record was made otherwise.
    """

    def __init__(self, path: Path, made_by: Mapping[str, Any]) -> None:
        self._ledger = Ledger(path)
        head, *lines = self._ledger.records or [{}]
        now = json.loads(json.dumps(made_by))
        if not head:
            self._ledger.append({"made_by": now})
        elif head.get("made_by") != now:
            self._ledger.close()
            raise UserError(f"{path}: {_difference(head.get('made_by'), now)}; use a new --workdir")
        self._found: dict[tuple[str, str, int], Prediction] = {}
        for number, line in enumerate(lines, 2):
            try:
                prediction = Prediction(
                    *(line[name] for name in ("index", "text", "sample", "finish_reason", "tokens"))
                )
                self._found[line["benchmark"], prediction.index, prediction.sample] = prediction
            except (KeyError, TypeError):
                self._ledger.close()
                raise UserError(f"{path}: line {number} is no record of an output") from None

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that are not recorded."""
        return [job for job in jobs if (job.benchmark, job.index, job.sample) not in self._found]

    def add(self, job: Job, generated: Generated) -> None:
        """Record an output; when this returns it outlives the process."""
        self._ledger.append(
            {
                "benchmark": job.benchmark,
                "index": job.index,
                "sample": job.sample,
                "text": generated.text,
                "finish_reason": generated.finish_reason,
                "tokens": generated.tokens,
            }
        )
        self._found[job.benchmark, job.index, job.sample] = Prediction(
            job.index, generated.text, job.sample, generated.finish_reason, generated.tokens
        )

    def of(self, jobs: Sequence[Job]) -> list[Prediction]:
        """The outputs of some jobs, as far as they are recorded."""
        keys = ((job.benchmark, job.index, job.sample) for job in jobs)
        return [self._found[key] for key in keys if key in self._found]

    def close(self) -> None:
        """Let the file go."""
        self._ledger.close()


def _difference(then: Any, now: Mapping[str, Any]) -> str:
    if not isinstance(then, dict):
        return "is no record of outputs"
    for key in now.keys() | then.keys():
        if then.get(key) != now.get(key):
            return f"was made with {key}={then.get(key)!r}, now it is {now.get(key)!r}"
    return "was made otherwise"
