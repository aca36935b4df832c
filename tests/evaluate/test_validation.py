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


def test_a_judge_that_is_gone_stops_the_start_of_a_training_and_no_later_step(tmp_path):
    write_tables(tmp_path)
    gone = []
    with StubServer(lambda r: 500 if gone else scripted_reply(r["messages"][-1]["content"])) as it:
        settings = _settings(tmp_path, url=it.url, retries=0)
        found = open_all(settings, tmp_path / "unused")
        parts = (Parrot(), tmp_path / "judge", found)
        validate = BenchmarkValidation(settings, *parts)
        validate({"said": "I cannot say"})
        gone.append("now")
        asked = len(it.requests)
        later = validate({"said": "hard to see"})
        assert len(it.requests) - asked < 5 + settings.judge.concurrency  # then it is given up
        assert later["benchmark/mathvista_unknown_frac"] == 1.0
        assert "benchmark/mathvista" not in later
        assert validate({"said": "I cannot say"})["benchmark/mathvista_unknown_frac"] == 0.0
        with pytest.raises(UserError, match=r"judge\.url .* HTTP 500"):
            BenchmarkValidation(settings, *parts)({"said": "hard to see"})


def test_names_are_refused_as_the_setting_that_holds_them():
    with pytest.raises(UserError, match=r"^benchmarks\.names: names a benchmark twice"):
        _training(names=("wemath", "wemath"))


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
