"""The directory of a run: whose it is, what has been reached, what was measured. No algorithm."""

import dataclasses
import fcntl
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from rich.console import Console

from vlaa_jax import disk
from vlaa_jax.data.sources.table import source_class
from vlaa_jax.foreign import local_path
from vlaa_jax.parallel import hosts
from vlaa_jax.parallel.compiling import Compilations
from vlaa_jax.policy.pretrained import copy_sidecars
from vlaa_jax.report.page import leave_report
from vlaa_jax.report.record import RunRecord
from vlaa_jax.schema import Summary, UserError
from vlaa_jax.settings.fields import harmless_names, path_names
from vlaa_jax.settings.shared import DataSettings, RunSettings
from vlaa_jax.train.board import Shown
from vlaa_jax.train.checkpoint import Checkpoints, Progress, steps_of
from vlaa_jax.train.console import minutes, written
from vlaa_jax.train.learner import Learner
from vlaa_jax.train.metrics import MetricsWriter, StepClock
from vlaa_jax.train.plot import write_plot
from vlaa_jax.train.rollout_log import RolloutLog
from vlaa_jax.train.trackers import Wandb

LOCK = "lock"


class Closing(Protocol):
    """Something that ends threads or processes."""

    def close(self) -> None:
        """End them."""


C = TypeVar("C", bound=Closing)


class RunDir:
    """Opens the directory of one run, new or where it was interrupted.

    With several hosts, one of them writes, and all read: the directory is one they share. A lock is
    held while it is open. The run's settings are written down by `begin`, when everything
    else was opened: a mistyped option must not claim the directory.

    Args:
        path: the run directory.
        settings: of the task; with a group ``run``.
        console: where people read along.

    Raises:
        UserError: it cannot be written, is in use, or holds a run with other settings.
    """

    def __init__(self, path: Path, settings: Any, console: Console) -> None:
        self.path, self.console = path, console
        self._settings, self._run = settings, _run_settings(settings)
        self._steps = self._run.steps
        self.progress = Progress(0, {})
        self._saved = 0
        self._score: tuple[int, float] | None = None
        self._compiled = 0.0
        self._seconds: deque[float] = deque(maxlen=10)
        self._writer: MetricsWriter | None = None
        self._wandb: Wandb | None = None
        self._ends = ExitStack()
        self.compilations = self.closes(Compilations(console.print if hosts.is_writer() else None))
        try:
            _same_everywhere(settings)
            hosts.from_writer(lambda: self._claim(path), "the run directory")
            if not (path / LOCK).exists():
                raise UserError(f"--workdir={path}: the hosts do not share this directory")
            self.checkpoints = self.closes(
                Checkpoints(path / "checkpoints", self._run.keep_checkpoints, self._run.damaged)
            )
            self.rollouts = self.closes(RolloutLog(path, console.print))
            for step, problem in self.checkpoints.put_aside:
                console.print(f"checkpoint {step} is damaged ({problem}): kept as {step}.damaged")
        except BaseException:
            self._ends.close()
            raise

    def _claim(self, path: Path) -> None:
        self._ends.callback(lock(path))
        check_settings(path, self._settings)

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
        """Claims the directory for these settings and goes to a position.

        Args:
            progress: where the run stands.
            sidecars: directory with the tokenizer and configuration, kept for export.
        """
        self.progress, self._saved = progress, progress.step
        if hosts.is_writer():
            self._writer = self.closes(MetricsWriter(self.path, progress.step))
            if self._run.wandb:
                told = plain(self._settings)
                self._wandb = self.closes(Wandb(self.path, self._run.wandb, told))
            copy_sidecars(sidecars, self.path / "hf")
            disk.write_json(self.path / "config.json", plain(self._settings))
        if progress.step:
            self.console.print(f"resuming at step {progress.step}")

    def list_rejects(self, path: Path, usable: int, rejects: Sequence[Any]) -> None:
        """Says how many records were left out, and writes down why."""
        if rejects and hosts.is_writer():
            listing = self.path / f"rejects-{path.stem}.txt"
            disk.write_text(listing, "".join(f"{r}\n" for r in rejects))
            self.console.print(
                f"{path}: {usable} records, {len(rejects)} left out (reasons in {listing})"
            )

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
        with disk.refusals(self.path, self._kept):
            try:
                if error is not None:
                    raise error
            finally:
                self._ends.close()

    def _kept(self) -> str:
        """What is said of a run that cannot write any more."""
        saved = steps_of(self.path / "checkpoints")
        if not saved:
            return "nothing was saved yet, the same command begins again"
        return f"steps up to {saved[0]} are saved, the same command goes on from there"


