"""Math PUMA, folder Synthesis of Math-PUMA_Data_Stage2: ``train.json`` and an image folder.

A row is one problem in two forms, of which one says more in words and less in the image. The form
with fewer words and an image is the question; the other is the textual version that the reasoning
model reads in place of a caption.
"""

import re
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

_MARKED = re.compile(r"†\s*(?:Answer\s*)?[:：]\s*(.+?)\s*\Z", re.IGNORECASE)
_UNKNOWN = re.compile(r"\A[\\$\s({\[]*[a-wA-W]\s*=")
_FUNCTION = re.compile(r"\b(function|equation|expression|formula)\b", re.IGNORECASE)


def math_puma(folder: Path) -> Iterator[tuple[str, Any]]:
    """Synthetic plane, solid and function problems; the gold is an expression."""
    for place, row in json_rows(one_file(folder, "train.json", "train.jsonl")):
        yield place, maker(_row, row, folder, place)


def _row(row: Any, folder: Path, place: str) -> Row:
    forms = []
    for end in ("", "_2"):
        instruction = text_of(row, f"instruction{end}")
        output = text_of(row, f"output{end}", "")
        forms.append((instruction, text_of(row, f"image_url{end}", ""), output))
    shown = [form for form in forms if form[1]]
    if not shown:
        raise Unusable("field image_url missing")
    question, image, output = min(shown, key=lambda form: len(form[0]))
    textual = max((form[0] for form in forms), key=len)
    gold = gold_of(output)
    # A gold that only gives the unknown of a function does not answer a question for the function.
    partial = _UNKNOWN.match(gold) is not None and _FUNCTION.search(question) is not None
    name = Path(image).stem
    return Row(
        name=f"{name}-{place.rpartition('#')[2]}",
        image=ImageFile(folder, (image, f"images/{image}")),
        question=question,
        gt=gold,
        context=textual,
        uses=("sft",) if partial else (),
        meta={"text_question": textual},
    )


def gold_of(output: str) -> str:
    """The answer of a worked solution: behind the dagger of its last line.

    Raises:
        Unusable: there is none.
    """
    match = _MARKED.search(output.strip().rpartition("\n")[2])
    if match is None:
        raise Unusable("gold is not marked", output[-200:])
    return match[1]
