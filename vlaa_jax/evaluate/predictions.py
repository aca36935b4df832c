"""Files of predictions: VLMEvalKit's (xlsx, tsv, json) and JSON Lines, read and written.

A prediction is the whole text of a model. One question may have several, told apart by the column
``sample``; without that column, the first time an index appears is sample 0 and so on.
"""

import csv
import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlaa_jax import disk
from vlaa_jax.evaluate.questions import MAX_ROWS, plain_index
from vlaa_jax.foreign import parse_json, read_text, without_surrogates
from vlaa_jax.schema import UserError

MAX_FILE_BYTES = 2 * 2**30
MAX_CELL = 64 * 2**20
SUFFIXES = (".xlsx", ".tsv", ".json", ".jsonl")


@dataclass(frozen=True)
class Prediction:
    """One output for one question."""

    index: str
    text: str
    sample: int = 0
    finish_reason: str = ""
    """``length`` where it was cut; empty where that is not known."""
    tokens: int | None = None

    @property
    def truncated(self) -> bool:
        """Whether the output ended at the limit of new tokens."""
        return self.finish_reason == "length"


@dataclass(frozen=True)
class PredictionFile:
    """The predictions of a file, and the other columns it holds."""

    predictions: list[Prediction]
    columns: list[dict[str, str | None]]
    """Of the question of each prediction, as far as the file tells them."""


def read_predictions(path: Path) -> PredictionFile:
    """All predictions of a file.

    Raises:
        UserError: an unknown kind of file, too large, not readable, or a row without index or
            prediction, named by its number.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: is none of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UserError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes")
    seen: Counter[str] = Counter()
    found = PredictionFile([], [])
    for number, record in enumerate(_READERS[path.suffix](path), 1):
        if number > MAX_ROWS:
            raise UserError(f"{path}: more than {MAX_ROWS:,} rows")
        prediction, columns = _prediction(record, seen, f"{path}: row {number}")
        found.predictions.append(prediction)
        found.columns.append(columns)
    if not found.predictions:
        raise UserError(f"{path}: holds no predictions")
    _refuse_uneven(seen, path)
    return found


def _prediction(
    record: Mapping[str, Any], seen: Counter[str], where: str
) -> tuple[Prediction, dict[str, str | None]]:
    columns = {key: _text(value) for key, value in record.items()}
    if columns.get("index") in (None, "") or "prediction" not in columns:
        field = "prediction" if columns.get("index") else "index"
        raise UserError(f"{where} has no {field!r}")
    if isinstance(record["index"], dict | list):
        raise UserError(f"{where}: index is no text or number; the file wants a record per row")
    index = plain_index(columns["index"])
    sample = record.get("sample")
    if sample is None:
        sample = seen[index]
        seen[index] += 1
    tokens = record.get("tokens")
    try:
        numbers = int(sample), None if tokens in (None, "") else int(tokens)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{where}: sample and tokens are whole numbers ({error})") from error
    text, reason = columns["prediction"] or "", columns.get("finish_reason") or ""
    return Prediction(index, text, numbers[0], reason, numbers[1]), columns


def _refuse_uneven(seen: Mapping[str, int], path: Path) -> None:
    """Rows that come again are further samples only where every question has as many."""
    most = max(seen, key=seen.__getitem__, default="")
    least = min(seen, key=seen.__getitem__, default="")
    if seen.get(most) != seen.get(least):
        raise UserError(
            f"{path}: index {most!r} has {seen[most]} predictions and index {least!r} "
            f"{seen[least]}; drop the repeated rows, or name samples in a column 'sample'"
        )


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return without_surrogates(str(value))


# -- reading


def _read_tsv(path: Path) -> Iterator[Mapping[str, Any]]:
    csv.field_size_limit(MAX_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter="\t")
            header = next(rows, [])
            for number, row in enumerate(rows, 1):
                if len(row) not in (0, len(header)):
                    cells = f"{len(row)} cells, not {len(header)}"
                    raise UserError(f"{path}: row {number} has {cells}")
                if row:
                    yield dict(zip(header, row, strict=True))
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path}: not a table ({error})") from error


def _read_json(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        found = parse_json(read_text(path, MAX_FILE_BYTES), finite=False)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    for number, record in enumerate(found if isinstance(found, list) else [found], 1):
        yield _object(record, f"{path}: record {number}")


def _read_jsonl(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_CELL + 1):
            number += 1
            if len(line) > MAX_CELL:
                raise UserError(f"{path}: line {number} is longer than {MAX_CELL:,} bytes")
            if not line.strip():
                continue
            try:
                record = parse_json(line, finite=False)
            except ValueError as error:
                raise UserError(f"{path}: line {number}: {error}") from None
            yield _object(record, f"{path}: line {number}")


def _object(record: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(record, dict):
        raise UserError(f"{where} is no object")
    return record


def _read_xlsx(path: Path) -> Iterator[Mapping[str, Any]]:
    openpyxl = _openpyxl(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_FILE_BYTES:
                raise UserError(f"{path}: unpacks to more than {MAX_FILE_BYTES:,} bytes")
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        rows = book.worksheets[0].iter_rows(values_only=True)
        header = [str(name) for name in next(rows, ())]
        for row in rows:
            if any(cell is not None for cell in row):
                yield dict(zip(header, row, strict=False))
        book.close()
    except UserError:
        raise
    except Exception as error:  # openpyxl raises many kinds for one cause: an unusable file
        raise UserError(f"{path}: not a spreadsheet ({type(error).__name__}: {error})") from error


def _openpyxl(path: Path) -> Any:
    try:
        import openpyxl
    except ImportError:
        raise UserError(f"{path}: needs openpyxl; pip install 'vlaa_jax[eval]'") from None
    return openpyxl


_READERS = {".tsv": _read_tsv, ".json": _read_json, ".jsonl": _read_jsonl, ".xlsx": _read_xlsx}


# -- writing


def write_predictions(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with ``index``, ``prediction`` and any other columns, by the file's suffix.

    Files that VLMEvalKit scores hold all columns of the data set but the image, in its order.
    A spreadsheet cuts cells at 32,767 characters; the other kinds keep all.

    Raises:
        UserError: an unknown kind of file.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: is none of {', '.join(SUFFIXES)}")
    if path.suffix == ".xlsx":
        _write_xlsx(path, records)
        return
    with disk.writing(path, newline="") as file:
        if path.suffix == ".tsv":
            writer = csv.DictWriter(file, _header(records), delimiter="\t", quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(records)
        elif path.suffix == ".json":
            json.dump(list(records), file, ensure_ascii=False, indent=1)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in records)


def _write_xlsx(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    from vlaa_jax.evaluate.scoring.storage import spreadsheet_safe

    openpyxl = _openpyxl(path)
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet()
    header = _header(records)
    sheet.append(header)
    for row in records:
        cells = []
        for name in header:
            cell = openpyxl.cell.WriteOnlyCell(sheet, None)
            value = row.get(name)
            cell.value = spreadsheet_safe(value) if isinstance(value, str) else value
            if isinstance(value, str):
                cell.data_type = "s"  # a text that begins with = is a text
            cells.append(cell)
        sheet.append(cells)
    with disk.writing(path, "wb") as file:
        book.save(file)


def _header(records: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in records for key in row))
