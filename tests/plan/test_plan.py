"""Plans by formulas: mesh, memory, what changes when it does not fit, the command."""

import dataclasses

import jax
import pytest

from configs.grpo import get_config
from configs.sft import get_config as sft_config
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.parallel.mesh import make_mesh
from vlaa_jax.plan.__main__ import model_config, read_settings
from vlaa_jax.plan.chips import CHIPS, GIB, chip_of
from vlaa_jax.plan.formulas import Cut, sizes_of
from vlaa_jax.plan.plan import cut_of, quick_plan, smallest_change, with_more_slots
from vlaa_jax.plan.programs import bytes_on_device, grpo_programs, make_parts, sft_programs
from vlaa_jax.plan.search import candidates, flags_of, ranked
from vlaa_jax.plan.shapes import shapes_of
from vlaa_jax.plan.tasks import formulas_of
from vlaa_jax.plan.topology import device_count
from vlaa_jax.schema import UserError

THREE, SEVEN = (QwenVLConfig.RELEASED[f"Qwen2.5-VL-{size}"] for size in ("3B", "7B"))


def settings_of(variant="3b", **mesh):
    config = get_config(variant)
    config.mesh.update(mesh)
    return read_settings(config.to_dict())


@pytest.mark.parametrize(("config", "billions"), [(THREE, 3.755), (SEVEN, 8.292)])
def test_counted_parameters_are_the_released_models(config, billions):
    assert sizes_of(config).total / 1e9 == pytest.approx(billions, rel=2e-3)


def test_state_takes_what_parameters_and_moments_must():
    settings = settings_of(fsdp=8)
    mesh = make_mesh(fsdp=8, devices=jax.devices()[:8])
    parts = make_parts(settings, THREE, shapes_of(settings, THREE), mesh)
    total = sizes_of(THREE).total
    # Biases and norms, 0.2 % of it, are whole on every device.
    assert bytes_on_device(parts.model.state) == pytest.approx(3 * 4 * total / 8, rel=3e-3)
    assert bytes_on_device(parts.weights) == pytest.approx(2 * total, rel=2e-3)  # whole everywhere
    found = {program.name: program for program in grpo_programs(parts)}
    own = formulas_of(settings, THREE, Cut(1, 8, 1))
    assert own.works()["gradients"][0] == 512 // 16
    assert own.works()["burst"][0] == 512 // 128 * (1024 // 64)
    assert list(own.works()) == list(found)
    lasting = found["apply"].beside + bytes_on_device(parts.model.state)
    assert lasting == pytest.approx(own.kept(), rel=3e-3)


def test_supervised_training_is_planned_too():
    config = sft_config("3b")
    config.mesh.fsdp = 8
    settings = read_settings(config.to_dict())
    mesh = make_mesh(fsdp=8, devices=jax.devices()[:8])
    found = {program.name: program for program in sft_programs(settings, THREE, mesh)}
    own = formulas_of(settings, THREE, Cut(1, 8, 1))
    assert list(own.works()) == list(found) == ["gradients", "apply"]
    state, _ = found["apply"].args
    lasting = found["apply"].beside + bytes_on_device(state)
    assert lasting == pytest.approx(own.kept(), rel=5e-3)  # the vision tower is frozen, in bfloat16
    plan = quick_plan(settings, THREE, CHIPS["v5p"], Cut(1, 8, 1))
    assert plan.fits
    flops = 4 * sizes_of(THREE).total * 2 * settings.data.rows * settings.data.tokens_per_row / 8
    assert 0.9 * flops < plan.rows[0].work.flops * plan.rows[0].runs < 1.6 * flops


def test_a_mesh_that_is_no_mesh_of_the_topology_is_refused():
    with pytest.raises(UserError, match="do not multiply to the 16 devices"):
        cut_of(settings_of(data=1, fsdp=8), 16)
    with pytest.raises(UserError, match=r"cannot be dealt to 64 data shards.*can is 64"):
        cut_of(settings_of(fsdp=64), 64)
    assert cut_of(settings_of(fsdp=4, tensor=2), 16) == Cut(2, 4, 2)


def test_what_does_not_fit_says_the_smallest_change():
    settings, chip = settings_of(), CHIPS["h200"]
    plan = quick_plan(settings, THREE, chip, Cut(1, 1, 1))
    assert not plan.fits

    def fits(own):
        return quick_plan(own, THREE, chip, Cut(1, 1, 1)).fits

    assert smallest_change(settings, 1, fits) == "algo.micro_prompts=8"
    assert quick_plan(settings_of(fsdp=16), THREE, CHIPS["v5e"], Cut(1, 16, 1)).fits


