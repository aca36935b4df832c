"""What a benchmark came to: the number, how sure it is, and what it is made of."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from vlaa_jax.evaluate import statistics
from vlaa_jax.evaluate.nouns import Benchmark, Line, Scored, Unit
from vlaa_jax.evaluate.predictions import Prediction
from vlaa_jax.evaluate.scoring.extract import scored_text
from vlaa_jax.evaluate.scoring.profiles import Profile
from vlaa_jax.evaluate.scoring.storage import stored


@dataclass(frozen=True)
class Sample:
    """One output for every question, scored."""

    predictions: Sequence[Prediction]
    scored: Sequence[Scored]


@dataclass(frozen=True)
class Counts:
    """What the outputs were, apart from right or wrong."""

    paths: Mapping[str, int]
    """Outputs by who decided."""
    by_rule: float | None
    """Percent right of the outputs that rules decided."""
    truncated: int
    truncated_right: int
    not_extracted: int
    """Judged outputs in which no answer was found; they are wrong, and counted apart."""
    changed_by_storage: int
    characters: Mapping[str, float]
    """Mean and median length of the whole outputs."""
    tokens: float | None
    """Mean number of new tokens, where it is known."""


@dataclass(frozen=True)
class Result:
    """A benchmark of a run."""

    benchmark: Benchmark
    units: list[Unit]
    """Averaged over samples."""
    estimate: statistics.Estimate | None
    """Over the units that are known, in percent."""
    withheld: str
    """Why the estimate is no headline; empty where it is one."""
    as_original: float | None
    """In percent, with everything that is not known as wrong, as VLMEvalKit counts it."""
    others: Mapping[str, statistics.Estimate | None]
    table: list[Line]
    """Of the first sample, as VLMEvalKit prints it."""
    questions: int
    missing: int
    """Questions without a prediction."""
    counts: Counts
    spread: statistics.Spread | None = None
    pass_at: Mapping[int, float | None] = field(default_factory=dict)
    agreement: float | None = None
    without_think: statistics.Estimate | None = None
    """The score when think text is cut before scoring."""
    difference: statistics.Difference | None = None
    """Against the baseline run."""

    @property
    def headline(self) -> float | None:
        """The leaderboard's number in percent; None where it is withheld."""
        return None if self.withheld or self.estimate is None else self.estimate.value


def summarise(
    benchmark: Benchmark,
    samples: Sequence[Sample],
    profile: Profile,
    *,
    questions: int,
    max_failed: float,
    without_think: Sequence[Scored] | None = None,
    baseline: Sequence[Unit] | None = None,
) -> Result:
    """Everything about a benchmark from its scored samples.

    Args:
        benchmark: which.
        samples: at least one.
        profile: under which they were scored.
        questions: in the data set.
        max_failed: share of outputs that may be without a verdict before there is no headline.
        without_think: the first sample, scored without think text.
        baseline: units of the run to compare with.
    """
    per_sample = [benchmark.units(sample.scored) for sample in samples]
    units, counts, hits = averaged(per_sample), _counts(samples, profile), _hits(samples)
    missing = questions - min(len(sample.scored) for sample in samples)
    several = len(samples) > 1
    cut = benchmark.units(without_think) if without_think else []
    return Result(
        benchmark=benchmark,
        units=units,
        estimate=statistics.estimate(units),
        withheld=_withheld(counts.paths, missing, questions, max_failed),
        as_original=100 * fmean(unit.value for unit in units) if units else None,
        others={
            name: statistics.estimate(averaged([score(sample.scored) for sample in samples]))
            for name, score in benchmark.other_scores.items()
        },
        table=benchmark.table(samples[0].scored),
        questions=questions,
        missing=missing,
        counts=counts,
        spread=_spread(per_sample) if several else None,
        pass_at={k: statistics.pass_at_k(hits, k) for k in _powers(len(samples))},
        agreement=statistics.agreement(hits) if several else None,
        without_think=statistics.estimate(cut),
        difference=statistics.paired_difference(units, baseline) if baseline else None,
    )


def _counts(samples: Sequence[Sample], profile: Profile) -> Counts:
    scored = [one for sample in samples for one in sample.scored]
    predictions = [one for sample in samples for one in sample.predictions]
    right = [one.verdict.hit for one in scored if one.verdict.path == "rule"]
    lengths = [len(one.text) for one in predictions]
    tokens = [one.tokens for one in predictions if one.tokens is not None]
    cut = [pair for pair in zip(predictions, scored, strict=True) if pair[0].truncated]
    return Counts(
        paths=Counter("unread" if one.verdict.unread else one.verdict.path for one in scored),
        by_rule=100 * fmean(right) if right else None,
        truncated=len(cut),
        truncated_right=sum(one.verdict.hit for _, one in cut),
        not_extracted=sum(one.verdict.extracted is None for one in scored if one.verdict.known),
        changed_by_storage=sum(_changed(one.text, profile) for one in predictions),
        characters={"mean": fmean(lengths), "median": float(median(lengths))},
        tokens=fmean(tokens) if tokens else None,
    )


def averaged(per_sample: Sequence[Sequence[Unit]]) -> list[Unit]:
    """Units of all samples with their mean values; known where any sample knows them."""
    if len(per_sample) == 1:
        return list(per_sample[0])
    found: dict[str, list[Unit]] = {}
    for units in per_sample:
        for unit in units:
            found.setdefault(unit.key, []).append(unit)
    merged = []
    for key, same in found.items():
        known = [unit for unit in same if unit.known] or same
        value = fmean(unit.value for unit in known)
        merged.append(Unit(key, value, same[0].cluster, any(unit.known for unit in same)))
    return merged


def _withheld(paths: Mapping[str, int], missing: int, questions: int, max_failed: float) -> str:
    outputs = sum(paths.values())
    why = []
    if missing:
        why.append(f"{missing:,} of {questions:,} questions have no prediction")
    if unjudged := paths.get("unjudged", 0):
        why.append(f"{unjudged:,} of {outputs:,} outputs need a judge, and none was asked")
    failed = paths.get("failed", 0)
    if failed > max_failed * outputs:
        limit = f"judge.max_failed={max_failed:g}"
        why.append(f"no verdict on {failed:,} of {outputs:,} outputs ({limit})")
    return "; ".join(why)


def _changed(text: str, profile: Profile) -> bool:
    scored = scored_text(text)
    return stored(scored, profile) != scored


def _hits(samples: Sequence[Sample]) -> dict[str, list[bool]]:
    hits: dict[str, list[bool]] = {}
    for sample in samples:
        for prediction, one in zip(sample.predictions, sample.scored, strict=True):
            if one.verdict.known:
                hits.setdefault(prediction.index, []).append(one.verdict.hit)
    return hits


def _spread(per_sample: Sequence[Sequence[Unit]]) -> statistics.Spread | None:
    scores = [statistics.estimate(units) for units in per_sample]
    return statistics.spread([score.value for score in scores if score is not None])


def _powers(samples: int) -> list[int]:
    """1, 2, 4 and so on up to the number of samples; none for a single one."""
    return [2**power for power in range(samples.bit_length())] if samples > 1 else []
