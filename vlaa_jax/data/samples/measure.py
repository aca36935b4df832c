"""How long a record is to the model, from its text and its image sizes; no pixel is touched."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlaa_jax.data.images.grid import Grid, unit_count
from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.text.chat import IMAGE_TOKEN, Chat
from vlaa_jax.schema import Record, UserError


class Built(dict[str, Any]):
    """What a build knows of a record: its ``meta["built"]``.

    A type of its own, so that a record file cannot pass its own "built" off as measured.
    """


class Unfit(UserError):
    """A record that no model can read as it is; ``field`` names the part that is to blame."""

    def __init__(self, field: str, reason: str, record_id: str) -> None:
        super().__init__(f"record {record_id!r}: {reason}")
        self.field, self.reason, self.record_id = field, reason, record_id

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.field, self.reason, self.record_id)


@dataclass(frozen=True)
class Measure:
    """Lengths of one record at given pixel limits."""

    tokens: int
    """All tokens: text, image tokens, and the answer where it is to be learnt."""
    image_tokens: int
    answer_tokens: int
    patches: int
    grids: tuple[Grid, ...]


def measure(
    record: Record,
    sizes: Sequence[tuple[int, int]],
    chat: Chat,
    processor: ImageProcessor,
    *,
    system_prompt: str = "",
    with_answer: bool = False,
) -> Measure:
    """The lengths that ``encode_prompt`` or ``encode_sft`` will find.

    Args:
      record: question and, with ``with_answer``, answer are used.
      sizes: (width, height) of each image.
      chat: tokenizer and template of the checkpoint.
      processor: image processor of the same checkpoint.
      system_prompt: empty for the template's own.
      with_answer: count the answer too.

    Raises:
      Unfit: names the field: a special token in the text, an image that is too narrow, or a chat
        template or tokenizer that does not give as many image tokens as the grids have units.
    """
    grids = tuple(_grid(record, i, size, processor) for i, size in enumerate(sizes))
    with _blaming("question", record):
        chat.check_text(record.question, "the text")
        prompt = chat.render(record.question, len(sizes), system_prompt)
    image_tokens = sum(unit_count(grid) for grid in grids)
    ids = _expanded_ids(record, prompt, grids, chat)
    found = int(np.count_nonzero(ids == chat.image_token_id))
    if found != image_tokens:
        reason = f"{found} image tokens in the text, but the grids have {image_tokens} units"
        raise Unfit("image", reason, record.id)
    n_answer = 0
    if with_answer:
        with _blaming("answer", record):
            chat.check_text(record.answer or "", "the text")
            answer = record.answer or ""
            n_answer = len(chat.answer_ids(record.question, answer, len(sizes), system_prompt))
    return Measure(len(ids) + n_answer, image_tokens, n_answer, 4 * image_tokens, grids)


def over_limit(found: Measure, max_tokens: int) -> tuple[str, str] | None:
    """(field, reason) of a record that is too long; the field is that of its longest part."""
    if found.tokens <= max_tokens:
        return None
    parts = {
        "image": found.image_tokens,
        "answer": found.answer_tokens,
        "question": found.tokens - found.image_tokens - found.answer_tokens,
    }
    reason = (
        f"{found.tokens} tokens ({found.image_tokens} of images) are over the limit of {max_tokens}"
    )
    return max(parts, key=lambda name: parts[name]), reason


def _grid(record: Record, index: int, size: tuple[int, int], processor: ImageProcessor) -> Grid:
    with _blaming("image", record, f"image {record.images[index]!r}: "):
        return processor.grid(*size)


def _expanded_ids(record: Record, prompt: str, grids: Sequence[Grid], chat: Chat) -> np.ndarray:
    """Ids of the prompt with every placeholder written once per unit, as the model reads it."""
    first, *rest = prompt.split(IMAGE_TOKEN)
    if len(rest) != len(grids):
        reason = f"{len(rest)} image placeholders for {len(grids)} images"
        raise Unfit("image", reason, record.id)
    pieces = [IMAGE_TOKEN * unit_count(g) + text for g, text in zip(grids, rest, strict=True)]
    return chat.encode("".join([first, *pieces]))


@contextmanager
def _blaming(field: str, record: Record, prefix: str = "") -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise Unfit(field, f"{prefix}{error}", record.id) from error
