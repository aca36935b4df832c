"""From questions and outputs to verdicts."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vlaa_jax.evaluate.nouns import Benchmark, Judge, NoJudge, Row, RowError, Scored, Verdict
from vlaa_jax.evaluate.scoring.extract import scored_text
from vlaa_jax.evaluate.scoring.profiles import Profile
from vlaa_jax.evaluate.scoring.storage import Cell, stored
from vlaa_jax.schema import UserError


@dataclass(frozen=True)
class Output:
    """A question's columns and what a model wrote."""

    columns: Mapping[str, str | None]
    text: str


async def score_output(
    benchmark: Benchmark,
    columns: Mapping[str, str | None],
    output: str,
    judge: Judge | None,
    profile: Profile,
) -> Verdict:
    """The verdict on one output.

    Args:
        benchmark: whose rules.
        columns: of the question, as read from its file.
        output: whole text of the model.
        judge: None where there is none.
        profile: which reading of the rules.
    """
    row = stored_row(benchmark, columns, profile)
    cell: Cell = stored(scored_text(output), profile)
    try:
        return await benchmark.score(row, cell, judge, profile)
    except NoJudge as error:
        return Verdict(False, "unjudged", reason=str(error))
    except RowError as error:
        return Verdict(False, "error", reason=str(error))


def stored_row(benchmark: Benchmark, columns: Mapping[str, str | None], profile: Profile) -> Row:
    """The columns that the rules read, as they come back from storage."""
    names = ("index", "question", *benchmark.columns)
    return {name: stored(columns.get(name), profile) for name in names}


async def score_outputs(
    benchmark: Benchmark,
    outputs: Sequence[Output],
    judge: Judge | None,
    profile: Profile,
    *,
    at_once: int = 64,
    done: Callable[[], object] = lambda: None,
) -> list[Scored]:
    """The verdicts on many outputs, in their order.

    Args:
        benchmark: whose rules.
        outputs: of one sample.
        judge: None where there is none.
        profile: which reading of the rules.
        at_once: outputs that may wait for the judge together.
        done: called after each.
    """
    found: list[Scored | None] = [None] * len(outputs)

    async def work(places: Iterator[int]) -> None:
        for place in places:
            columns = outputs[place].columns
            verdict = await score_output(benchmark, columns, outputs[place].text, judge, profile)
            found[place] = Scored(stored_row(benchmark, columns, profile), verdict)
            done()

    places = iter(range(len(outputs)))
    workers = 1 if judge is None else min(at_once, len(outputs))
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(work(places))
    except* UserError as errors:
        raise errors.exceptions[0] from None
    return [one for one in found if one is not None]
