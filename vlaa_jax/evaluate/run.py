"""The task: questions, outputs, verdicts, report. Every part can be cut off and goes on."""

import asyncio
import contextlib
import dataclasses
import hashlib
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from vlaa_jax import __version__, disk
from vlaa_jax.evaluate.benchmarks import benchmark_named
from vlaa_jax.evaluate.generate import Generated, Generator, Job, Outputs, dealt, jobs_of
from vlaa_jax.evaluate.judge import RecordedJudge, replies_of
from vlaa_jax.evaluate.ledger import Ledger
from vlaa_jax.evaluate.nouns import Benchmark, Unit
from vlaa_jax.evaluate.opening import Found, open_all, with_scripted_judge
from vlaa_jax.evaluate.predictions import SUFFIXES, Prediction, read_predictions, write_predictions
from vlaa_jax.evaluate.progress import Progress
from vlaa_jax.evaluate.report.page import page
from vlaa_jax.evaluate.report.write import (
    leaderboard_average,
    read_units,
    summary_of,
    text_table,
    write_csv,
    write_units,
    write_verdicts,
)
from vlaa_jax.evaluate.score import Scorer
from vlaa_jax.evaluate.scoring.extract import scored_text
from vlaa_jax.evaluate.scoring.profiles import profile_named
from vlaa_jax.evaluate.scoring_run import Scoring, score_benchmark
from vlaa_jax.evaluate.served import Served
from vlaa_jax.parallel import hosts
from vlaa_jax.schema import Summary, UserError
from vlaa_jax.settings.evaluate import EvaluateSettings

_AS_IT_IS: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
KEPT = "what was answered and judged is kept, the same command goes on from there"
LOCK = "lock"
_PROMPTS = Path(__file__).parent / "prompts"


def run(settings: EvaluateSettings, workdir: Path, console: Console) -> Summary:
    """Evaluates in a run directory, from wherever that stands to the report.

    Raises:
        UserError: a benchmark needs a judge and none is set, the data or the checkpoint cannot be
            used, or the directory holds outputs that were made otherwise.
    """
    began = time.monotonic()
    benchmarks = [benchmark_named(name) for name in settings.data.benchmarks]
    with contextlib.ExitStack() as stack:
        stack.enter_context(disk.refusals(workdir, KEPT))
        if hosts.is_writer():
            stack.enter_context(Ledger(workdir / LOCK))  # one run at a time
        settings = with_scripted_judge(settings, stack)
        replies = replies_of(benchmarks, settings.judge, workdir)
        earlier = Path(settings.scoring.baseline).expanduser() / "units.json"
        baseline = read_units(earlier) if settings.scoring.baseline else {}
        found = hosts.after_writer(
            lambda: open_all(settings, workdir / "questions"), "the questions"
        )
        if not (workdir / LOCK).exists():
            raise UserError(f"--workdir={workdir}: the hosts do not share this directory")
        outputs, made_by = asyncio.run(_outputs(settings, found, workdir, console))
        if not hosts.is_writer():
            hosts.meet("the scores", apart=True)
            return Summary(workdir, {})
        scorings, calls = asyncio.run(_score(settings, found, outputs, baseline, replies, console))
        provenance = _provenance(settings, found, made_by) | calls
        _report(settings, scorings, found, provenance, workdir)
        hosts.meet("the scores", apart=True)
    results = [scoring.result for scoring in scorings]
    console.print(text_table(results, settings.name), **_AS_IT_IS)
    report = f"report: {workdir / 'report.html'}  ({time.monotonic() - began:,.0f} s)"
    console.print(report, **_AS_IT_IS)
    figures = {r.benchmark.name: r.headline for r in results if r.headline is not None}
    average = leaderboard_average(results)
    return Summary(workdir, figures | ({} if average is None else {"average": average}))


def _write_config(settings: EvaluateSettings, workdir: Path) -> None:
    disk.write_json(workdir / "config.json", dataclasses.asdict(settings))