@pytest.mark.parametrize(
    ("make", "variant", "config", "topologies"),
    [
        (get_config, "3b", THREE, "v6e:2x4 v5e:4x4 h100:8 h200:8"),
        (get_config, "7b", SEVEN, "v6e:4x4 v5p:2x2x4"),
        (sft_config, "3b", THREE, "v6e:2x4 v5e:4x4 h100:8 h200:8"),
        (sft_config, "7b", SEVEN, "v6e:4x4 v5p:2x2x4"),
    ],
)
def test_a_model_brings_a_mesh_that_fits(make, variant, config, topologies):
    settings = read_settings(make(variant).to_dict())
    for topology in topologies.split():
        chip, cut = chip_of(topology), cut_of(settings, device_count(topology))
        assert quick_plan(settings, config, chip, cut).fits, topology


def test_sampling_in_more_parts_takes_less_memory_and_as_many_bytes_as_compiled():
    whole, cut = settings_of("7b"), settings_of("7b")
    cut = dataclasses.replace(cut, rollout=dataclasses.replace(cut.rollout, tensor=2))
    mesh = make_mesh(fsdp=8, devices=jax.devices()[:8])
    taken = {}
    for name, own in (("whole", whole), ("cut", cut)):
        own = dataclasses.replace(own, mesh=dataclasses.replace(own.mesh, fsdp=8))
        parts = make_parts(own, SEVEN, shapes_of(own, SEVEN), mesh)
        taken[name] = bytes_on_device(parts.weights)
        found = {program.name: program for program in grpo_programs(parts)}
        caches = bytes_on_device(found["burst"].args[1])
        plan = formulas_of(own, SEVEN, cut_of(own, 8))
        beside = found["burst"].beside - bytes_on_device(parts.weights["vision"])
        assert plan.decoding() == pytest.approx(taken[name] + caches + beside, rel=0.02)
    assert 0.5 < taken["cut"] / taken["whole"] < 0.56  # the tower is not cut
    with pytest.raises(UserError, match=r"rollout.tensor: 3 is no multiple"):
        cut_of(dataclasses.replace(cut, rollout=dataclasses.replace(cut.rollout, tensor=3)), 16)


def test_more_slots_are_offered_up_to_all_prompts_and_take_less_time():
    settings = settings_of(fsdp=16)
    more = list(with_more_slots(settings))
    assert [own.rollout.batch_prompts for own in more] == [256, 512]
    plans = [quick_plan(own, THREE, CHIPS["v5e"], Cut(1, 16, 1)) for own in (settings, *more)]
    assert [plan.fits for plan in plans] == [True, True, False]
    assert plans[0].seconds > plans[1].seconds > plans[2].seconds
    assert not list(with_more_slots(read_settings(sft_config("3b").to_dict())))


def test_a_search_finds_only_what_fits_and_writes_its_flags():
    settings, chip = settings_of(), chip_of("v5e:4x4")
    found = ranked(settings, THREE, chip, 16)
    assert found
    seconds = [plan.seconds for _, plan in found]
    assert seconds == sorted(seconds)
    for own, plan in found:
        assert plan.fits
        assert own.mesh.data * own.mesh.fsdp * own.mesh.tensor == 16
    best = found[0][0]
    assert f"--config.mesh.fsdp={best.mesh.fsdp}" in flags_of(best)
    assert len(list(candidates(settings, THREE, 16))) > len(found)


def test_longer_answers_and_more_devices_change_the_time_as_they_must():
    settings = settings_of(fsdp=16)
    sixteen = quick_plan(settings, THREE, CHIPS["v5e"], Cut(1, 16, 1))
    eight = quick_plan(settings, THREE, CHIPS["v5e"], Cut(1, 8, 1))
    assert 1.2 < eight.seconds / sixteen.seconds < 2.1
    rollout = dataclasses.replace(settings.rollout, max_new_tokens=512)
    short = dataclasses.replace(settings, rollout=rollout)
    assert quick_plan(short, THREE, CHIPS["v5e"], Cut(1, 16, 1)).seconds < 0.7 * sixteen.seconds
    assert sixteen.peak < 15.75 * GIB


@pytest.mark.parametrize("topology", ["v5e", "v5e:", "v5e:4x", "k9:4", ":4x4"])
def test_a_topology_that_is_none_is_refused(topology):
    with pytest.raises(UserError, match="--topology"):
        device_count(topology)


def test_a_released_model_is_known_by_name_and_an_unknown_one_refused():
    assert model_config("Qwen/Qwen2.5-VL-3B-Instruct") == THREE
    with pytest.raises(UserError, match="neither a directory nor one of"):
        model_config("nobody/nothing")


def test_a_task_without_training_is_refused_by_name():
    with pytest.raises(UserError, match="'evaluate' cannot be planned"):
        read_settings({"task": "evaluate"})
