"""Outputs from the project's engine: the embedded checkpoint on the miniature."""

import asyncio
from pathlib import Path

import pytest

from vlaa_jax.evaluate.benchmarks import benchmark_named
from vlaa_jax.evaluate.generate import jobs_of
from vlaa_jax.evaluate.miniature.tables import write_tables
from vlaa_jax.evaluate.own_engine import OwnEngine
from vlaa_jax.evaluate.questions import open_questions
from vlaa_jax.settings.build import build
from vlaa_jax.settings.evaluate import EvaluateSettings


def _engine(**generation):
    values = {"new_tokens": 8, "batch": 2, "system_prompt": "Answer.", **generation}
    model = {"checkpoint": "embedded", "dtype": "float32"}
    return OwnEngine(build(EvaluateSettings, {"generation": values, "model": model}))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Of four questions of one padded length, so that little is compiled."""
    root: Path = tmp_path_factory.mktemp("questions")
    write_tables(root)
    benchmark = benchmark_named("mathvista")
    questions = open_questions(benchmark, root, check_digest=False)

    def of(samples):
        found = jobs_of(benchmark, questions, samples)
        return [job for job in found if int(job.index) % 2 == 0]

    return of


def _texts(engine, wanted):
    found = {}
    asyncio.run(engine.generate(wanted, lambda job, out: found.__setitem__(job.name, out)))
    return found


def test_greedy_outputs_do_not_depend_on_their_neighbours(jobs):
    engine, wanted = _engine(), jobs(1)
    whole = _texts(engine, wanted)
    assert set(whole) == {job.name for job in wanted}
    part = _texts(engine, wanted[1:4])
    assert part == {job.name: whole[job.name] for job in wanted[1:4]}
    assert all(out.tokens == 8 for out in whole.values() if out.finish_reason == "length")
    assert all(out.tokens <= 8 for out in whole.values())


def test_samples_differ_and_are_drawn_alike_by_a_run_that_was_cut(jobs):
    engine, wanted = _engine(samples=3, temperature=1.0), jobs(3)
    whole = _texts(engine, wanted)
    assert len({out.text for out in whole.values()}) > 6
    rest = [job for job in wanted if job.index == "2" and job.sample > 0]
    assert _texts(engine, rest) == {job.name: whole[job.name] for job in rest}
