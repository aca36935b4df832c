"""Benchmark scores as a function of parameters."""

import pytest

from stub_server import StubServer
from vlaa_jax.evaluate.generate import Generated
from vlaa_jax.evaluate.miniature.judge_server import scripted_reply
from vlaa_jax.evaluate.miniature.tables import write_tables
from vlaa_jax.evaluate.validation import BenchmarkValidation
from vlaa_jax.schema import UserError
from vlaa_jax.settings.build import build
from vlaa_jax.settings.evaluate import EvaluateSettings


class Parrot:
    """Says what its parameters hold."""

    def use(self, params):
        self.said = params["said"]

    async def generate(self, jobs, done):
        for job in jobs:
            assert job.images()
            done(job, Generated(self.said, "stop"))

    def describe(self):
        return {}


def _settings(root, **judge):
    names = ("wemath", "mathvista")
    data = {"root": str(root), "benchmarks": names, "check_digest": False}
    return build(EvaluateSettings, {"data": data, "judge": {"key_env": "", **judge}})


def test_scores_follow_the_parameters_and_answers_are_judged_once(tmp_path):
    write_tables(tmp_path)
    with StubServer(lambda r: scripted_reply(r["messages"][-1]["content"])) as server:
        settings = _settings(tmp_path, url=server.url)
        validate = BenchmarkValidation(settings, Parrot(), tmp_path / "judge")
        nothing = validate({"said": "I cannot say"})
        asked = len(server.requests)
        assert asked and validate({"said": "I cannot say"}) == nothing
        assert len(server.requests) == asked
        letter = validate({"said": "<answer>A</answer>"})
    assert nothing["benchmark/mathvista"] == 0.0 < letter["benchmark/mathvista"]
    assert letter["benchmark/mathvista_unknown_frac"] == 0.0


def test_without_a_judge_it_is_refused_when_it_is_made(tmp_path):
    write_tables(tmp_path)
    with pytest.raises(UserError, match="MathVista needs a judge"):
        BenchmarkValidation(_settings(tmp_path), Parrot(), tmp_path / "judge")
