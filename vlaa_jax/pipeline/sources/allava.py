"""ALLaVA-4V, part LAION: ``ALLaVA-Instruct-LAION-4V.json`` and ``ALLaVA-Caption-LAION-4V.json``.

The two are joined by the number at the end of their ids; the caption is the publisher's own.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlaa_jax.data.records.json_index import index_json
from vlaa_jax.pipeline.sources.formats import (
    ImageFile,
    Row,
    Unusable,
    conversation,
    json_rows,
    maker,
    object_of,
    one_file,
    parsed,
    text_of,
)

CAPTION_MODEL = "gpt-1106-preview"
_ID = re.compile(rb'"id"\s*:\s*"allava_laion_cap_(\d+)"')
_NUMBER = re.compile(r"_(\d+)\Z")


def allava_laion(folder: Path) -> Iterator[tuple[str, Any]]:
    """Open questions on pictures from the web; the gold is a model's answer."""
    captions = _Captions(one_file(folder, "ALLaVA-Caption-LAION-4V.json"))
    for place, row in json_rows(one_file(folder, "ALLaVA-Instruct-LAION-4V.json")):
        yield place, maker(_row, row, folder, captions)


def _row(row: Any, folder: Path, captions: "_Captions") -> Row:
    name = text_of(row, "id")
    number = _NUMBER.search(name)
    if number is None:
        raise Unusable("field id has no number", name)
    image = text_of(row, "image").lstrip("/")
    question, answer = conversation(row)
    return Row(
        name=name,
        image=ImageFile(folder, (image, image.removeprefix("allava_laion/"))),
        suffix=f"images/{Path(image).name}",
        question=question,
        gt=answer,
        caption=captions.of(int(number[1])),
        caption_model=CAPTION_MODEL,
        meta={"url": text_of(row, "url", "")},
    )


class _Captions:
    """Captions by number; only their places are kept in memory."""

    def __init__(self, path: Path) -> None:
        self._spans = index_json(path).spans_N2
        self._file = path.open("rb")
        self._places: dict[int, int] = {}
        for index in range(len(self._spans)):
            if match := _ID.search(self._bytes(index, 4096)):
                self._places[int(match[1])] = index

    def _bytes(self, index: int, most: int = 1 << 20) -> bytes:
        start, end = (int(x) for x in self._spans[index])
        return os.pread(self._file.fileno(), min(end - start, most), start)

    def of(self, number: int) -> str:
        if number not in self._places:
            raise Unusable("caption missing")
        return conversation(object_of(parsed(self._bytes(self._places[number]))))[1]
