"""Saving and restoring a run with Orbax: parameters, optimizer, and where everything stood.

A checkpoint is written between steps. It holds all that the next step depends on, and random keys
are functions of (seed, step, prompt), so an interrupted run goes on as if nothing had happened; the
step that was under way is done again.
"""

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from vlaa_jax import digests
from vlaa_jax.data.loaders.loader import records_digest
from vlaa_jax.models.qwen_vl.trees import merge
from vlaa_jax.parallel import hosts
from vlaa_jax.schema import Record, UserError
from vlaa_jax.train.claim import steps_of
from vlaa_jax.train.state import TrainState

PARAMS, OPTIMIZER, PROGRESS = "params", "optimizer", "progress"
COUNTS = ("updates", "skipped", "still")
SCORE = "heldout_mean"
_UNFINISHED = ".orbax-checkpoint-tmp"
CHUNK_BYTES = 64 * 2**20
"""Upper bound of a stored piece: a reader holds one at a time, not a stack of layers."""


class Progress(NamedTuple):
    """Host-side position of a run, as JSON.

    Attributes:
        step: number of the next step.
        loader: state of the data loader.
        task: numbers that the task itself brings back.
        records: number of records that the loader's position is in.
        inputs: digests of what else the run reads, see `inputs.inputs`.
        records_sha256: their `records_digest`; empty where a checkpoint does not know it.
    """

    step: int
    loader: Mapping[str, Any]
    task: Mapping[str, float] = {}
    records: int = 0
    records_sha256: str = ""
    inputs: Mapping[str, str] = {}

    def with_records(self, records: Sequence[Record]) -> "Progress":
        """The position in these records.

        Raises:
            UserError: it is a position in other records, or in another order of them.
        """
        digest = records_digest(records)
        if self.records_sha256 not in ("", digest):
            raise UserError(
                "data.records: the usable records are others than when this run was interrupted "
                f"({self.records} then, {len(records)} now): restore the file or start in another "
                "workdir"
            )
        return self._replace(records=len(records), records_sha256=digest)


class _Digested:
    """A handler whose files get digests before the checkpoint gets its final name."""

    def finalize(self, directory: Any) -> None:
        """Ends an item's directory."""
        super().finalize(directory)  # type: ignore[misc]
        digests.write(Path(directory))


class _Arrays(_Digested, ocp.StandardCheckpointHandler):
    pass


class _Json(_Digested, ocp.JsonCheckpointHandler):
    pass


# Orbax finds the handler of an item by the type of its arguments.
@ocp.args.register_with_handler(_Arrays, for_save=True)
class _SaveArrays(ocp.args.StandardSave):
    pass


@ocp.args.register_with_handler(_Arrays, for_restore=True)
class _RestoreArrays(ocp.args.StandardRestore):
    pass


@ocp.args.register_with_handler(_Json, for_save=True)
class _SaveJson(ocp.args.JsonSave):
    pass


