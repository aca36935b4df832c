"""The grid of a study: every command in the order in which it can run."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlaa_jax.schema import UserError
from vlaa_jax.settings.build import build
from vlaa_jax.settings.study import EMBEDDED, Stage, StudySettings, stage_names


@dataclass(frozen=True)
class Cell:
    """One arm of one model with one seed."""

    model: str
    seed: int
    arm: str

    @property
    def place(self) -> Path:
        """Of its directory below any folder of the study."""
        return Path(self.model, f"seed{self.seed}", self.arm)


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: its place in the study; unique.
        cell: whose it is.
        words: the command.
        workdir: its run directory.
        needs: name of the step whose run directory it starts from; empty for the model itself.
        evaluation: name of the evaluation; empty for training.
    """

    name: str
    cell: Cell
    words: tuple[str, ...]
    workdir: Path
    needs: str
    evaluation: str = ""


def steps(settings: StudySettings, workdir: Path) -> list[Step]:
    """All commands: an arm's training behind what it starts from, its evaluations behind it.

    Arms that begin alike share those stages.

    Raises:
        UserError: a stage or evaluation is not a config file with variants and options.
    """
    found: dict[str, Step] = {}
    stages, evaluations = commands(settings.stages), commands(settings.evaluations)
    for model in settings.models:
        for seed in settings.seeds:
            for arm in settings.arms:
                cell = Cell(model, seed, arm)
                for step in _Commands(settings, workdir, stages, evaluations).of(cell):
                    found.setdefault(step.name, step)
    return list(found.values())


def commands(values: Mapping[str, Any]) -> dict[str, Stage]:
    """Stages by name.

    Raises:
        UserError: one of them is none.
    """
    for name, value in values.items():
        if not isinstance(value, Mapping):
            raise UserError(f"{name}: expected config, variants and options, got {value!r}")
    return {name: build(Stage, value, name) for name, value in values.items()}


@dataclass(frozen=True)
class _Commands:
    """Makes the commands of a cell."""

    settings: StudySettings
    workdir: Path
    stages: Mapping[str, Stage]
    evaluations: Mapping[str, Stage]

    def of(self, cell: Cell) -> Iterator[Step]:
        """Its stages in order, then its evaluations."""
        names = stage_names(cell.arm)
        before = ""
        for count in range(1, len(names) + 1):
            part = Cell(cell.model, cell.seed, "+".join(names[:count]))
            yield self._step("runs", part, self.stages[names[count - 1]], before)
            before = str("runs" / part.place)
        for name, stage in self.evaluations.items():
            yield self._step("evaluations", cell, stage, before, name)

    def _step(
        self, folder: str, cell: Cell, stage: Stage, needs: str, evaluation: str = ""
    ) -> Step:
        place = folder / cell.place / evaluation
        checkpoint = self.workdir / needs if needs else self.settings.models[cell.model]
        variants = f":{stage.variants}" if stage.variants else ""
        settings = self.settings
        common = settings.evaluate_options if evaluation else settings.train_options
        words = (
            *(sys.executable, "-m", "vlaa_jax.main", f"--config={stage.config}{variants}"),
            f"--config.model.checkpoint={checkpoint}",
            *(f"--config.{self._filled(option, cell)}" for option in (*stage.options, *common)),
            f"--workdir={self.workdir / place}",
        )
        return Step(str(place), cell, words, self.workdir / place, needs, evaluation)

    def _filled(self, option: str, cell: Cell) -> str:
        marks = {
            "{seed}": str(cell.seed),
            "{data}": str(data_folder(self.settings, self.workdir)),
            "{workdir}": str(self.workdir),
        }
        for mark, value in marks.items():
            option = option.replace(mark, value)
        return option


def data_folder(settings: StudySettings, workdir: Path) -> Path:
    """What {data} stands for."""
    return workdir / "data" if settings.data == EMBEDDED else Path(settings.data).absolute()


def table(found: list[Step]) -> list[str]:
    """The grid as lines: place and what is asked for."""
    lines = []
    for step in found:
        config = step.words[3].removeprefix("--config=")
        options = [word.removeprefix("--config.") for word in step.words[4:-1]]
        lines.append("  ".join((step.name, config, *options)))
    return lines
