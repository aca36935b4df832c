"""From questions and outputs to verdicts."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vlaa_jax.evaluate.nouns import Benchmark, Judge, NoJudge, Row, RowError, Scored, Verdict
from vlaa_jax.evaluate.scoring.extract import scored_text
from vlaa_jax.evaluate.scoring.profiles import Profile
from vlaa_jax.evaluate.scoring.storage import Cell, stored
from vlaa_jax.schema import UserError

_AT_ONCE = 64
"""Outputs that may wait for the judge together."""


@dataclass(frozen=True)
class Output:
    """A question's columns and what a model wrote."""

    columns: Mapping[str, str | None]
    text: str


@dataclass(frozen=True)
class Scorer:
    """Whose rules, how they are read, and who is asked.

    Attributes:
        benchmark: whose.
        profile: which reading of them.
        judge: None where there is none.
        done: called after each output.
    """

    benchmark: Benchmark
    profile: Profile
    judge: Judge | None = None
    done: Callable[[], object] = lambda: None

    async def verdict(self, output: Output) -> Scored:
        """The verdict on one output."""
        row = stored_row(self.benchmark, output.columns, self.profile)
        cell: Cell = stored(scored_text(output.text), self.profile)
        try:
            verdict = await self.benchmark.score(row, cell, self.judge, self.profile)
        except NoJudge as error:
            verdict = Verdict(False, "unjudged", reason=str(error))
        except RowError as error:
            verdict = Verdict(False, "error", reason=str(error))
        return Scored(row, verdict)

    async def verdicts(self, outputs: Sequence[Output]) -> list[Scored]:
        """The verdicts on the outputs of one sample, in their order."""
        found: list[Scored | None] = [None] * len(outputs)

        async def work(places: Iterator[int]) -> None:
            for place in places:
                found[place] = await self.verdict(outputs[place])
                self.done()

        places = iter(range(len(outputs)))
        workers = 1 if self.judge is None else min(_AT_ONCE, len(outputs))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(work(places))
        except* UserError as errors:
            raise errors.exceptions[0] from None
        return [one for one in found if one is not None]


def stored_row(benchmark: Benchmark, columns: Mapping[str, str | None], profile: Profile) -> Row:
    """The columns that the rules read, as they come back from storage."""
    names = ("index", "question", *benchmark.columns)
    return {name: stored(columns.get(name), profile) for name in names}
