"""Saving and restoring a run with Orbax: parameters, optimizer, and where everything stood.

A checkpoint is written between steps. It holds all that the next step depends on, and random keys
are functions of (seed, step, prompt), so an interrupted run goes on as if nothing had happened; the
step that was under way is done again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from vlaa_jax.schema import UserError
from vlaa_jax.train.state import TrainState, merge

PARAMS, OPTIMIZER, PROGRESS = "params", "optimizer", "progress"


class Progress(NamedTuple):
    """Host-side position of a run, as JSON.

    Attributes:
        step: number of the next step.
        loader: state of the data loader.
        kl_coef: current KL coefficient.
    """

    step: int
    loader: Mapping[str, Any]
    kl_coef: float


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: WORKDIR/checkpoints.
        keep: how many to keep.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        try:
            self._manager = ocp.CheckpointManager(directory.resolve(), options=options)
        except OSError as error:
            raise UserError(f"{directory}: cannot be written ({error.strerror})") from error

    @property
    def latest(self) -> int | None:
        """Step of the newest finished checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, frozen: Mapping[str, Any], progress: Progress) -> None:
        """Writes a checkpoint in the background; the arrays may be used on at once."""
        items = {
            PARAMS: ocp.args.StandardSave(merge(state.trainable, frozen)),
            OPTIMIZER: ocp.args.StandardSave(_optimizer_tree(state)),
            PROGRESS: ocp.args.JsonSave(progress._asdict()),
        }
        self._manager.save(progress.step, args=ocp.args.Composite(**items))

    def restore(
        self, state: TrainState, frozen: Mapping[str, Any]
    ) -> tuple[TrainState, dict[str, Any], Progress]:
        """Reads the newest checkpoint into the shapes and places of `state`.

        Returns:
            The state, all parameters (nested dict), and the progress.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, merge(state.trainable, frozen))
        optimizer = jax.tree.map(ocp.utils.to_shape_dtype_struct, _optimizer_tree(state))
        items = {
            PARAMS: ocp.args.StandardRestore(abstract),
            OPTIMIZER: ocp.args.StandardRestore(optimizer),
            PROGRESS: ocp.args.JsonRestore(),
        }
        found = self._manager.restore(self.latest, args=ocp.args.Composite(**items))
        tree = found[OPTIMIZER]
        trainable = _like(state.trainable, found[PARAMS])
        restored = TrainState(trainable, tree["opt_state"], tree["updates"], tree["skipped"])
        return restored, found[PARAMS], Progress(**found[PROGRESS])

    def close(self) -> None:
        """Waits for writes under way."""
        self._manager.wait_until_finished()
        self._manager.close()


def _optimizer_tree(state: TrainState) -> dict[str, Any]:
    return {"opt_state": state.opt_state, "updates": state.updates, "skipped": state.skipped}


def _like(tree: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `params` that `tree` names."""
    return {
        name: _like(node, params[name]) if isinstance(node, Mapping) else params[name]
        for name, node in tree.items()
    }
