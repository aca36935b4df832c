"""Recorded plans (benchmarks/results/plans) against what parameters and optimizer must take."""

import json
from pathlib import Path

import pytest
from jax.sharding import AbstractMesh

from configs.grpo import get_config
from configs.sft import get_config as sft_config
from vlaa_jax.parallel.mesh import AXES
from vlaa_jax.plan.__main__ import model_config, read_settings
from vlaa_jax.plan.formulas import sizes_of
from vlaa_jax.plan.programs import bytes_on_device, make_model

PLANS = sorted((Path(__file__).parents[2] / "benchmarks/results/plans").glob("*.json"))


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_arguments_take_what_parameters_and_optimizer_must(path):
    found = json.loads(path.read_text())
    assert found["compiled"]
    assert not [row for row in found["programs"].values() if "error" in row]
    make = {"grpo": get_config, "sft": sft_config}[found["task"]]
    options = make("").to_dict()
    options["model"]["checkpoint"] = found["model"]
    settings, config = read_settings(options), model_config(found["model"])
    model = make_model(settings, config, AbstractMesh(tuple(found["mesh"]), AXES))
    taken = found["programs"]["apply"]["argument_bytes"]
    must = bytes_on_device((model.state, model.state.trainable))
    assert 0 <= taken - must < 2e-3 * must  # a TPU's tiles are filled up
    # Masters, two moments and a gradient in float32; biases and norms are whole on every device.
    frozen = sizes_of(config).tower if "vision" in settings.model.freeze else 0
    _, fsdp, tensor = found["mesh"]
    by_hand = 4 * 4 * (sizes_of(config).total - frozen) / (fsdp * tensor)
    assert taken == pytest.approx(by_hand, rel=0.01)


def test_there_are_recorded_plans():
    assert len(PLANS) >= 3
