"""Settings that cannot be meant are refused with their whole name."""

import pytest

from configs import grpo
from vlaa_jax.schema import UserError
from vlaa_jax.settle import settle


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.lr": 1e-7}, r"optimizer\.min_lr: 5e-07 is above optimizer\.lr=1e-07"),
        ({"optimizer.warmup_frac": 3.0}, r"optimizer\.warmup_frac: 3\.0 is a share"),
        ({"algo.kl_in_reward": True, "algo.kl_coef": 0.0}, r"algo\.kl_in_reward: there is no KL"),
        ({"algo.dual_clip": 0.5}, r"algo\.dual_clip: 0\.5 must be above 1"),
        ({"algo.loss": "gspo"}, r"algo\.clip_low and clip_high: GSPO"),
        ({"rollout.temperature": 0.0}, r"rollout\.temperature"),
        ({"rollout.top_p": 0.0}, r"rollout\.top_p: 0\.0 is not"),
        ({"mesh.fsdp": 0}, r"mesh\.fsdp: 0 is not a size"),
    ],
)
def test_settings_that_cannot_be_meant(changes, message):
    config = grpo.get_config()
    for key, value in changes.items():
        group, name = key.split(".")
        config[group][name] = value
    with pytest.raises(UserError, match=message):
        settle(config.to_dict())
