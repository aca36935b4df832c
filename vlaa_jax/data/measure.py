"""How long a record is to the model, from its text and its image sizes; no pixel is touched."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlaa_jax.data.chat import Chat
from vlaa_jax.data.images import ImageProcessor
from vlaa_jax.data.planner import Grid, unit_count
from vlaa_jax.schema import Record, UserError


class Built(dict[str, Any]):
    """What a build knows of a record: its ``meta["built"]``.

    A type of its own, so that a record file cannot pass its own "built" off as measured.
    """


@dataclass(frozen=True)
class Measure:
    """Lengths of one record at given pixel limits."""

    tokens: int
    """All tokens: text, image tokens, and the answer where it is to be learnt."""
    image_tokens: int
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
      UserError: one line naming the record: a special token in the text, an image that is too
        narrow, or a template that does not write one placeholder per image.
    """
    name = f"record {record.id!r}"
    grids = tuple(processor.grid(width, height) for width, height in sizes)
    n_answer = 0
    if with_answer:
        ids, answer_ids = chat.sft_ids(
            record.question, record.answer or "", len(sizes), system_prompt, what=name
        )
        n_answer = len(answer_ids)
    else:
        ids = chat.prompt_ids(record.question, len(sizes), system_prompt, what=name)
    placeholders = int(np.count_nonzero(ids == chat.image_token_id))
    if placeholders != len(grids):
        raise UserError(f"{name}: {placeholders} image placeholders for {len(grids)} images")
    image_tokens = sum(unit_count(grid) for grid in grids)
    tokens = len(ids) - placeholders + image_tokens + n_answer
    return Measure(tokens, image_tokens, 4 * image_tokens, grids)
