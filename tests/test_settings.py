"""Settings that cannot be meant are refused with their whole name."""

import pytest

from configs import grpo
from vlaa_jax.schema import UserError
from vlaa_jax.settings.evaluate import GenerationSettings, JudgeSettings
from vlaa_jax.settings.fields import harmless_names
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.settings.pipeline import ServedModel
from vlaa_jax.settings.rewards import RewardSettings
from vlaa_jax.settings.shared import LoraSettings, RolloutSettings, RunSettings
from vlaa_jax.settle import settle


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.lr": 1e-7}, r"optimizer\.min_lr: 5e-07 is above optimizer\.lr=1e-07"),
        ({"optimizer.warmup_frac": 3.0}, r"optimizer\.warmup_frac: 3\.0 is not within 0 and 1"),
        ({"algo.kl_in_reward": True, "algo.kl_coef": 0.0}, r"algo\.kl_in_reward: there is no KL"),
        ({"algo.dual_clip": 0.5}, r"algo\.dual_clip: 0\.5 must be above 1"),
        ({"algo.loss": "gspo"}, r"algo\.clip_low and clip_high: GSPO"),
        ({"algo.loss": "cispo", "algo.dual_clip": 3.0}, r"algo\.dual_clip: algo\.loss=cispo has"),
        (
            {"algo.loss": "gspo", "algo.aggregation": "token_mean"}
            | {"algo.clip_low": 3e-4, "algo.clip_high": 4e-4},
            r"algo\.aggregation: token_mean .* is not GSPO",
        ),
        ({"algo.clip_low": 0.0}, r"algo\.clip_low and clip_high: must be above 0"),
        ({"algo.kl_estimator": "k1"}, r"algo\.kl_estimator: as a loss k1"),
        ({"optimizer.lr": float("nan")}, r"optimizer\.lr: nan is not a finite number"),
        ({"optimizer.b2": 1.0}, r"optimizer\.b2: 1\.0"),
        ({"optimizer.weight_decay": -1.0}, r"optimizer\.weight_decay: -1\.0 is too small"),
        ({"data.max_pixels": -5}, r"data\.max_pixels: -5 is too small"),
        ({"data.min_pixels": 9000, "data.max_pixels": 5000}, r"data\.min_pixels: 9000 is above"),
        ({"rollout.temperature": 0.0}, r"rollout\.temperature"),
        ({"rollout.top_p": 0.0}, r"rollout\.top_p: 0\.0 is not allowed; it must be above 0"),
        ({"mesh.fsdp": 0}, r"mesh\.fsdp: 0 is too small"),
    ],
)
def test_settings_that_cannot_be_meant(changes, message):
    config = grpo.get_config()
    for key, value in changes.items():
        group, name = key.split(".")
        config[group][name] = value
    with pytest.raises(UserError, match=message):
        settle(config.to_dict())


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_no_generator_takes(seed):
    config = grpo.get_config()
    config.seed = seed
    with pytest.raises(UserError, match=r"seed: .* is not within 0"):
        settle(config.to_dict())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RolloutSettings(prompts=-3), r"rollout\.prompts: -3 is too small"),
        (lambda: RolloutSettings(prompts=2.5), r"rollout\.prompts: expected int, got float 2\.5"),
        (lambda: RolloutSettings(prompts=True), r"rollout\.prompts: expected int, got bool"),
        (lambda: RunSettings(compilation_cache=3), r"run\.compilation_cache: expected str"),
        (lambda: LoraSettings(rank=-1), r"model\.lora\.rank: -1"),
        (
            lambda: LoraSettings(modules=("q_proj", 3)),
            r"model\.lora\.modules: expected str",
        ),
        (lambda: RewardSettings(beta=float("inf")), r"rewards\.beta: inf is not a finite number"),
        (lambda: GrpoSettings(seed=-1), r"^seed: -1"),
    ],
)
def test_a_group_made_by_hand_is_checked_too(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_what_a_resumed_run_may_change():
    names = harmless_names(GrpoSettings)
    assert {"data.workers", "run.save_every", "rewards.endpoint_url"} <= names
    assert not {"optimizer.lr", "rewards.beta", "model.lora.rank", "run.steps"} & names


@pytest.mark.parametrize(
    ("group", "fields"),
    [
        (RewardSettings, ("endpoint_url", "endpoint_key_env")),
        (GenerationSettings, ("url", "key_env")),
        (JudgeSettings, ("url", "key_env")),
        (ServedModel, ("url", "key_env")),
    ],
)
def test_a_key_in_the_wrong_setting_is_refused_before_anything_records_it(group, fields):
    url, variable = fields
    for value in ("https://u:sk-SECRET@h/v1", "https://h/v1?key=sk-SECRET", "sk-SECRET", "h:80"):
        with pytest.raises(UserError) as caught:
            group(**{url: value})
        assert url in str(caught.value) and "SECRET" not in str(caught.value)
    with pytest.raises(UserError, match="give the name of an environment variable") as caught:
        group(**{variable: "sk-SECRET"})
    assert "SECRET" not in str(caught.value)
    assert getattr(group(**{url: "http://h:8000/v1", variable: "A_KEY"}), variable) == "A_KEY"