@ocp.args.register_with_handler(_Json, for_restore=True)
class _RestoreJson(ocp.args.JsonRestore):
    pass


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: WORKDIR/checkpoints.
        keep: how many of the newest to keep; the best one by held-out reward stays beside them.
        damaged: what to do where the newest is damaged: "stop", or take the "older" sound one and
            put those behind it aside as N.damaged.

    Raises:
        UserError: the directory cannot be used, or a damaged checkpoint is in the way.
    """

    def __init__(self, directory: Path, keep: int, damaged: str = "stop") -> None:
        self._directory = directory
        _hear_no_late_words()
        hosts.from_writer(lambda: _clear(directory), "the clearing of the checkpoints")
        self.put_aside = hosts.from_writer(
            lambda: _put_damaged_aside(directory, damaged), "the check of the checkpoints"
        )
        """Damaged checkpoints, newest first: (step, what is wrong)."""
        best = BestN(
            get_metric_fn=lambda metrics: metrics[SCORE],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
            best_fn=lambda metrics: metrics[SCORE],
            create=True,
        )
        try:
            self._manager = ocp.CheckpointManager(
                directory.resolve(),
                options=options,
                item_handlers={PARAMS: _Arrays(), OPTIMIZER: _Arrays(), PROGRESS: _Json()},
            )
        except ValueError as error:
            raise UserError(f"{directory}: cannot be read ({one_line(error)})") from error
        metrics = None if self.best is None else self._manager.metrics(self.best)
        self.best_score = float(metrics[SCORE]) if metrics else float("-inf")
        """Held-out reward of the best checkpoint; -inf before the first."""

    @property
    def latest(self) -> int | None:
        """Step of the newest finished checkpoint."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the highest held-out reward, if one was evaluated."""
        return self._manager.best_step()

    def save(
        self,
        state: TrainState,
        frozen: Mapping[str, Any],
        progress: Progress,
        score: float | None = None,
    ) -> None:
        """Writes a checkpoint in the background; the arrays may be used on at once.

        Args:
            state: what trains.
            frozen: what does not.
            progress: where the run stands.
            score: held-out mean reward at this point, where it was measured.
        """
        params = merge(state.trainable, frozen)
        chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), params)
        items = {
            PARAMS: _SaveArrays(params, chunks),
            OPTIMIZER: _SaveArrays(_optimizer_tree(state)),
            PROGRESS: _SaveJson(progress._asdict()),
        }
        if score is not None and not math.isfinite(score):
            score = None  # every held-out score failed; sorted in, it could displace the best
        metrics = None if score is None else {SCORE: score}
        self.best_score = max(self.best_score, float("-inf") if score is None else score)
        self._manager.save(progress.step, args=ocp.args.Composite(**items), metrics=metrics)

    def check(self) -> None:
        """Raises what a write in the background has met, as soon as that is known."""
        self._manager.check_for_errors()

    def restore(
        self, state: TrainState, frozen: Mapping[str, Any]
    ) -> tuple[TrainState, dict[str, Any], Progress]:
        """Reads the newest checkpoint.

        Args:
            state: shapes, dtypes and places of what trains (`state.abstract_state`).
            frozen: the same of what does not.

        Returns:
            The state, the frozen parameters, and the progress.
        """
        items = {
            PARAMS: _RestoreArrays(merge(state.trainable, frozen)),
            OPTIMIZER: _RestoreArrays(_optimizer_tree(state)),
            PROGRESS: _RestoreJson(),
        }
        try:
            found = self._manager.restore(self.latest, args=ocp.args.Composite(**items))
        except (OSError, ValueError, KeyError, TypeError) as error:
            where = self._directory / str(self.latest)
            raise UserError(f"{where}: cannot be restored ({one_line(error)})") from error
        tree, params = found[OPTIMIZER], found[PARAMS]
        trainable = _like(state.trainable, params)
        counts = (tree[name] for name in COUNTS)
        restored = TrainState(trainable, tree["opt_state"], *counts)
        return restored, _like(frozen, params), Progress(**found[PROGRESS])

    def close(self) -> None:
        """Waits for writes under way; what is left of one that failed is cleared away."""
        try:
            self._manager.wait_until_finished()
            self._manager.close()
        finally:
            if hosts.is_writer():
                with suppress(OSError):
                    _clear(self._directory)


def problem(step_directory: Path) -> str | None:
    """What is wrong with a checkpoint of a run, as ``FILE is not as it was written``; or None."""
    for item in (PARAMS, OPTIMIZER, PROGRESS):
        if not (step_directory / item).is_dir():
            return f"{item} is missing"
        if found := digests.problem(step_directory / item):
            return f"{item}/{found}"
    return None


def _hear_no_late_words() -> None:
    """Where one array of a checkpoint cannot be written, those that end later find nobody to tell.

    tensorstore then has a traceback printed for each, as one of an error that nobody can handle.
    """
    before = sys.unraisablehook
    if getattr(before, "hears_no_late_words", False):
        return

    def hook(told: "sys.UnraisableHookArgs") -> None:
        if not (told.exc_type is RuntimeError and str(told.exc_value) == "Event loop is closed"):
            before(told)

    hook.hears_no_late_words = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook


def _clear(directory: Path) -> None:
    """Removes checkpoints that were never finished: of a run that was killed, or a full disk."""
    for path in directory.glob(f"*{_UNFINISHED}*"):
        shutil.rmtree(path)


def _put_damaged_aside(directory: Path, damaged: str) -> list[tuple[int, str]]:
    aside: list[tuple[int, str]] = []
    for step in steps_of(directory):
        found = problem(directory / str(step))
        if found is None:
            break
        if damaged == "stop":
            raise UserError(
                f"{directory}/{step}: damaged, {found}; bring the file back from a copy, or let "
                "--config.run.damaged=older go on from the newest sound checkpoint"
            )
        aside.append((step, found))
    for step, _ in aside:
        number = next(n for n in count() if not (directory / _aside_name(step, n)).exists())
        (directory / str(step)).rename(directory / _aside_name(step, number))
    return aside


def _aside_name(step: int, number: int) -> str:
    return f"{step}.damaged" + (f".{number}" if number else "")


def one_line(error: BaseException) -> str:
    """The first line of a message that may be long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]


def _optimizer_tree(state: TrainState) -> dict[str, Any]:
    return {"opt_state": state.opt_state, **{name: getattr(state, name) for name in COUNTS}}


def _like(tree: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `params` that `tree` names."""
    return {
        name: _like(node, params[name]) if isinstance(node, Mapping) else params[name]
        for name, node in tree.items()
    }
