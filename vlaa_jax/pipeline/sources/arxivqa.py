"""ArxivQA (MMInstruction/ArxivQA): ``arxivqa.jsonl`` and ``images/``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlaa_jax.pipeline.sources.formats import (
    Row,
    Unusable,
    image_of,
    json_rows,
    maker,
    one_file,
    option_letter,
    text_of,
)

_LETTERS = "ABCDEFGHIJ"


def arxivqa(folder: Path) -> Iterator[tuple[str, Any]]:
    """Questions on figures with options; the gold is a letter."""
    for place, row in json_rows(one_file(folder, "arxivqa.jsonl")):
        yield place, maker(_row, row, folder, place)


def _row(row: Any, folder: Path, place: str) -> Row:
    options, gold = letters_of(row.get("options"), text_of(row, "label"))
    listed = "\n".join(f"{_LETTERS[i]}) {option}" for i, option in enumerate(options))
    return Row(
        name=text_of(row, "id", place),
        image=image_of(row, folder, "images"),
        question=f"{text_of(row, 'question')}\n{listed}",
        gt=gold,
        meta={"rationale": text_of(row, "rationale", "")},
    )


def letters_of(options: Any, label: str) -> tuple[list[str], str]:
    """Options without their letters, and the letter of the right one.

    Options and labels come as ``B) text``, ``(B) text``, ``B. text``, ``B``, or the bare text.

    Raises:
        Unusable: fewer than two options, letters out of order, or a label that names no option.
    """
    if not isinstance(options, list) or not all(isinstance(o, str) for o in options):
        raise Unusable("field options is no list of texts")
    options = [text_of({"options": option}, "options", "") for option in options]
    split = [option_letter(option) for option in options]
    letters = [letter for letter, _ in split]
    if all(letters) and letters != list(_LETTERS[: len(letters)]):
        raise Unusable("options out of order", " ".join(str(letter) for letter in letters))
    texts = [text for _, text in split] if all(letters) else options
    if not 2 <= len(texts) <= len(_LETTERS) or not all(texts):
        raise Unusable("fewer than two options")
    letter, rest = option_letter(label)
    if label.strip() in texts and texts.count(label.strip()) == 1:
        return texts, _LETTERS[texts.index(label.strip())]
    if letter is None or letter not in _LETTERS[: len(texts)]:
        raise Unusable("label names no option", label[:200])
    if rest and rest != texts[_LETTERS.index(letter)]:
        raise Unusable("label contradicts its option", label[:200])
    return texts, letter
