"""Recorded plans (benchmarks/results/plans) against what parameters and optimizer must take."""

import json
import math
import re
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
    sizes, (_, fsdp, tensor) = sizes_of(config), found["mesh"]
    tower = 0 if "vision" in settings.model.freeze else sizes.tower  # not cut over tensor
    by_hand = 4 * 4 * ((sizes.total - sizes.tower) / tensor + tower) / fsdp
    assert taken == pytest.approx(by_hand, rel=0.01)


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_decoding_and_gradients_keep_near_their_floors(path):
    found = json.loads(path.read_text())
    programs, sizes = found["programs"], sizes_of(model_config(found["model"]))
    data, fsdp, tensor = found["mesh"]
    on_tpu = found["topology"].startswith("v")  # what GPUs do instead is in docs/planning.md
    if fsdp > 1 and on_tpu and tensor == 1:  # tensor parallelism sends activations as well
        # Parameters gathered twice in bfloat16, gradients reduced once in float32: whole arrays.
        floor = (2 * 2 + 4) * sizes.total
        frozen = 8 * sizes.tower if found["task"] == "sft" else 0
        # An embedding of its own (7B) is looked up where it lies.
        assert 0.9 * (floor - frozen) <= sent(programs["gradients"]) <= 1.2 * floor
        assert found["task"] == "sft" or sent(programs["score"]) >= 0.9 * floor / 4
    if found["task"] == "grpo":
        text, at_once = model_config(found["model"]).text, found["at_once"]
        own = at_once["rollout_tensor"]
        weights = 2 * (sizes.layers + (sizes.head or sizes.embedding)) / own
        held = 2048 + 4 * (1024 + 64)
        kv = 2 * text.layers * max(text.kv_heads / own, 1) * text.head_dim * 2
        slots = at_once["batch_prompts"] / (data * fsdp * tensor / own)
        floor = 64 * (weights + slots * held * kv)
        crossed = 1e9 * programs["burst"]["hbm_gb"]
        assert crossed >= 0.95 * floor
        if on_tpu:
            assert crossed <= (1.1 if found["topology"].startswith("v5e") else 1.4) * floor
        assert sum(programs["burst"]["sent_mib"].values()) < 8 or own > 1


def sent(program):
    """Bytes that a device sends in one run."""
    turns = [(re.findall(r"x(\d+)", kind), mib) for kind, mib in program["sent_mib"].items()]
    return 2**20 * sum(math.prod(map(int, loops)) * mib for loops, mib in turns)


def test_3b_on_v5e_16_keeps_two_gigabytes_free():
    found = json.loads(next(path for path in PLANS if path.stem == "3b_v5e-16").read_text())
    assert max(row["gib"] for row in found["programs"].values()) < 14


def test_there_are_recorded_plans():
    assert len(PLANS) >= 3