def _run_settings(settings: Any) -> RunSettings:
    return settings.run


def _same_everywhere(settings: Any) -> None:
    """Looks whether all hosts were given the same settings, but for those that change no number."""
    told = hosts.gather(plain(settings), "the settings")
    harmless = harmless_names(type(settings))
    for host, other in enumerate(told):
        changed = sorted(set(_differences(told[0], other)) - harmless)
        if changed:
            raise UserError(
                f"host {host} was started with other settings than host 0 ({', '.join(changed)}); "
                "give all hosts the same command"
            )


def lock(path: Path) -> Callable[[], None]:
    """Takes the directory for this process; what it returns gives it back.

    The lock belongs to the open file, so it goes with the process, however that ends.

    Raises:
        UserError: the directory cannot be written, or another process holds it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, os.strerror(13))
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"--workdir={path}: cannot be used ({error.strerror})") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        by = f" by process {holder}" if holder.isdigit() else ""
        raise UserError(
            f"--workdir={path}: a run is going on in it{by}; wait for it or choose another workdir"
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return lambda: os.close(descriptor)


def check_settings(path: Path, settings: Any) -> None:
    """Looks whether the directory holds a run with other settings.

    Raises:
        UserError: it does, or what it holds cannot be read.
    """
    file = path / "config.json"
    if not file.exists():
        return
    try:
        recorded = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(recorded, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--workdir={path}: config.json cannot be read ({reason})") from error
    harmless, paths = harmless_names(type(settings)), path_names(type(settings))
    changed = sorted(
        f"{name}: {old!r} -> {new!r}"
        for name, (old, new) in _differences(recorded, plain(settings)).items()
        if name not in harmless and not (name in paths and _same_path(old, new))
    )
    if changed:
        raise UserError(
            f"--workdir={path} holds a run with other settings ({', '.join(changed[:5])}); "
            "give the same command to resume it, or another workdir"
        )


def _same_path(old: Any, new: Any) -> bool:
    """Whether two spellings mean one place: ``images/``, ``./images`` and its whole path do."""
    if not (isinstance(old, str) and isinstance(new, str) and old and new):
        return False
    return os.path.abspath(local_path(old)) == os.path.abspath(local_path(new))


def check_files(data: DataSettings) -> None:
    """Looks whether the data is there at all, before anything large is loaded.

    Raises:
        UserError: a path is missing, does not exist, or holds no records of a form that is known.
    """
    if data.records == "embedded":
        return
    rooted = False
    for name in ("records", "heldout", "validation"):
        path = getattr(data, name, "")
        if not path and name == "records":
            raise UserError("data.records is not set: give it with --config.data.records=...")
        try:
            rooted |= bool(path) and source_class(path).needs_root
        except UserError as error:
            raise UserError(f"data.{name}: {error}") from None
    root = data.image_root
    if rooted and not root:
        raise UserError("data.image_root is not set: give it with --config.data.image_root=...")
    if root and not local_path(root).is_dir():
        raise UserError(f"data.image_root: {root} does not exist")


def plain(settings: Any) -> dict[str, Any]:
    """Settings as JSON holds them."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def _differences(
    a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for name in a.keys() | b.keys():
        left, right = a.get(name), b.get(name)
        if isinstance(left, dict) and isinstance(right, dict):
            found |= _differences(left, right, f"{prefix}{name}.")
        elif left != right:
            found[f"{prefix}{name}"] = (left, right)
    return found
