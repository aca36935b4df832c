"""Scoring the predictions of one benchmark, from files to a result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vlaa_jax.evaluate.nouns import Benchmark, Scored, Unit
from vlaa_jax.evaluate.predictions import Prediction, PredictionFile
from vlaa_jax.evaluate.questions import OPTIONAL, Columns
from vlaa_jax.evaluate.results import Result, Sample, summarise
from vlaa_jax.evaluate.score import Output, Scorer
from vlaa_jax.evaluate.scoring.extract import without_thinking
from vlaa_jax.schema import UserError


@dataclass(frozen=True)
class Scoring:
    """A result and the outputs behind it."""

    result: Result
    samples: Sequence[Sample]
    places: Mapping[str, int]
    """Where a question stands in its data set, by index."""


async def score_benchmark(
    scorer: Scorer,
    rows: Sequence[Columns],
    predictions: Sequence[Prediction],
    *,
    questions: int = 0,
    max_failed: float = 0.02,
    both: bool = True,
    baseline: Sequence[Unit] | None = None,
) -> Scoring:
    """Verdicts on all predictions and what they come to.

    Args:
        scorer: of the benchmark.
        rows: columns of all its questions.
        predictions: any number of samples; a question that a sample lacks is counted as missing.
        questions: that the data set has, where the rows may be fewer.
        max_failed: share of outputs without a verdict that still leaves a headline.
        both: whether to score the first sample without its think text, too.
        baseline: units of a run to compare with.

    Raises:
        UserError: a prediction for a question that is not there, or two of a sample for one.
    """
    places = {str(row["index"]): place for place, row in enumerate(rows)}
    samples = []
    for number in sorted({one.sample for one in predictions}):
        mine = _of_sample(predictions, number, places, scorer.benchmark)
        outputs = [Output(rows[places[one.index]], one.text) for one in mine]
        samples.append(Sample(mine, await scorer.verdicts(outputs)))
    result = summarise(
        scorer.benchmark,
        samples,
        scorer.profile,
        questions=max(questions, len(rows)),
        max_failed=max_failed,
        without_think=await _without_think(scorer, rows, places, samples[0]) if both else None,
        baseline=baseline,
    )
    return Scoring(result, samples, places)


def _of_sample(
    predictions: Sequence[Prediction], number: int, places: Mapping[str, int], benchmark: Benchmark
) -> list[Prediction]:
    """A sample's predictions in the order of the questions."""
    found: dict[str, Prediction] = {}
    for one in predictions:
        if one.sample != number:
            continue
        if one.index not in places:
            raise UserError(
                f"prediction for index {one.index!r}: {benchmark.title} has no such row"
            )
        if one.index in found:
            raise UserError(f"index {one.index!r} has two predictions of sample {number}")
        found[one.index] = one
    return sorted(found.values(), key=lambda one: places[one.index])


async def _without_think(
    scorer: Scorer, rows: Sequence[Columns], places: Mapping[str, int], sample: Sample
) -> list[Scored]:
    """The sample again with think text cut; what has none keeps its verdict."""
    cut = [without_thinking(one.text) for one in sample.predictions]
    changed = [
        place
        for place, (one, text) in enumerate(zip(sample.predictions, cut, strict=True))
        if text != one.text.strip()
    ]
    outputs = [Output(rows[places[sample.predictions[i].index]], cut[i]) for i in changed]
    again = await replace(scorer, done=lambda: None).verdicts(outputs)
    scored = list(sample.scored)
    for place, one in zip(changed, again, strict=True):
        scored[place] = one
    return scored


def rows_of_file(benchmark: Benchmark, file: PredictionFile) -> list[Columns]:
    """The questions as the prediction file itself tells them, as VLMEvalKit's files do.

    Raises:
        UserError: a column that the rules need is not in it, or not in one of its records.
    """
    wanted = [column for column in ("question", *benchmark.columns) if column not in OPTIONAL]
    rows: dict[str, Columns] = {}
    for number, (prediction, columns) in enumerate(
        zip(file.predictions, file.columns, strict=True), 1
    ):
        if absent := [column for column in wanted if column not in columns]:
            raise UserError(
                f"row {number} of the predictions has no column {absent[0]!r}: give --data with "
                f"the table of {benchmark.title}"
            )
        rows.setdefault(prediction.index, {**columns, "index": prediction.index})
    return list(rows.values())
