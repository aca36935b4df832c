"""Outcomes as they come in, to be read back in the order of the samples.

They arrive in the order in which calls end. One file takes them as they come and the place of each
is kept as a number, so 200,000 samples take a few megabytes.
"""

from array import array
from collections.abc import Iterator
from pathlib import Path

from vlaa_jax.pipeline.sample import Outcome

FILE = "outcomes.jsonl"


class Outcomes:
    """Takes outcomes in any order.

    Args:
        path: file to write; what was in it is given up, since the ledger knows how to get it back.
        count: samples there are.
    """

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._file = path.open("wb")
        self._starts = array("q", [-1]) * count
        self._end = 0
        self.count = count

    def add(self, outcome: Outcome) -> None:
        """Take the outcome of one sample; a later one of the same position counts."""
        line = outcome.to_json().encode() + b"\n"
        self._file.write(line)
        self._starts[outcome.position] = self._end
        self._end += len(line)

    def __iter__(self) -> Iterator[Outcome]:
        """Outcomes in the order of the samples; those that have none are left out."""
        self._file.flush()
        with self._path.open("rb") as file:
            for start in self._starts:
                if start >= 0:
                    file.seek(start)
                    yield Outcome.from_json(file.readline())

    def pending(self) -> int:
        """Samples that have no outcome yet."""
        return sum(start < 0 for start in self._starts)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