# -- outputs

Predictions = dict[str, list[Prediction]]


async def _outputs(
    settings: EvaluateSettings, found: Found, workdir: Path, console: Console
) -> tuple[Predictions, Mapping[str, Any]]:
    """The predictions of each benchmark, and what made them."""
    if settings.generation.source == "file":
        folder = Path(settings.generation.files).expanduser()
        files = {one.name: _file_of(one, folder) for one, _ in found}
        read = {name: read_predictions(file).predictions for name, file in files.items()}
        if hosts.is_writer():
            _write_config(settings, workdir)
        return read, {"source": "file", **{name: str(file) for name, file in files.items()}}
    generator = _generator(settings, console)
    digests = {f"data {one.name}": questions.digest for one, questions in found}
    made_by = {**generator.describe(), **digests, "question prompt": _digest_of("dynamath.txt")}
    jobs = {
        one.name: list(jobs_of(one, questions, settings.generation.samples))
        for one, questions in found
    }
    with contextlib.closing(Outputs(workdir, made_by)) as outputs:
        if hosts.is_writer():
            _write_config(settings, workdir)  # only now is it known that this directory is theirs
        missing = {name: dealt(outputs.missing(wanted)) for name, wanted in jobs.items()}
        hosts.meet("the outputs")  # all have seen the same files
        for wanted in missing.values():
            generator.check(wanted)
        for one, _ in found:
            done = len(jobs[one.name]) - len(missing[one.name])
            await _generate(generator, outputs, missing[one.name], done, one, console)
        outputs.close()  # a shared file system may show others no more than what is closed
        hosts.meet("the end of all outputs", apart=True)
        outputs.read_others()
        predictions = {name: outputs.of(wanted) for name, wanted in jobs.items()}
    if hosts.is_writer():
        _write_files(found, predictions, workdir, settings.run.predictions)
    return predictions, made_by


def _generator(settings: EvaluateSettings, console: Console) -> Generator:
    if settings.generation.source == "server":
        return Served(settings.generation, partial(console.print, **_AS_IT_IS))
    from vlaa_jax.evaluate.own_engine import OwnEngine  # imports jax

    return OwnEngine(settings)


async def _generate(
    generator: Generator,
    outputs: Outputs,
    jobs: Sequence[Job],
    others: int,
    benchmark: Benchmark,
    say: Console,
) -> None:
    """All jobs; ``others`` are there already or fall to other hosts."""
    progress = Progress(say, f"{benchmark.title}: outputs", len(jobs), others)

    def done(job: Job, generated: Generated) -> None:
        outputs.add(job, generated)
        progress.step()
        hosts.leave_alone("between two outputs")

    await generator.generate(jobs, done)
    progress.end()


def _file_of(benchmark: Benchmark, folder: Path) -> Path:
    """``DATASET.suffix``, or VLMEvalKit's ``MODEL_DATASET.suffix``."""
    if not folder.is_dir():
        raise UserError(f"generation.files: {folder} is no directory")
    name = benchmark.dataset
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in SUFFIXES and (path.stem == name or path.stem.endswith(f"_{name}"))
    ]
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise UserError(f"{folder}: wants one file of predictions for {name}, found {found}")
    return files[0]


def _write_files(found: Found, predictions: Predictions, workdir: Path, suffix: str) -> None:
    """The first samples in the form that VLMEvalKit scores.

    Its models cut out the answer before they hand over a prediction, so that is done here; the
    whole text stands in a column of its own.
    """
    folder = workdir / "predictions"
    folder.mkdir(exist_ok=True)
    for one, questions in found:
        texts = {p.index: p.text for p in predictions[one.name] if p.sample == 0}
        rows = [
            {**row, "prediction": scored_text(text), "output": text}
            for row in questions.rows
            if (text := texts.get(str(row["index"]))) is not None
        ]
        write_predictions(folder / f"{one.dataset}.{suffix}", rows)


