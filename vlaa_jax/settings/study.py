"""Settings of a study: which arms, for which models and seeds, and how each is evaluated."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlaa_jax.schema import UserError
from vlaa_jax.settings.fields import Group, at_least, one_of, setting
from vlaa_jax.settings.rewards import RewardSettings
from vlaa_jax.settings.shared import (
    MeshSettings,
    ModelSettings,
    PromptSettings,
    RolloutSettings,
)

BASE = "base"
EMBEDDED = "embedded"
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True)
class Stage(Group):
    """One command: a config file, its variants, and options."""

    config: str
    """Config file, as in --config."""
    variants: str = ""
    """Its variants, with commas."""
    options: tuple[str, ...] = ()
    """Settings as on the command line without ``--config.``; {seed}, {data} and {workdir} stand for
    the seed, the folder of the data and the study's directory. The checkpoint is not among them."""


@dataclass(frozen=True)
class StudyRunSettings(Group, name="run"):
    """How the study goes."""

    dry_run: bool = setting(False, harmless=True)
    """Print the grid and stop."""
    topology: str = setting("", harmless=True)
    """With dry_run: devices to estimate hours for, as the planner names them ("v5p:2x2x2")."""
    hour_usd: float = setting(0.0, at_least(0), harmless=True)
    """With topology: price of an hour of all its devices."""
    threads: int = setting(0, at_least(0), harmless=True)
    """Threads of a command's linear algebra on CPUs; 0 leaves it to the libraries."""


@dataclass(frozen=True)
class StudySettings(Group):
    """Everything a study needs, checked."""

    task: str = setting("study", one_of("study"))
    models: Mapping[str, Any] = field(default_factory=dict)
    """Checkpoints by name."""
    seeds: tuple[int, ...] = setting((0,), at_least(0))
    arms: tuple[str, ...] = ()
    """Each "base", or names of stages in order, joined by "+"; each stage starts from the one
    before."""
    reference: str = BASE
    """The arm that others are compared with."""
    data: str = ""
    """Folder that {data} stands for; "embedded" draws records and SFT traces into WORKDIR/data."""
    stages: Mapping[str, Any] = field(default_factory=dict)
    """Training commands by name."""
    evaluations: Mapping[str, Any] = field(default_factory=dict)
    """Commands by name that every arm is evaluated by."""
    train_options: tuple[str, ...] = ()
    """Options of every training command, as in "mesh.fsdp=8"."""
    evaluate_options: tuple[str, ...] = ()
    """Options of every evaluation, as in "judge.url=http://localhost:8000/v1"."""
    run: StudyRunSettings = field(default_factory=StudyRunSettings)

    def check(self) -> None:
        """Arms are made of stages that there are, and everything has a name of its own."""
        lists = {"models": tuple(self.models), "seeds": self.seeds, "arms": self.arms}
        for name, values in lists.items():
            if not values or len(set(values)) < len(values):
                raise UserError(f"{name}: name at least one, and each once")
        for arm in self.arms:
            for stage in stage_names(arm):
                if stage not in self.stages:
                    known = ", ".join(self.stages)
                    raise UserError(f"arms: {arm!r} has the stage {stage!r}; known: {known}")
        if self.reference not in self.arms:
            raise UserError(f"reference: {self.reference!r} is not one of arms")
        for name, checkpoint in self.models.items():
            if not isinstance(checkpoint, str) or not checkpoint:
                raise UserError(f"models.{name}: {checkpoint!r} is no checkpoint")
        for name in (*self.models, *self.stages, *self.evaluations):
            if not _NAME.fullmatch(name) or name == BASE:
                raise UserError(f"{name!r} cannot be the name of a model, stage or evaluation")


def stage_names(arm: str) -> tuple[str, ...]:
    """The stages of an arm in order; none of "base"."""
    return () if arm == BASE else tuple(arm.split("+"))


@dataclass(frozen=True)
class HeldoutRunSettings(Group, name="run"):
    """What is written where."""

    compilation_cache: str = setting("~/.cache/vlaa_jax/xla", harmless=True)
    """Folder of the persistent compilation cache; empty turns it off."""


@dataclass(frozen=True)
class HeldoutSettings(Group):
    """Everything that scoring a checkpoint on held-out records needs, checked."""

    task: str = setting("heldout", one_of("heldout"))
    seed: int = setting(0, at_least(0))
    """Of sampling."""
    model: ModelSettings = field(default_factory=ModelSettings)
    data: PromptSettings = field(default_factory=PromptSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    """`completions` are drawn for each record."""
    rewards: RewardSettings = field(default_factory=RewardSettings)
    mesh: MeshSettings = field(default_factory=MeshSettings)
    run: HeldoutRunSettings = field(default_factory=HeldoutRunSettings)

    def check(self) -> None:
        """There are records to score."""
        if not self.data.heldout and self.data.records != "embedded":
            raise UserError("data.heldout: name the records to score")
