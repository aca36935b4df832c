"""From a question and an output to a verdict."""

from collections.abc import Mapping

from vlaa_jax.evaluate.nouns import Benchmark, Judge, NoJudge, Row, RowError, Verdict
from vlaa_jax.evaluate.scoring.extract import scored_text
from vlaa_jax.evaluate.scoring.profiles import Profile
from vlaa_jax.evaluate.scoring.storage import Cell, stored


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
