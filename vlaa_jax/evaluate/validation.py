"""Benchmark scores of a policy that trains: a callable from parameters to metrics.

``main`` builds it and hands it to a trainer, which knows nothing of benchmarks.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from vlaa_jax.evaluate.benchmarks import benchmark_named
from vlaa_jax.evaluate.generate import Generated, Generator, Job, jobs_of
from vlaa_jax.evaluate.judge import RecordedJudge, refuse_without_judge
from vlaa_jax.evaluate.nouns import Benchmark
from vlaa_jax.evaluate.predictions import Prediction
from vlaa_jax.evaluate.questions import Questions, open_questions
from vlaa_jax.evaluate.scoring.profiles import profile_named
from vlaa_jax.evaluate.scoring_run import score_benchmark
from vlaa_jax.settings.evaluate import EvaluateSettings


class PolicyEngine(Generator, Protocol):
    """A generator whose parameters are given to it."""

    def use(self, params: Mapping[str, Any]) -> None:
        """Decode with these from now on."""
        ...


class BenchmarkValidation:
    """Answers the questions with the parameters of the moment and scores the answers.

    Args:
        settings: benchmarks, how many questions of each, decoding, judge and profile.
        engine: of the structure that trains.
        replies: record of the judge; the same answer is judged once in a whole run.

    Raises:
        UserError: a benchmark needs a judge and none is set, or its data cannot be used.
    """

    def __init__(self, settings: EvaluateSettings, engine: PolicyEngine, replies: Path) -> None:
        self._settings, self._engine, self._replies = settings, engine, replies
        benchmarks = [benchmark_named(name) for name in settings.data.benchmarks]
        refuse_without_judge(benchmarks, settings.judge, replies.is_file())
        data, root = settings.data, Path(settings.data.root).expanduser()
        self._found = [
            (one, open_questions(one, root, check_digest=data.check_digest).limited(data.limit))
            for one in benchmarks
        ]

    def __call__(self, params: Mapping[str, Any]) -> dict[str, float]:
        """Scores in percent of what is known, by ``benchmark/NAME``.

        Also ``benchmark/NAME_unknown_frac``, the share of outputs without a verdict.
        """
        self._engine.use(params)
        return asyncio.run(self._measure())

    async def _measure(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        async with contextlib.AsyncExitStack() as stack:
            judge = None
            if self._settings.judge.url or self._replies.is_file():
                judge = RecordedJudge(self._settings.judge, self._replies)
                stack.push_async_callback(judge.aclose)
            for benchmark, questions in self._found:
                metrics |= await self._score(benchmark, questions, judge)
        return metrics

    async def _score(
        self, benchmark: Benchmark, questions: Questions, judge: RecordedJudge | None
    ) -> dict[str, float]:
        predictions: list[Prediction] = []

        def done(job: Job, out: Generated) -> None:
            predictions.append(Prediction(job.index, out.text, job.sample, out.finish_reason))

        samples = self._settings.generation.samples
        await self._engine.generate(list(jobs_of(benchmark, questions, samples)), done)
        profile = profile_named(self._settings.scoring.profile)
        scoring = await score_benchmark(
            benchmark, questions.rows, predictions, judge, profile, both=False
        )
        name, result = f"benchmark/{benchmark.name}", scoring.result
        verdicts = [one.verdict.known for sample in scoring.samples for one in sample.scored]
        metrics = {f"{name}_unknown_frac": 1 - sum(verdicts) / len(verdicts)}
        if result.estimate is not None:
            metrics[name] = result.estimate.value
        return metrics
