"""The word before a run that will hardly fit."""

from types import SimpleNamespace

import pytest

from configs.grpo import get_config
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.plan.__main__ import read_settings
from vlaa_jax.plan.check import chip_here, memory_problem

THREE = QwenVLConfig.RELEASED["Qwen2.5-VL-3B"]


def devices(kind, count):
    return [SimpleNamespace(device_kind=kind)] * count


def settings_of(fsdp):
    config = get_config("3b")
    config.mesh.fsdp = fsdp
    return read_settings(config.to_dict())


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "TPU v5e"),
        ("TPU v5p", "TPU v5p"),
        ("TPU v5", "TPU v5p"),
        ("TPU v6 lite", "TPU v6e"),
        ("NVIDIA H200", "NVIDIA H200"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
    ],
)
def test_devices_are_known_by_what_jax_calls_them(kind, name):
    assert chip_here(SimpleNamespace(device_kind=kind)).name == name


def test_a_run_that_fits_or_whose_device_is_unknown_is_left_alone():
    assert memory_problem(settings_of(16), THREE, devices("TPU v5 lite", 16)) == ""
    assert memory_problem(settings_of(1), THREE, devices("cpu", 1)) == ""


def test_a_run_that_does_not_fit_is_told_what_to_change():
    said = memory_problem(settings_of(1), THREE, devices("NVIDIA H200", 1))
    assert "GiB of a device's 105" in said
    assert "algo.micro_prompts=8" in said
