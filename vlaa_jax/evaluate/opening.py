"""The questions and the judge that settings name, opened before anything large is loaded."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from vlaa_jax.evaluate.benchmarks import benchmark_named
from vlaa_jax.evaluate.miniature.judge_server import answer
from vlaa_jax.evaluate.miniature.tables import write_tables
from vlaa_jax.evaluate.nouns import Benchmark
from vlaa_jax.evaluate.questions import Questions, open_questions
from vlaa_jax.parallel import hosts
from vlaa_jax.pipeline.local_server import LocalServer
from vlaa_jax.schema import UserError
from vlaa_jax.settings.evaluate import EMBEDDED, EvaluateSettings

Found = Sequence[tuple[Benchmark, Questions]]


def with_scripted_judge(
    settings: EvaluateSettings, stack: contextlib.ExitStack
) -> EvaluateSettings:
    """The miniature brings its own judge, over real HTTP."""
    if settings.data.root != EMBEDDED or settings.judge.url:
        return settings
    server = stack.enter_context(LocalServer(answer))
    judge = dataclasses.replace(settings.judge, url=server.url, model="scripted", key_env="")
    return dataclasses.replace(settings, judge=judge)


def open_all(settings: EvaluateSettings, drawn: Path, name: str = "data.root") -> Found:
    """Every benchmark with its questions.

    Args:
        settings: root, names and limit.
        drawn: where the miniature is written, if it is asked for.
        name: of the setting that holds the root.

    Raises:
        UserError: the root or one of its tables cannot be used.
    """
    data = settings.data
    root = Path(data.root).expanduser()
    if data.root == EMBEDDED:
        root = drawn
        if hosts.is_writer():  # the others may be reading what is there
            write_tables(root)
    elif not data.root or not root.is_dir():
        raise UserError(f"{name}: {data.root!r} is no directory with tables of benchmarks")
    check = data.check_digest and data.root != EMBEDDED
    return [
        (one, open_questions(one, root, check_digest=check).limited(data.limit))
        for one in map(benchmark_named, data.benchmarks)
    ]
