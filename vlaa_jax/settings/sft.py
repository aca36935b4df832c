"""Settings of supervised fine-tuning."""

from dataclasses import dataclass, field

from vlaa_jax.schema import UserError
from vlaa_jax.settings.evaluate import JudgeSettings, TrainingBenchmarkSettings
from vlaa_jax.settings.fields import Group, above, at_least, one_of, setting, within
from vlaa_jax.settings.rewards import RewardSettings
from vlaa_jax.settings.shared import (
    MeshSettings,
    ModelSettings,
    OptimizerSettings,
    PromptSettings,
    RolloutSettings,
    RunSettings,
)


@dataclass(frozen=True)
class RowSettings(PromptSettings):
    """Records with answers, packed into rows; and held-out questions, where there are some."""

    validation: str = setting("", path=True)
    """Records with answers whose loss is watched, in the form of `records`; empty: none."""
    tokens_per_row: int = setting(4096, at_least(16))
    """Tokens of a row; several samples share one, none is cut."""
    rows: int = setting(32, at_least(1))
    """Rows of an update, over all devices."""
    micro_rows: int = setting(0, at_least(0))
    """Rows per gradient-accumulation step, over all devices; 0 takes a whole update at once."""
    epochs: float = setting(1.0, above(0))
    """Passes over the records, where run.steps is 0."""

    def check(self) -> None:
        """Rows divide."""
        super().check()
        if self.micro_rows and self.rows % self.micro_rows:
            raise UserError(
                f"data.rows={self.rows} is not a multiple of data.micro_rows={self.micro_rows}"
            )

    @property
    def rows_at_once(self) -> int:
        """Rows per gradient computation."""
        return self.micro_rows or self.rows


@dataclass(frozen=True)
class SftSettings(Group):
    """Everything a supervised run needs, checked."""

    task: str = setting("sft", one_of("sft"))
    seed: int = setting(0, within(0, 2**32 - 1))
    """Of the order of records, new adapters, and held-out sampling."""
    logprob_chunk: int = setting(0, at_least(0))
    """Tokens whose logits over the vocabulary exist at the same time, over all devices; 0 takes as
    many as make 2^28 logits on a data shard."""
    model: ModelSettings = field(default_factory=ModelSettings)
    data: RowSettings = field(default_factory=RowSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    mesh: MeshSettings = field(default_factory=MeshSettings)
    run: RunSettings = field(default_factory=RunSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    """How held-out questions are sampled."""
    rewards: RewardSettings = field(default_factory=RewardSettings)
    """How their answers are scored."""
    benchmarks: TrainingBenchmarkSettings = field(default_factory=TrainingBenchmarkSettings)
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    """Of benchmarks."""
