"""The questions of a benchmark: columns in memory, images read when they are asked for."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlaa_jax.evaluate.nouns import Benchmark
from vlaa_jax.evaluate.scoring.storage import MISSING
from vlaa_jax.schema import UserError

MAX_ROWS = 1_000_000
OPTIONAL = frozenset({"hint", "knowledge concept", *"ABCDEFG"})
"""Columns that a question may lack."""
_CHUNK = 1 << 20

Columns = dict[str, str | None]


@dataclass(frozen=True)
class Questions:
    """All questions of one file or directory."""

    rows: Sequence[Columns]
    images: Callable[[int], list[bytes]]
    """Encoded images of the row at a place."""
    source: str
    digest: str
    """MD5 of the public file, else of the names and sizes of the files; for provenance."""
    without_image: int = 0
    """Rows that were left out because they have none."""

    def limited(self, limit: int) -> "Questions":
        """The first rows; 0 keeps all."""
        rows = self.rows[:limit] if limit else self.rows
        return Questions(rows, self.images, self.source, self.digest, self.without_image)


def open_questions(benchmark: Benchmark, root: Path, *, check_digest: bool = True) -> Questions:
    """The questions of a benchmark below a directory: ``DATASET.tsv``, or a folder ``DATASET``.

    Args:
        benchmark: which.
        root: directory with the public tables, or the originals from the Hugging Face hub, a
            folder for each.
        check_digest: whether a table must be the public one to the byte.

    Raises:
        UserError: there is nothing there, or it is not what it should be.
    """
    from vlaa_jax.evaluate.hub_files import read_folder
    from vlaa_jax.evaluate.tsv import read_table

    table, folder = root / f"{benchmark.dataset}.tsv", root / benchmark.dataset
    if table.is_file():
        digest = md5_of(table)
        if check_digest and benchmark.md5 and digest != benchmark.md5:
            raise UserError(
                f"{table}: its MD5 is {digest}, the public file's is {benchmark.md5}; fetch it "
                "again, or set check_digest=False (data. or benchmarks., --any-digest) for your own"
            )
        questions = read_table(table, digest)
    elif folder.is_dir():
        questions = read_folder(folder, benchmark)
    else:
        raise UserError(f"{benchmark.title}: neither {table} nor the folder {folder} is there")
    return checked(questions, benchmark)


def checked(questions: Questions, benchmark: Benchmark) -> Questions:
    """The questions, after a look at what the rules will need.

    Raises:
        UserError: no rows, an index twice, or a column that is missing everywhere.
    """
    if not questions.rows:
        without = f" with an image ({questions.without_image:,} without)"
        raise UserError(
            f"{questions.source}: holds no questions{without if questions.without_image else ''}"
        )
    seen: set[str | None] = set()
    for place, row in enumerate(questions.rows):
        index = row.get("index")
        if not index or index in seen:
            problem = "has no index" if not index else f"repeats index {index}"
            raise UserError(f"{questions.source}: row {place + 1} {problem}")
        seen.add(index)
    for column in ("question", *benchmark.columns):
        if column not in OPTIONAL and all(row.get(column) is None for row in questions.rows):
            raise UserError(f"{questions.source}: no row has a value in the column {column!r}")
    return questions


def missing_as_none(text: str) -> str | None:
    """A cell as the original reads it; words for a missing value become None."""
    return None if text in MISSING else text


def plain_index(value: object) -> str:
    """An index as text: 7, 7.0 and "7" are the same."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return text.removesuffix(".0") if text.removesuffix(".0").isdigit() else text


def md5_of(path: Path) -> str:
    """MD5 of a file, as the public tables are pinned by it (against accidents, not malice)."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
