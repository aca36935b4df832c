"""CLEVR-Math and GeoQA170K as they are in LLaVA-OneVision-Data: Parquet, one conversation a row.

Files: ``*.parquet`` (id, image, conversations), or the same as JSON or JSON Lines with image paths.
Beside CLEVR-Math may lie ``scenes.jsonl``, the scenes of CLEVR v1.0, one a line.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlaa_jax.pipeline.sources.formats import (
    Row,
    Unusable,
    conversation,
    image_of,
    json_rows,
    maker,
    object_of,
    one_file,
    parquet_rows,
    text_of,
)
from vlaa_jax.schema import UserError

_LOOKS = ("size", "color", "material", "shape")
_CLEVR_NAME = re.compile(r"CLEVR_\w+?_\d+")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?![\w.]*\d)")
_ANSWER = re.compile(r"[Aa]nswer\s*(?:is|:)?\s*\(?([A-H])\b")
_QUESTION = re.compile(r"\A.*?\bQuestion\s*:\s*", re.DOTALL)


def _rows(folder: Path) -> Iterator[tuple[str, Any]]:
    if paths := sorted(folder.glob("**/*.parquet")):
        yield from parquet_rows(paths, ("id", "conversations"))
    else:
        yield from json_rows(one_file(folder, "train.jsonl", "train.json"))


def _name_and_image(folder: Path, place: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Row that say what it is and where its image lies."""
    return {"name": text_of(row, "id", place), "image": image_of(row, folder, "images")}


def clevr_math(folder: Path) -> Iterator[tuple[str, Any]]:
    """Counting questions; the gold is a number."""
    scenes = _scenes(folder / "scenes.jsonl")
    for place, row in _rows(folder):
        yield place, maker(_clevr, row, folder, place, scenes)


def _clevr(row: Any, folder: Path, place: str, scenes: Mapping[str, str]) -> Row:
    question, answer = conversation(row)
    numbers = _NUMBER.findall(answer)
    if len(numbers) != 1:
        raise Unusable("gold is not one number", answer[:200])
    found = _name_and_image(folder, place, row)
    path = row["image"] if isinstance(row["image"], str) else ""
    known = _CLEVR_NAME.search(f"{found['name']} {path}")
    context = scenes.get(known[0], "") if known else ""
    return Row(**found, question=question, gt=numbers[0], context=context)


def _scenes(path: Path) -> dict[str, str]:
    """A sentence per scene that lists its objects, by the name of the image."""
    sentences = {}
    for place, scene in json_rows(path) if path.is_file() else ():
        try:
            things = [object_of(thing) for thing in object_of(scene)["objects"]]
            kinds = [" ".join(text_of(thing, key) for key in _LOOKS) for thing in things]
            name = text_of(scene, "image_filename").partition(".")[0]
        except (Unusable, KeyError, TypeError) as error:
            raise UserError(f"{path.parent / place}: no scene of CLEVR v1.0 ({error})") from None
        sentences[name] = f"The scene holds {len(kinds)} objects: {', '.join(kinds)}."
    return sentences


def geoqa170k(folder: Path) -> Iterator[tuple[str, Any]]:
    """Geometry questions with choices; the gold is a letter."""
    for place, row in _rows(folder):
        yield place, maker(_geoqa, row, folder, place)


def _geoqa(row: Any, folder: Path, place: str) -> Row:
    question, answer = conversation(row)
    letters = _ANSWER.findall(answer) or re.findall(r"\A\(?([A-H])\)?[.:]?\Z", answer)
    if not letters:
        raise Unusable("gold is no option letter", answer[-200:])
    question = _QUESTION.sub("", question, count=1)  # the instruction before it is about form
    if "Choices:" not in question:
        raise Unusable("question without choices")
    return Row(**_name_and_image(folder, place, row), question=question, gt=letters[-1])
