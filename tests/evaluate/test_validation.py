"""Benchmark scores as a function of parameters."""

import pytest

from stub_server import StubServer
from vlaa_jax.evaluate.generate import Generated
from vlaa_jax.evaluate.miniature.judge_server import scripted_reply
from vlaa_jax.evaluate.miniature.tables import write_tables
from vlaa_jax.evaluate.opening import open_all
from vlaa_jax.evaluate.validation import BenchmarkValidation, prepared
from vlaa_jax.schema import UserError
from vlaa_jax.settings.build import build
from vlaa_jax.settings.evaluate import EvaluateSettings
from vlaa_jax.settings.grpo import GrpoSettings


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
        replies = tmp_path / "judge"
        found = open_all(settings, tmp_path / "unused")
        validate = BenchmarkValidation(settings, Parrot(), replies, found)
        nothing = validate({"said": "I cannot say"})
        asked = len(server.requests)
        assert asked and validate({"said": "I cannot say"}) == nothing
        assert len(server.requests) == asked
        letter = validate({"said": "<answer>A</answer>"})
    assert nothing["benchmark/mathvista"] == 0.0 < letter["benchmark/mathvista"]
    assert letter["benchmark/mathvista_unknown_frac"] == 0.0


def _training(**benchmarks):
    return build(GrpoSettings, {"benchmarks": benchmarks})


def _refused(settings, workdir, why):
    with pytest.raises(UserError, match=why), prepared(settings, workdir):
        pass


def test_without_a_judge_it_is_refused_before_a_trainer_begins(tmp_path):
    write_tables(tmp_path)
    settings = _training(root=str(tmp_path), check_digest=False)
    _refused(settings, tmp_path, r"MathVista needs a judge for some outputs: set judge\.url")


def test_a_root_without_tables_is_refused_by_the_name_of_its_setting(tmp_path):
    settings = build(GrpoSettings, {"benchmarks": {"root": "none"}, "judge": {"url": "http://a"}})
    _refused(settings, tmp_path, r"benchmarks\.root: 'none' is no directory")


def test_without_benchmarks_there_is_nothing_to_measure(tmp_path):
    with prepared(_training(), tmp_path) as benchmarks:
        assert benchmarks is None
