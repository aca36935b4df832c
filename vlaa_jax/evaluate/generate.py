"""Outputs for all questions, each recorded as soon as it is there.

A run that was killed goes on where it was: what is recorded is never asked for again, what was in
flight is.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vlaa_jax.evaluate.ledger import Ledger, read_ledger
from vlaa_jax.evaluate.nouns import Benchmark
from vlaa_jax.evaluate.predictions import Prediction
from vlaa_jax.evaluate.questions import Questions
from vlaa_jax.evaluate.score import stored_row
from vlaa_jax.evaluate.scoring.profiles import PROFILES
from vlaa_jax.parallel import hosts
from vlaa_jax.schema import UserError

_AS_IS = PROFILES["2026-08-lossless"]
_KINDS: dict[str, Any] = {
    **{"benchmark": str, "index": str, "text": str, "sample": int, "finish_reason": str},
    "tokens": int | None,
}
"""Of the fields of a recorded output: its benchmark, and those of a prediction in their order."""
_OF_A_HOST = re.compile(r"outputs(\.host\d+)?\.jsonl")


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

    def check(self, jobs: Sequence[Job]) -> None:
        """Look all jobs over, before anything dear is loaded or asked.

        Raises:
            UserError: a job cannot be answered, and why.
        """
        ...

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


def by_question(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs, with all samples of a question together."""
    questions: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        questions.setdefault((job.benchmark, job.index), []).append(job)
    return list(questions.values())


def seed_of(job: Job, seed: int) -> int:
    """A seed for one output that does not depend on what is generated beside it."""
    text = json.dumps([seed, job.benchmark, job.index, job.sample])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def dealt(jobs: Sequence[Job]) -> list[Job]:
    """The jobs that fall to this host: every so-manieth question, with all its samples."""
    return [job for same in by_question(jobs)[hosts.index() :: hosts.count()] for job in same]


class Outputs:
    """The record of a run's outputs; every host appends to a file of its own and reads all.

    Args:
        folder: of the files.
        made_by: what decides the outputs; a record that was made otherwise is refused.

    Raises:
        UserError: a record was made otherwise, or is damaged.
    """

    def __init__(self, folder: Path, made_by: Mapping[str, Any]) -> None:
        name = f".host{hosts.index()}" if hosts.index() else ""
        self._path = folder / f"outputs{name}.jsonl"
        self._made_by = json.loads(json.dumps(made_by))
        self._found: dict[tuple[str, str, int], Prediction] = {}
        self._ledger = Ledger(self._path)
        self._begun = bool(self._ledger.records)
        try:
            self._take(self._path, self._ledger.records)
            self.read_others()
        except UserError:
            self._ledger.close()
            raise

    def read_others(self) -> None:
        """Take in what other hosts have recorded, in this run or an earlier one."""
        for path in sorted(self._path.parent.glob("outputs*.jsonl")):
            if path != self._path and _OF_A_HOST.fullmatch(path.name):
                self._take(path, read_ledger(path)[0])

    def _take(self, path: Path, records: Sequence[Mapping[str, Any]]) -> None:
        for number, line in enumerate(records, 1):
            if number == 1:
                if line.get("made_by") != self._made_by:
                    why = _difference(line.get("made_by"), self._made_by)
                    raise UserError(f"{path}: {why}; use a new --workdir")
                continue
            if problem := next((n for n in _KINDS if not isinstance(line.get(n), _KINDS[n])), ""):
                raise UserError(f"{path}: line {number} is no record of an output ({problem})")
            benchmark, *values = (line[name] for name in _KINDS)
            prediction = Prediction(*values)
            self._found[benchmark, prediction.index, prediction.sample] = prediction

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that are not recorded."""
        return [job for job in jobs if (job.benchmark, job.index, job.sample) not in self._found]

    def add(self, job: Job, generated: Generated) -> None:
        """Record an output; when this returns it outlives the process."""
        if not self._begun:  # what recorded nothing may be made otherwise
            self._ledger.append({"made_by": self._made_by})
            self._begun = True
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
