"""Benchmark scores of a policy that trains: a callable from parameters to metrics.

``main`` prepares it and hands it to a trainer, which knows nothing of benchmarks.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from vlaa_jax.evaluate.benchmarks import benchmark_named
from vlaa_jax.evaluate.generate import Generated, Generator, Job, jobs_of
from vlaa_jax.evaluate.judge import RecordedJudge, replies_of
from vlaa_jax.evaluate.nouns import Benchmark
from vlaa_jax.evaluate.opening import Found, open_all, with_scripted_judge
from vlaa_jax.evaluate.predictions import Prediction
from vlaa_jax.evaluate.questions import Questions
from vlaa_jax.evaluate.score import Scorer
from vlaa_jax.evaluate.scoring.profiles import profile_named
from vlaa_jax.evaluate.scoring_run import score_benchmark
from vlaa_jax.parallel import hosts
from vlaa_jax.schema import UserError
from vlaa_jax.settings.evaluate import EvaluateSettings
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.settings.sft import SftSettings


class PolicyEngine(Generator, Protocol):
    """A generator whose parameters are given to it."""

    def use(self, params: Mapping[str, Any]) -> None:
        """Decode with these from now on."""
        ...


@contextlib.contextmanager
def prepared(
    settings: GrpoSettings | SftSettings, workdir: Path
) -> "Iterator[Callable[[Any, Any], BenchmarkValidation] | None]":
    """Opens what a training run is to be measured by, before anything large is loaded.

    Yields:
        From the opened checkpoint and the mesh of the trainer to its validation; None where the
        settings name no benchmarks.

    Raises:
        UserError: a benchmark needs a judge and none is set, its data cannot be used, or this is
            one of several hosts.
    """
    if not settings.benchmarks.root:
        yield None
        return
    if hosts.count() > 1:
        raise UserError("benchmarks: are measured on one host; evaluate saved checkpoints instead")
    with contextlib.ExitStack() as stack:
        drawn = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        asked = settings.benchmarks.evaluation(settings.data, settings.judge)
        asked = with_scripted_judge(asked, stack)
        benchmarks = [benchmark_named(name) for name in asked.data.benchmarks]
        replies = replies_of(benchmarks, asked.judge, workdir)
        found = open_all(asked, drawn, "benchmarks.root")

        def build(pretrained: Any, mesh: Any) -> BenchmarkValidation:
            from vlaa_jax.evaluate.own_engine import OwnEngine  # imports jax

            engine = OwnEngine(asked, (pretrained, mesh), settings.rollout.tensor)
            for one, questions in found:
                engine.check(list(jobs_of(one, questions, samples=1)))
            judge = None
            if asked.judge.url or replies.is_file():
                judge = RecordedJudge(asked.judge, replies)  # its record is this run's to the end
                stack.callback(judge.close)
            return BenchmarkValidation(asked, engine, judge, found)

        yield build


class BenchmarkValidation:
    """Answers the questions with the parameters of the moment and scores the answers.

    Args:
        settings: benchmarks, how many questions of each, decoding, judge and profile.
        engine: of the structure that trains.
        judge: None where there is none; the same answer is judged once in a whole run.
        found: the benchmarks and their questions.
    """

    def __init__(
        self,
        settings: EvaluateSettings,
        engine: PolicyEngine,
        judge: RecordedJudge | None,
        found: Found,
    ) -> None:
        self._settings, self._engine, self._judge = settings, engine, judge
        self._found = found

    def __call__(self, params: Mapping[str, Any]) -> dict[str, float]:
        """Scores in percent of what is known, by ``benchmark/NAME``.

        Also ``benchmark/NAME_unknown_frac``, the share of outputs without a verdict.

        Raises:
            UserError: the judge does not answer the first time. Later that leaves outputs without
                a verdict: a run that trains for days outlives its judge.
        """
        self._engine.use(params)
        return asyncio.run(self._measure())

    async def _measure(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        try:
            for benchmark, questions in self._found:
                metrics |= await self._score(benchmark, questions)
            if self._judge is not None:
                self._judge.stops = False
        finally:
            if self._judge is not None:
                await self._judge.rest()
        return metrics

    async def _score(self, benchmark: Benchmark, questions: Questions) -> dict[str, float]:
        predictions: list[Prediction] = []

        def done(job: Job, out: Generated) -> None:
            predictions.append(Prediction(job.index, out.text, job.sample, out.finish_reason))

        samples = self._settings.generation.samples
        await self._engine.generate(list(jobs_of(benchmark, questions, samples)), done)
        profile = profile_named(self._settings.scoring.profile)
        scorer = Scorer(benchmark, profile, self._judge)
        scoring = await score_benchmark(scorer, questions.rows, predictions, both=False)
        name, result = f"benchmark/{benchmark.name}", scoring.result
        verdicts = [one.verdict.known for sample in scoring.samples for one in sample.scored]
        metrics = {f"{name}_unknown_frac": 1 - sum(verdicts) / len(verdicts)}
        if result.estimate is not None:
            metrics[name] = result.estimate.value
        return metrics