# -- verdicts


async def _score(
    settings: EvaluateSettings,
    found: Found,
    outputs: Predictions,
    baseline: Mapping[str, Sequence[Unit]],
    replies: Path,
    console: Console,
) -> tuple[list[Scoring], dict[str, Any]]:
    """Results, and what the judge was asked for them."""
    profile = profile_named(settings.scoring.profile)
    scorings = []
    async with contextlib.AsyncExitStack() as stack:
        judge: RecordedJudge | None = None
        if settings.judge.url or replies.is_file():
            judge = RecordedJudge(settings.judge, replies)
            stack.push_async_callback(judge.aclose)
        for benchmark, questions in found:
            predictions = outputs[benchmark.name]
            if not predictions:
                raise UserError(f"{benchmark.title}: there are no predictions")
            if settings.data.limit:
                indices = {row["index"] for row in questions.rows}
                predictions = [one for one in predictions if one.index in indices]
            progress = Progress(console, f"{benchmark.title}: verdicts", len(predictions))

            def done(progress: Progress = progress) -> None:
                progress.step()
                hosts.leave_alone("between two verdicts")

            scorings.append(
                await score_benchmark(
                    Scorer(benchmark, profile, judge, done),
                    questions.rows,
                    predictions,
                    max_failed=settings.judge.max_failed,
                    both=settings.scoring.both,
                    baseline=baseline.get(benchmark.name),
                )
            )
            progress.end()
    return scorings, {} if judge is None else judge.calls()


# -- report


def _provenance(
    settings: EvaluateSettings, found: Found, made_by: Mapping[str, Any]
) -> dict[str, Any]:
    profile = profile_named(settings.scoring.profile)
    judge = settings.judge
    return {
        "vlaa_jax": __version__,
        "commit": _commit(),
        "profile": f"{profile.name} (VLMEvalKit {profile.commit})",
        "judge": judge.model if judge.url or not judge.rules_only else "none",
        "judge repeat": judge.repeat,
        "judge prompts": _digest_of("*_*.txt"),
        "limit": settings.data.limit or "all questions",
        **{f"outputs: {key}": value for key, value in made_by.items()},
        **{f"data: {one.name}": f"{q.source}, MD5 {q.digest}" for one, q in found},
    }


def _report(
    settings: EvaluateSettings,
    scorings: Sequence[Scoring],
    found: Found,
    provenance: Mapping[str, Any],
    workdir: Path,
) -> None:
    results = [scoring.result for scoring in scorings]
    (workdir / "verdicts").mkdir(exist_ok=True)
    for scoring in scorings:
        write_verdicts(workdir / "verdicts" / f"{scoring.result.benchmark.name}.jsonl", scoring)
    write_units(workdir / "units.json", results)
    write_csv(workdir / "leaderboard.csv", results, settings.name)
    summary = {
        "name": settings.name,
        "average": leaderboard_average(results),
        "benchmarks": [summary_of(result) for result in results],
        "provenance": provenance,
    }
    disk.write_json(workdir / "summary.json", summary)
    pairs = [(scoring, q) for scoring, (_, q) in zip(scorings, found, strict=True)]
    html = page(settings.name, pairs, provenance, settings.run.wrong_shown)
    disk.write_text(workdir / "report.html", html)


def _commit() -> str:
    """Of the source tree that this runs from; empty for an installed package."""
    command = ["git", "-C", str(_PROMPTS), "rev-parse", "--show-prefix", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    place, _, commit = done.stdout.strip().partition("\n")
    # An environment inside somebody's repository has their commit, not ours.
    return commit if place == "vlaa_jax/evaluate/prompts/" else ""


def _digest_of(pattern: str) -> str:
    """Of some prompts, so that a change of wording is seen."""
    digest = hashlib.sha256()
    for file in sorted(_PROMPTS.glob(pattern)):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
