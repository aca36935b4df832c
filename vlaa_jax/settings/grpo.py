"""Settings of a GRPO run."""

from dataclasses import dataclass, field

from vlaa_jax.schema import UserError
from vlaa_jax.settings.evaluate import JudgeSettings, TrainingBenchmarkSettings
from vlaa_jax.settings.fields import Group, at_least, one_of, setting, within
from vlaa_jax.settings.rewards import RewardSettings
from vlaa_jax.settings.shared import (
    MeshSettings,
    ModelSettings,
    OptimizerSettings,
    PromptSettings,
    RolloutSettings,
    RunSettings,
)

ADVANTAGES = ("grpo", "mean_only", "leave_one_out", "batch_std")
LOSSES = ("clip", "gspo", "cispo")
AGGREGATIONS = ("token_mean", "sequence_mean", "constant_length")
KL_ESTIMATORS = ("k1", "k2", "k3")


@dataclass(frozen=True)
class AlgoSettings(Group, name="algo"):
    """GRPO and its relatives."""

    advantage: str = setting("grpo", one_of(*ADVANTAGES))
    """grpo, mean_only (Dr. GRPO), leave_one_out (RLOO) or batch_std; see docs/losses.md."""
    loss: str = setting("clip", one_of(*LOSSES))
    """clip (PPO's ratio per token), gspo (ratio per sequence) or cispo (clipped weight)."""
    clip_low: float = setting(0.2, at_least(0))
    """The ratio is clipped at 1 - clip_low; above 0 (cispo: or 0), for gspo at most 0.01."""
    clip_high: float = setting(0.2, at_least(0))
    """The ratio is clipped at 1 + clip_high; as clip_low."""
    dual_clip: float = setting(0.0, at_least(0))
    """Bound of the ratio for negative advantages, above 1 and for clip alone; 0 turns it off."""
    aggregation: str = setting("sequence_mean", one_of(*AGGREGATIONS))
    """sequence_mean (the only one of gspo), token_mean or constant_length."""
    kl_estimator: str = setting("k3", one_of(*KL_ESTIMATORS))
    """k2 or k3, or with kl_in_reward k1 as well."""
    kl_coef: float = setting(1e-3, at_least(0))
    """Initial KL coefficient; 0 drops the reference model."""
    kl_target: float = setting(5e-4, at_least(0))
    """Target of the adaptive controller; 0 keeps the coefficient fixed."""
    kl_horizon: float = setting(10_000.0, at_least(1))
    """Sequences over which the controller acts; fewer make it quicker. At least 1."""
    kl_in_reward: bool = False
    """Subtract the KL from the reward instead of adding it to the loss."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus; 0 leaves it out, a negative one punishes entropy."""
    importance_cap: float = setting(0.0, at_least(0))
    """Cap of truncated sampler/trainer importance weights; 0 turns them off."""
    dynamic_sampling: int = setting(0, at_least(0))
    """Most further rollouts of a step that replace groups with equal rewards; 0 keeps all."""
    mask_truncated: bool = False
    """Leave completions that hit the token limit out of the loss."""
    epochs: int = setting(1, at_least(1))
    """Passes over a rollout; each makes all its updates again, against the same old policy."""
    updates_per_rollout: int = setting(8, at_least(1))
    """Optimizer updates per pass, each on an equal share of the prompts; 1 is on-policy."""
    micro_prompts: int = setting(0, at_least(0))
    """Prompts per gradient-accumulation step; 0 takes a whole update at once."""
    logprob_chunk: int = setting(1024, at_least(0))
    """Tokens whose logits over the vocabulary exist at the same time, over all devices; 0 takes as
    many as make 2^28 logits on a data shard."""

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates on one rollout."""
        return self.epochs * self.updates_per_rollout

    def check(self) -> None:
        """The loss is one that its name promises, and has a gradient."""
        self._check_clipping()
        if self.kl_in_reward and not self.kl_coef:
            raise UserError("algo.kl_in_reward: there is no KL to put there, algo.kl_coef is 0")
        if self.kl_coef and self.kl_estimator == "k1" and not self.kl_in_reward:
            raise UserError(
                "algo.kl_estimator: as a loss k1 has an expected gradient of zero; set "
                "algo.kl_in_reward=True or take k2 or k3"
            )

    def _check_clipping(self) -> None:
        if self.loss == "gspo":
            if max(self.clip_low, self.clip_high) > 0.01:
                raise UserError(
                    "algo.clip_low and clip_high: GSPO clips a length-normalised ratio; its paper "
                    "uses 3e-4 and 4e-4, values above 0.01 never clip"
                )
            if self.aggregation != "sequence_mean":
                raise UserError(
                    f"algo.aggregation: {self.aggregation} with algo.loss=gspo is not GSPO, which "
                    "weighs sequences alike; set sequence_mean"
                )
        if self.loss != "cispo" and not min(self.clip_low, self.clip_high) > 0:
            raise UserError(
                "algo.clip_low and clip_high: must be above 0, at 0 the first update clips"
            )
        if self.dual_clip and self.loss != "clip":
            raise UserError(f"algo.dual_clip: algo.loss={self.loss} has none; set 0")
        if 0 < self.dual_clip <= 1:
            raise UserError(f"algo.dual_clip: {self.dual_clip} must be above 1, or 0 for none")


@dataclass(frozen=True)
class GrpoSettings(Group):
    """Everything a GRPO run needs, checked."""

    task: str = setting("grpo", one_of("grpo"))
    seed: int = setting(0, within(0, 2**32 - 1))
    """Of sampling, the order of records and new adapters."""
    model: ModelSettings = field(default_factory=ModelSettings)
    data: PromptSettings = field(default_factory=PromptSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    algo: AlgoSettings = field(default_factory=AlgoSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    mesh: MeshSettings = field(default_factory=MeshSettings)
    run: RunSettings = field(default_factory=RunSettings)
    rewards: RewardSettings = field(default_factory=RewardSettings)
    benchmarks: TrainingBenchmarkSettings = field(default_factory=TrainingBenchmarkSettings)
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    """Of benchmarks."""

    def check(self) -> None:
        """Batches divide, and penalties fit into the completions they are for."""
        rollout, algo = self.rollout, self.algo
        updates, at_once = algo.updates_per_rollout, rollout.batch_prompts
        _divides("rollout.prompts", rollout.prompts, "algo.updates_per_rollout", updates)
        if algo.micro_prompts:
            per_update = rollout.prompts // updates
            _divides("prompts per update", per_update, "algo.micro_prompts", algo.micro_prompts)
        if at_once:
            _divides("rollout.prompts", rollout.prompts, "rollout.batch_prompts", at_once)
        if rollout.prefill_prompts:
            together = at_once or rollout.prompts
            name, size = "rollout.prefill_prompts", rollout.prefill_prompts
            _divides("prompts at once", together, name, size)
        limit, rewards = rollout.max_new_tokens, self.rewards
        if rewards.overlong_weight and rewards.overlong_buffer > limit:
            raise UserError(
                f"rewards.overlong_buffer: {rewards.overlong_buffer} tokens do not fit into "
                f"rollout.max_new_tokens={limit}"
            )

    @property
    def micro_prompts(self) -> int:
        """Prompts per gradient computation."""
        return self.algo.micro_prompts or self.rollout.prompts // self.algo.updates_per_rollout


def _divides(name: str, value: int, by_name: str, by: int) -> None:
    if value % by:
        raise UserError(f"{name}={value} is not a multiple of {by_name}={by}")
