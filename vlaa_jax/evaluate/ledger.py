"""Append-only files of JSON lines that survive a kill at any moment.

A record counts once its line is complete. A line that a kill tore is cut off when the file is
opened again; damage anywhere else is an error, because nothing here writes it.
"""

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlaa_jax import disk
from vlaa_jax.schema import UserError

MAX_LINE = 64 * 2**20


class Ledger:
    """One file, open for appending by one process at a time.

    Args:
        path: made where it is not there.

    Attributes:
        records: what the file held when it was opened; ``append`` does not add to it.

    Raises:
        UserError: it cannot be written, another process has it open, or a line that is not the last
            is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"{path}: another run is writing to it; wait for its end") from None
        try:
            self.records, end = read_ledger(path)
        except UserError:
            self._file.close()
            raise
        self._file.truncate(end)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; when this returns it outlives the process.

        Raises:
            UserError: the disk does not take it; the file is as before.
        """
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"
        data = line.encode("utf-8", "replace")
        with disk.refusals(self.path, "what it holds is kept, the same command goes on from there"):
            disk.append(self._file, data)

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_ledger(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a file and where the last complete one ends.

    Raises:
        UserError: a line other than a torn last one is damaged, or is too long.
    """
    records: list[dict[str, Any]] = []
    end = number = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise UserError(f"{path}: line {number} is longer than {MAX_LINE:,} bytes")
            if not line.endswith(b"\n"):
                break
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is damaged ({error})") from error
            if not isinstance(record, dict):
                raise UserError(f"{path}: line {number} is no object")
            records.append(record)
            end += len(line)
    return records, end
