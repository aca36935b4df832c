"""Weights & Biases beside metrics.jsonl and TensorBoard, where a run asks for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlaa_jax import disk
from vlaa_jax.foreign import read_text
from vlaa_jax.schema import UserError


class Wandb:
    """A run of Weights & Biases in the run directory; resumed with it.

    The mode is the environment's (``WANDB_MODE=offline`` needs no network and no key).

    Args:
        workdir: run directory; its name is the run's.
        project: the project's name.
        settings: shown beside the run.

    Raises:
        UserError: the package is missing, or the run cannot be started.
    """

    def __init__(self, workdir: Path, project: str, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("run.wandb: needs the package wandb: pip install wandb") from error
        kept = workdir / "wandb_id"
        identity = read_text(kept, 200).strip() if kept.exists() else None
        try:
            self._run = wandb.init(
                project=project,
                name=workdir.name,
                id=identity,
                resume="allow",
                dir=str(workdir),
                config=dict(settings),
            )
        except (wandb.Error, OSError) as error:
            raise UserError(f"run.wandb: {' '.join(str(error).split())[:200]}") from error
        disk.write_text(kept, f"{self._run.id}\n")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of a step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()
