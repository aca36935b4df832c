"""COCO and VG as LLaVA-CoT-100k (Xkev) has them: ``train.jsonl`` with ready-made traces.

Summary, caption and reasoning are the thought, the conclusion is the answer; nothing is asked of a
model. Questions for a box become RL samples, the others are imitated: in the paper, too, these two
sources have more samples for SFT than came through its pipeline.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vlaa_jax.pipeline.sources.formats import (
    ImageFile,
    Row,
    Unusable,
    conversation,
    json_rows,
    maker,
    one_file,
    text_of,
)

_SECTIONS = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
_NUMBER = r"\s*(\d(?:\.\d+)?|\.\d+)\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_ASKS_BOX = re.compile(r"bounding box|coordinates?\b", re.IGNORECASE)


def llava_cot(prefix: str) -> Callable[[Path], Iterator[tuple[str, Any]]]:
    """The rows whose images lie below ``prefix``."""

    def rows(folder: Path) -> Iterator[tuple[str, Any]]:
        for place, row in json_rows(one_file(folder, "train.jsonl")):
            image = row.get("image") if isinstance(row, dict) else None
            if isinstance(image, str) and image.startswith(prefix):
                yield place, maker(_row, row, folder, place, prefix)

    return rows


def _row(row: Any, folder: Path, place: str, prefix: str) -> Row:
    question, whole = conversation(row)
    parts = [_section(whole, name) for name in _SECTIONS]
    answer, image = parts.pop(), text_of(row, "image")
    boxes = _BOX.findall(answer)
    common: dict[str, Any] = {
        "name": f"{text_of(row, 'id', place)}-{place.rpartition('#')[2]}",
        "image": ImageFile(folder, (image, f"image/{image}", f"images/{image}")),
        "suffix": image.removeprefix(prefix),
        "question": question,
        "thought": "\n\n".join(part for part in parts if part),
        "answer": answer,
        "caption": parts[1],
        "caption_model": "LLaVA-CoT-100k",
    }
    if len(boxes) == 1 and _ASKS_BOX.search(question):
        gold = f"[{', '.join(boxes[0])}]"
        return Row(**common, gt=gold, verifier_type="iou", uses=("rl",))
    return Row(**common, gt=answer, verifier_type="open_ended", uses=("sft",))


def _section(text: str, name: str) -> str:
    """What stands between the tags of one section.

    Raises:
        Unusable: the tags are not there exactly once.
    """
    opening, closing = f"<{name}>", f"</{name}>"
    if text.count(opening) != 1 or text.count(closing) != 1:
        raise Unusable("trace without its four sections", name)
    return text.partition(opening)[2].partition(closing)[0].strip()
