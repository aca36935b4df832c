"""DocVQA, training part: the official ``train_v1.0*.json`` with ``documents/``, or Parquet."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlaa_jax.foreign import parse_json
from vlaa_jax.pipeline.sources.formats import (
    Row,
    Unusable,
    image_of,
    json_rows,
    maker,
    parquet_rows,
    text_of,
)
from vlaa_jax.schema import UserError

_MAX_BYTES = 512 << 20
_COLUMNS = ("questionId", "question", "answers", "docId", "ucsf_document_id", "data_split")


def docvqa(folder: Path) -> Iterator[tuple[str, Any]]:
    """Questions on scanned pages; the gold is a short text."""
    for place, row in _rows(folder):
        yield place, maker(_row, row, folder, place)


def _rows(folder: Path) -> Iterator[tuple[str, Any]]:
    if paths := sorted(folder.glob("**/train*.parquet")):
        yield from parquet_rows(paths, _COLUMNS)
        return
    if not (files := sorted(folder.glob("train*.json*"))):
        raise UserError(f"{folder}: holds no train*.parquet and no train*.json")
    with files[0].open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise UserError(f"{files[0]}: more than {_MAX_BYTES >> 20} MiB")
    try:
        whole = parse_json(data, finite=False)
    except ValueError:  # one row a line, then
        yield from json_rows(files[0])
        return
    rows = whole.get("data", [whole]) if isinstance(whole, dict) else whole
    if not isinstance(rows, list):
        raise UserError(f"{files[0]}: has no list of questions under 'data'")
    for number, row in enumerate(rows):
        yield f"{files[0].name}#{number}", row


def _row(row: Any, folder: Path, place: str) -> Row:
    answers = row.get("answers")
    if not isinstance(answers, list) or not answers:
        raise Unusable("field answers missing")
    texts = [text_of({"answers": answer}, "answers") for answer in answers]
    return Row(
        name=text_of(row, "questionId", place),
        image=image_of(row, folder, "documents"),
        question=text_of(row, "question"),
        gt=texts[0],
        meta={"answers": texts},
    )
