"""A Hugging Face data set saved as Parquet: texts in columns, image files in the rows.

Rows are read a row group at a time. That is quick in order and slow at random where row groups are
large: ``python -m vlaa_jax.data convert`` writes records and image files once.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlaa_jax.data.records.parse import Refusal
from vlaa_jax.data.sources.source import ImageHolder, ParsedSource
from vlaa_jax.foreign import image_suffix, shown
from vlaa_jax.schema import Record, UserError, printable

_KEPT = 4
"""Row groups of images that are kept: neighbours are often asked for together."""


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")])


class ParquetRecords(ImageHolder, ParsedSource):
    """The rows of a Parquet file, or of all Parquet files of a folder in order of their names.

    Columns bear the names of a record's fields, or are named by ``columns``. The column ``image``
    (or ``images``) holds image files as Hugging Face stores them, ``{"bytes": ..., "path": ...}``,
    or a list of these. An image is called ``STEM/ROW-NUMBER.SUFFIX``.
    """

    @staticmethod
    def looks_so(path: Path, start: bytes) -> bool:
        """Whether this is a Parquet file, or a folder of such."""
        return start.startswith(b"PAR1") or (path.is_dir() and bool(_files(path)))

    def _open(self) -> None:
        super()._open()
        self._files = [_opened(file) for file in _files(self.path)]
        if not self._files:
            raise UserError(f"{self.path}: holds no Parquet file")
        names = self._files[0].schema_arrow.names
        named = self._parse.columns.items()
        if missing := sorted(name for field, name in named if not {field, name} & set(names)):
            raise UserError(
                f"{self.path}: has no column {', '.join(missing)}; there are {', '.join(names)}"
            )
        fields = ("image", "images")
        wanted = [*(self._parse.columns.get(field, field) for field in fields), *fields]
        self._image_column = next((name for name in wanted if name in names), None)
        for file, path in zip(self._files, _files(self.path), strict=True):
            if self._image_column not in (None, *file.schema_arrow.names):
                raise UserError(
                    f"{path}: has no column {self._image_column}, as the first file has"
                )
        self._groups = [
            (number, group, file.metadata.row_group(group).num_rows)
            for number, file in enumerate(self._files)
            for group in range(file.num_row_groups)
        ]
        texts = [name for name in names if name != self._image_column]
        self._rows = [
            (place, row, fields)
            for place, (number, group, _) in enumerate(self._groups)
            for row, fields in enumerate(self._values(number, group, texts))
        ]
        self._images: OrderedDict[int, list[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def _values(self, number: int, group: int, columns: list[str]) -> list[dict[str, Any]]:
        """The rows of a group; their bytes are looked at before values are made of them."""
        with _said(self.path, "cannot be read"):
            file = self._files[number]
            table = file.read_row_group(group, columns=columns)
            table.validate(full=True)
            rows = list(table.to_pylist())
            if len(rows) != file.metadata.row_group(group).num_rows:
                raise ValueError(f"row group {group} has other rows in {', '.join(columns)}")
            return rows

    def __len__(self) -> int:
        return len(self._rows)

    def _read(self, index: int) -> Record:
        fields = dict(self._rows[index][2])
        if self._image_column is not None:
            fields[self._image_column] = [
                f"{self.path.stem}/{index:06d}-{number}.{image_suffix(data) or 'img'}"
                for number, data in enumerate(self._encoded(index))
            ]
        return self._parse(fields, f"{self.path.stem}-{index:06d}", index)

    def _encoded(self, index: int) -> list[bytes]:
        group, row, _ = self._rows[index]
        with self._lock:
            if group not in self._images:
                name = self._image_column or ""
                values = self._values(*self._groups[group][:2], [name])
                self._images[group] = [fields.get(name) for fields in values]
                if len(self._images) > _KEPT:
                    self._images.popitem(last=False)
            self._images.move_to_end(group)
            value = self._images[group][row]
        items = value if isinstance(value, list) else [] if value is None else [value]
        return [_bytes(item, self._image_column or "") for item in items]

    def encoded_images(self, record: Record) -> Sequence[bytes]:
        """The image files of one of the records, byte for byte."""
        return self._encoded(record.place)


def _opened(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        how = "pip install 'vlaa_jax[parquet]'"
        raise UserError(f"{path}: to read Parquet, install pyarrow: {how}") from None
    with _said(path, "is no sound Parquet file"):
        file = pyarrow.parquet.ParquetFile(path)
        _ = file.schema_arrow.names  # made of bytes now, and not all of them are names
        return file


@contextmanager
def _said(path: Path, what: str) -> Iterator[None]:
    """Makes a UserError of what pyarrow raises about a file.

    That are its own kinds, and those of Python where a value cannot be made: texts that are no
    UTF-8, times out of range, time zones that nobody knows.
    """
    import pyarrow

    odd = (pyarrow.ArrowException, OSError, ValueError, ArithmeticError, LookupError)
    try:
        yield
    except odd as error:
        reason = " ".join(printable(str(error)).split())[:200]
        raise UserError(f"{path}: {what}: {reason}") from error


def _bytes(item: Any, column: str) -> bytes:
    data = item.get("bytes") if isinstance(item, dict) else item
    if not isinstance(data, bytes):
        what = "only a path, no bytes" if isinstance(item, dict) else shown(item)
        raise Refusal(column, f"holds {what}; image files are needed, as Hugging Face stores them")
    return data
