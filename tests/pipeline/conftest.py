import pytest

import vlaa_jax.pipeline.run as run_module
from pipeline_cases import settings_for
from vlaa_jax.pipeline.embedded import draw
from vlaa_jax.pipeline.local_server import LocalServer
from vlaa_jax.pipeline.scoring import RewardScorer
from vlaa_jax.pipeline.scripted_models import MODELS, ScriptedModels


class SharedScorer(RewardScorer):
    """One set of parser processes for all runs; starting them takes longer than a run."""

    def close(self):
        pass


@pytest.fixture(scope="session", autouse=True)
def scorer():
    shared = SharedScorer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "RewardScorer", lambda: shared)
        yield shared
    RewardScorer.close(shared)


class CountingModels(ScriptedModels):
    """The scripted models, which also say what they were asked."""

    def __init__(self, drawn):
        super().__init__(drawn)
        self.asked = []  # (model, body) in order of arrival

    async def __call__(self, call):
        self.asked.append((call.json()["model"], call.body))
        return await super().__call__(call)

    def count(self, step):
        return sum(model == MODELS[step] for model, _ in self.asked)


@pytest.fixture
def models():
    return CountingModels(draw(40, 0))


@pytest.fixture
def served(models):
    """Settings of a run on 40 drawings against a server that counts."""
    with LocalServer(models) as server:
        yield settings_for(server.url)
