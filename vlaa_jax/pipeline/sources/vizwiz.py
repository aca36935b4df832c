"""VizWiz VQA, training part: ``train.json`` and ``train/`` with the images."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlaa_jax.pipeline.sources.formats import (
    ImageFile,
    Row,
    Unusable,
    json_rows,
    maker,
    one_file,
    text_of,
)

_USELESS = frozenset(("unanswerable", "unsuitable", "unsuitable image", ""))


def vizwiz(folder: Path) -> Iterator[tuple[str, Any]]:
    """Questions of blind people on their photographs; the gold is what most of ten people said."""
    for place, row in json_rows(one_file(folder, "train.json")):
        yield place, maker(_row, row, folder)


def _row(row: Any, folder: Path) -> Row:
    image = text_of(row, "image")
    return Row(
        name=Path(image).stem,
        image=ImageFile(folder, (f"train/{image}", image, f"images/{image}")),
        question=text_of(row, "question"),
        gt=_majority(row),
        meta={"answer_type": text_of(row, "answer_type", "")},
    )


def _majority(row: Any) -> str:
    """The most frequent answer, confident ones first among equals, then the first given.

    Raises:
        Unusable: most people could not answer.
    """
    answers = row.get("answers")
    if not isinstance(answers, list) or not all(isinstance(a, dict) for a in answers):
        raise Unusable("field answers missing")
    if row.get("answerable") == 0:
        raise Unusable("unanswerable")
    said = [text_of(answer, "answer", "").casefold() for answer in answers]
    sure = Counter(
        word
        for word, answer in zip(said, answers, strict=True)
        if answer.get("answer_confidence") == "yes"
    )
    counts = Counter(said)
    best = max(counts, key=lambda word: (counts[word], sure[word]), default="")
    if best in _USELESS:
        raise Unusable("unanswerable")
    return best
