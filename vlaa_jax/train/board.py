"""TensorBoard files, written at once: what the disk refuses is known where it happens.

tensorboardX's own ``SummaryWriter`` hands events to a thread through a short queue; where the disk
is full that thread dies, and the run waits for room in the queue for ever.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

Shown = tuple[str, np.ndarray | None, str]
"""A sample: its name, an image [height, width, 3] of uint8 or none, and Markdown."""


class Board:
    """An event file of a run, or of the part of it since it was resumed.

    Args:
        folder: where the run's event files are.
        first_step: what earlier files hold from this step on does not count any more.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(exist_ok=True)
        self._file = EventsWriter(str(folder / "events"), f".{first_step}")
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))
        self._file.flush()

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Shows numbers of a step."""
        for name, value in numbers.items():
            self._write(step=step, summary=summary.scalar(name, value))
        self._file.flush()

    def samples(self, step: int, shown: Sequence[Shown]) -> None:
        """Shows what was answered."""
        for name, image, words in shown:
            if image is not None:
                told = summary.image(f"{name}/image", image, dataformats="HWC")
                self._write(step=step, summary=told)
            self._write(step=step, summary=summary.text(f"{name}/answer", words))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, **what: object) -> None:
        self._file.write_event(Event(wall_time=time.time(), **what))
