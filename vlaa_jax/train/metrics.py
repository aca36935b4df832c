"""One writer for everything a run reports: metrics.jsonl, TensorBoard, a line on the terminal."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

from vlaa_jax import disk
from vlaa_jax.train.board import Board


class MetricsWriter:
    """Writes one JSON object per step and the same numbers to TensorBoard.

    On resume, lines of steps that will be done again are dropped first, so that every step is in
    the file once.

    Args:
        workdir: run directory.
        first_step: lines from this step on are dropped.
    """

    def __init__(self, workdir: Path, first_step: int) -> None:
        self._path = workdir / "metrics.jsonl"
        _keep_lines_before(self._path, first_step)
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        self.board = Board(workdir / "tensorboard", first_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends the metrics of a step."""
        numbers = {name: float(value) for name, value in metrics.items()}
        line = {k: (v if math.isfinite(v) else None) for k, v in numbers.items()}
        disk.append(self._file, json.dumps({"step": step, **line}).encode() + b"\n")
        self.board.scalars(step, numbers)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self.board.close()


def _keep_lines_before(path: Path, first_step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            done = json.loads(line)["step"] < first_step
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # a line cut off by the interruption
        if done:
            kept.append(line + "\n")
    disk.write_text(path, "".join(kept))


class StepClock:
    """Seconds spent in the named phases of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()
        self._lap = self._began

    def lap(self, name: str) -> None:
        """Books the time since the last lap under `name`."""
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._lap
        self._lap = now

    @property
    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.monotonic() - self._began
