"""The directory of a run: whose it is, what has been reached, what was measured. No algorithm."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from rich.console import Console

from vlaa_jax import disk
from vlaa_jax.parallel import hosts
from vlaa_jax.parallel.compiling import Compilations
from vlaa_jax.policy.pretrained import copy_sidecars
from vlaa_jax.report.page import leave_report
from vlaa_jax.report.record import RunRecord
from vlaa_jax.schema import Summary, UserError
from vlaa_jax.settings.shared import RunSettings
from vlaa_jax.train.board import Shown
from vlaa_jax.train.checkpoint import Checkpoints, Progress
from vlaa_jax.train.claim import Claim, plain
from vlaa_jax.train.console import minutes, written
from vlaa_jax.train.learner import Learner
from vlaa_jax.train.metrics import MetricsWriter, StepClock
from vlaa_jax.train.plot import write_plot
from vlaa_jax.train.rollout_log import RolloutLog
from vlaa_jax.train.trackers import Wandb


class Closing(Protocol):
    """Something that ends threads or processes."""

    def close(self) -> None:
        """End them."""


C = TypeVar("C", bound=Closing)


class RunDir:
    """Opens what a run has written: its checkpoints, its records, its metrics.

    Args:
        claim: of its directory, for settings with a group ``run``; closed with this.
        console: where people read along.

    Raises:
        UserError: the newest checkpoint is damaged.
    """

    def __init__(self, claim: Claim, console: Console) -> None:
        self.path, self.console = claim.path, console
        self._claim, self._run = claim, _run_settings(claim.settings)
        self._steps = self._run.steps
        self.progress = Progress(0, {})
        self._saved = 0
        self._score: tuple[int, float] | None = None
        self._compiled = 0.0
        self._seconds: deque[float] = deque(maxlen=10)
        self._writer: MetricsWriter | None = None
        self._wandb: Wandb | None = None
        self._ends = ExitStack()
        self.closes(claim)
        self.compilations = self.closes(Compilations(console.print if hosts.is_writer() else None))
        try:
            self.checkpoints = self.closes(
                Checkpoints(
                    self.path / "checkpoints", self._run.keep_checkpoints, self._run.damaged
                )
            )
            self.rollouts = self.closes(RolloutLog(self.path, console.print))
            for step, problem in self.checkpoints.put_aside:
                console.print(f"checkpoint {step} is damaged ({problem}): kept as {step}.damaged")
        except BaseException:
            self._ends.close()
            raise

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self._steps

    def set_steps(self, steps: int) -> None:
        """The run's length, where its settings leave that to the data."""
        self._steps = steps

    def evaluates(self, step: int) -> bool:
        """Whether held-out records are looked at after this step."""
        every = self._run.eval_every
        return step + 1 == self._steps or bool(every and (step + 1) % every == 0)

    def closes(self, part: C) -> C:
        """Takes over to close a part in the end, whatever happens to the others."""
        self._ends.callback(part.close)
        return part

    def begin(self, progress: Progress, sidecars: Path) -> None:
        """Claims the directory for good and goes to a position.

        Args:
            progress: where the run stands.
            sidecars: directory with the tokenizer and configuration, kept for export.
        """
        self.progress, self._saved = progress, progress.step
        if hosts.is_writer():
            self._writer = self.closes(MetricsWriter(self.path, progress.step))
            if self._run.wandb:
                told = plain(self._claim.settings)
                self._wandb = self.closes(Wandb(self.path, self._run.wandb, told))
            copy_sidecars(sidecars, self.path / "hf")
            disk.write_json(self.path / "config.json", plain(self._claim.settings))
        if progress.step:
            self.console.print(f"resuming at step {progress.step}")

    def report(
        self, step: int, metrics: Mapping[str, float], clock: StepClock, words: Sequence[str]
    ) -> None:
        """Writes a step's metrics and its line."""
        times = {f"time/{name}_s": seconds for name, seconds in clock.seconds.items()}
        counted = {"compile/count": float(self.compilations.count)}
        compiling = self.compilations.seconds - self._compiled
        self._compiled += compiling
        if self._writer is not None:
            times |= {"time/compile_s": compiling, "time/step_s": clock.total}
            every = {**metrics, **counted, **times}
            self._writer.write(step, every)
            if self._wandb is not None:
                self._wandb.write(step, every)
        self._seconds.append(max(clock.total - compiling, 0.0))
        left = float(np.median(self._seconds)) * (self._steps - step - 1)
        took = f"{clock.total:.1f} s" + (f" ({compiling:.0f} compiling)" if compiling > 1 else "")
        line = (f"step {step + 1:>4}/{self._steps}", *words, took)
        self.console.print(
            "  ".join((*line, f"left {minutes(left)}")), highlight=False, soft_wrap=True
        )

    def show(self, step: int, samples: Sequence[Shown]) -> None:
        """Shows answers to held-out records, after so many steps, in TensorBoard."""
        if self._writer is not None:
            self._writer.board.samples(step, samples)

    def scored(self, step: int, score: float) -> None:
        """Remembers the score of the weights after `step` steps; the best ones are kept."""
        self._score = (step, score)

    def finish_step(self, progress: Progress, learner: Learner) -> None:
        """A step is done: the run stands at `progress`, and is saved where that is due.

        Raises:
            hosts.Leave: the run is to be left here, on all hosts.
        """
        self.progress = progress
        self.checkpoints.check()
        last = progress.step == self._steps
        step, score = self._score or (-1, 0.0)
        best = step == progress.step and score > self.checkpoints.best_score
        if last or best or progress.step % self._run.save_every == 0:
            self.save(learner)
        if not last:
            hosts.leave_if_wanted(f"after step {progress.step}")

    def save(self, learner: Learner) -> None:
        """Writes a checkpoint of the current position, behind which nothing is missing."""
        self.rollouts.flush()
        step, score = self._score or (-1, None)
        known = score if step == self.progress.step else None
        with hosts.undivided():
            self.checkpoints.save(learner.state, learner.frozen, self.progress, known)
            self._saved = self.progress.step

    @contextmanager
    def saving(self, learner: Learner, updates_per_step: int) -> Iterator[None]:
        """Keeps the steps done since the last checkpoint when a run is stopped between updates.

        Saving takes all hosts: with several, only where they have agreed to leave.
        """
        self._compiled = self.compilations.seconds
        try:
            hosts.leave_if_wanted("before the first step")
            yield
        except (KeyboardInterrupt, UserError) as reason:
            if hosts.count() > 1 and not isinstance(reason, hosts.Leave):
                raise
            updates = learner.state.updates
            if not updates.is_deleted():  # else stopped in the middle of an update
                whole = int(updates) == self.progress.step * updates_per_step
                if whole and self.progress.step > self._saved:
                    self.save(learner)
            raise

    def summary(self, figures: Mapping[str, float]) -> Summary:
        """Leaves the report of the run, and says what was written and where."""
        self.rollouts.flush()
        if hosts.is_writer():
            self._say(leave_report(self.path))
            if write_plot(self.path, RunRecord(self.path).metrics()) is None:
                self._say("no curves.png: matplotlib is not installed (the extra plots)")
            self._say(f"written to {self.path}")
            for line in written(self.path):
                self._say(line)
        if self.checkpoints.best is not None:
            self._say(f"best checkpoint  checkpoints/{self.checkpoints.best}")
        return Summary(self.path, dict(figures))

    def _say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(
        self, kind: object = None, error: BaseException | None = None, trace: object = None
    ) -> None:
        with disk.refusals(self.path, self._claim.kept):
            try:
                if error is not None:
                    raise error
            finally:
                self._ends.close()


def _run_settings(settings: Any) -> RunSettings:
    return settings.run
