"""A Hugging Face data set saved as Parquet: texts in columns, image files in the rows.

Rows are read a row group at a time. That is quick in order and slow at random where row groups are
large: ``python -m vlaa_jax.data convert`` writes records and image files once.
"""

import threading
from collections import OrderedDict
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

from vlaa_jax.data.images.files import in_memory
from vlaa_jax.data.records.reject import Refusal
from vlaa_jax.data.sources.source import ParsedSource
from vlaa_jax.foreign import image_suffix, shown
from vlaa_jax.schema import Record, UserError

_KEPT = 4
"""Row groups of images that are kept: neighbours are often asked for together."""


def looks_so(path: Path, start: bytes) -> bool:
    """Whether this is a Parquet file, or a folder of such."""
    return start.startswith(b"PAR1") or (path.is_dir() and bool(_files(path)))


def _files(path: Path) -> list[Path]:
    return (
        [path]
        if path.is_file()
        else sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")])
    )


class ParquetRecords(ParsedSource):
    """The rows of a Parquet file, or of all Parquet files of a folder in order of their names.

    Columns bear the names of a record's fields, or are named by ``columns``. The column ``image``
    (or ``images``) holds image files as Hugging Face stores them, ``{"bytes": ..., "path": ...}``,
    or a list of these. An image is called ``STEM/ROW-NUMBER.SUFFIX``.
    """

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
        self._groups = [
            (number, group, file.metadata.row_group(group).num_rows)
            for number, file in enumerate(self._files)
            for group in range(file.num_row_groups)
        ]
        texts = [name for name in names if name != self._image_column]
        self._rows = [
            (place, row, fields)
            for place, (number, group, _) in enumerate(self._groups)
            for row, fields in enumerate(self._table(number, group, texts).to_pylist())
        ]
        self._images: OrderedDict[int, list[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def _table(self, number: int, group: int, columns: list[str]) -> Any:
        import pyarrow

        try:
            return self._files[number].read_row_group(group, columns=columns)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{self.path}: cannot be read: {str(error)[:200]}") from error

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
                column = [self._image_column or ""]
                table = self._table(*self._groups[group][:2], column)
                self._images[group] = table.column(0).to_pylist()
                if len(self._images) > _KEPT:
                    self._images.popitem(last=False)
            self._images.move_to_end(group)
            value = self._images[group][row]
        items = value if isinstance(value, list) else [] if value is None else [value]
        return [_bytes(item, self._image_column or "") for item in items]

    def _image(self, record: Record, number: int) -> AbstractContextManager[BinaryIO]:
        return in_memory(self._encoded(record.place)[number], record.images[number])

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(f"{self.path}: Parquet files cannot be sent to another process")


def _opened(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        how = "pip install 'vlaa_jax[parquet]'"
        raise UserError(f"{path}: to read Parquet, install pyarrow: {how}") from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: is no sound Parquet file: {str(error)[:200]}") from error


def _bytes(item: Any, column: str) -> bytes:
    data = item.get("bytes") if isinstance(item, dict) else item
    if not isinstance(data, bytes):
        what = "only a path, no bytes" if isinstance(item, dict) else shown(item)
        raise Refusal(column, f"holds {what}; image files are needed, as Hugging Face stores them")
    return data
