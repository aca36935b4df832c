"""``python -m vlaa_jax.evaluate``: scores predictions that are already there."""

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vlaa_jax import disk
from vlaa_jax.evaluate.benchmarks import BENCHMARKS, benchmark_named
from vlaa_jax.evaluate.judge import RecordedJudge, refuse_without_judge
from vlaa_jax.evaluate.predictions import read_predictions
from vlaa_jax.evaluate.progress import Progress
from vlaa_jax.evaluate.questions import open_questions
from vlaa_jax.evaluate.report.write import summary_of, text_table, write_verdicts
from vlaa_jax.evaluate.score import Scorer
from vlaa_jax.evaluate.scoring.profiles import PROFILES, profile_named
from vlaa_jax.evaluate.scoring_run import Scoring, rows_of_file, score_benchmark
from vlaa_jax.schema import UserError
from vlaa_jax.settings.evaluate import JudgeSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        started = time.monotonic()
        scoring = asyncio.run(_score(options))
        seconds = time.monotonic() - started
        summary = summary_of(scoring.result) | {"profile": options.profile, "seconds": seconds}
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            write_verdicts(options.out / f"{scoring.result.benchmark.name}.jsonl", scoring)
            disk.write_json(options.out / "summary.json", summary)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the judge's replies so far are recorded", file=sys.stderr)
        return 130
    print(json.dumps(summary) if options.json else text_table([scoring.result]))
    return 0


async def _score(options: argparse.Namespace) -> Scoring:
    benchmark, profile = benchmark_named(options.benchmark), profile_named(options.profile)
    settings = JudgeSettings(
        url=options.judge_url,
        model=options.judge_model,
        key_env=options.judge_key_env,
        concurrency=options.judge_concurrency,
        rules_only=options.rules_only,
    )
    recorded = bool(options.judge_replies and options.judge_replies.is_file())
    if options.judge_replies and not recorded and not settings.url:
        raise UserError(f"--judge-replies: {options.judge_replies} is no file, and no --judge-url")
    refuse_without_judge([benchmark], settings, recorded)
    file = read_predictions(options.file)
    if options.data:
        rows = open_questions(benchmark, options.data, check_digest=not options.any_digest).rows
    else:
        rows = rows_of_file(benchmark, file)
    async with contextlib.AsyncExitStack() as stack:
        judge = None
        if settings.url or recorded:
            replies = options.judge_replies or options.file.with_suffix(".judge.jsonl")
            judge = RecordedJudge(settings, replies)
            stack.push_async_callback(judge.aclose)
        console = Console(stderr=True, quiet=judge is None)
        progress = Progress(console, f"{benchmark.title}: verdicts", len(file.predictions))
        return await score_benchmark(
            Scorer(benchmark, profile, judge, progress.step),
            rows,
            file.predictions,
            # A file alone does not tell how many questions it leaves out.
            questions=0 if options.data else benchmark.size,
            max_failed=settings.max_failed,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vlaa_jax.evaluate", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="score")
    score = commands.add_parser("score", help="score a file of predictions")
    score.add_argument("file", type=Path, help="xlsx, tsv, json or jsonl with index and prediction")
    score.add_argument("--benchmark", required=True, choices=list(BENCHMARKS))
    score.add_argument("--data", type=Path, help="directory with the benchmark's table or original")
    score.add_argument("--any-digest", action="store_true", help="take a table of your own")
    score.add_argument("--profile", default="2026-08", choices=list(PROFILES))
    score.add_argument("--judge-url", default="", help="OpenAI-compatible endpoint")
    score.add_argument("--judge-model", default=JudgeSettings.model)
    score.add_argument("--judge-key-env", default=JudgeSettings.key_env)
    score.add_argument("--judge-concurrency", type=int, default=8)
    score.add_argument("--judge-replies", type=Path, help="recorded replies, read and added to")
    score.add_argument("--rules-only", action="store_true", help="sub-score without a judge")
    score.add_argument("--out", type=Path, help="folder for summary.json and the verdicts")
    score.add_argument("--json", action="store_true", help="print one line of JSON")
    return parser
