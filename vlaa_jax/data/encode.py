"""A record and its images to what the model reads: ids, positions, patches. Nothing is ever cut."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlaa_jax.data.bins import Grid, unit_count
from vlaa_jax.data.chat import Chat
from vlaa_jax.data.images import ImageProcessor
from vlaa_jax.data.positions import mrope_positions
from vlaa_jax.schema import Record, UserError


class Encoded(NamedTuple):
    """One sample; T tokens, image placeholders expanded."""

    ids_T: NDArray[np.int32]
    loss_mask_T: NDArray[np.bool_]
    """True at targets: the answer and its end-of-turn token. All False in a prompt."""
    positions_T3: NDArray[np.int32]
    """Time, height, width (M-RoPE)."""
    rope_delta: int
    """A token decoded at index n has position n + rope_delta."""
    patches: tuple[NDArray[Any], ...]
    """Per image [grid rows * columns, patch width] float32, in order of occurrence; or, with
    ``as_pixels``, [grid rows * columns, 3 * patch size squared] uint8, eight times smaller."""
    grids: tuple[Grid, ...]
    """Per image (frames, patch rows, patch columns)."""
    n_image_tokens: int
    image_mask_T: NDArray[np.bool_]
    """True at image placeholders."""

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.ids_T)


def encode_prompt(
    record: Record,
    images: Sequence[Image.Image],
    chat: Chat,
    processor: ImageProcessor,
    *,
    system_prompt: str = "",
    max_tokens: int | None = None,
    as_pixels: bool = False,
) -> Encoded:
    """The question as a prompt that the assistant is about to answer.

    Args:
        record: its question, id and number of images are used.
        images: opened, in the record's order; they are placed before the question.
        chat: tokenizer and template.
        processor: image processor of the same checkpoint.
        system_prompt: empty for the template's own.
        max_tokens: limit on the number of tokens, image tokens included.
        as_pixels: keep pixels as bytes; ``collate_prompts`` or ``collate_rows`` normalises them if
            given the processor. Saves memory and copying between the two.

    Raises:
        UserError: names the record: too long, wrong number of images, an image that cannot be
            used, or a special token in the text.
    """
    _check_count(record, images)
    name = _name(record)
    prompt = chat.prompt_ids(record.question, len(images), system_prompt, what=name)
    return _encode(
        record, images, chat, processor, prompt, np.empty(0, np.int32), max_tokens, as_pixels
    )


def encode_ids(
    record: Record,
    images: Sequence[Image.Image],
    chat: Chat,
    processor: ImageProcessor,
    prompt_ids: NDArray[np.int32],
    max_tokens: int,
) -> Encoded:
    """A prompt that is tokenised already, with one placeholder per image, pixels kept as bytes.

    Arguments and errors as ``encode_prompt``; of the record its id and images are used.
    """
    _check_count(record, images)
    no_answer = np.empty(0, np.int32)
    return _encode(record, images, chat, processor, prompt_ids, no_answer, max_tokens, True)


def encode_sft(
    record: Record,
    images: Sequence[Image.Image],
    chat: Chat,
    processor: ImageProcessor,
    *,
    system_prompt: str = "",
    max_tokens: int | None = None,
    as_pixels: bool = False,
) -> Encoded:
    """Prompt and answer; only the answer and its end-of-turn token are targets.

    The first ``len(encode_prompt(...).ids_T)`` ids are those of the prompt alone. Arguments and
    errors as ``encode_prompt``; a record without an answer is refused too.
    """
    if record.answer is None:
        raise UserError(f"{_name(record)}: no answer to learn from")
    _check_count(record, images)
    prompt, answer = chat.sft_ids(
        record.question, record.answer, len(images), system_prompt, what=_name(record)
    )
    return _encode(record, images, chat, processor, prompt, answer, max_tokens, as_pixels)


def _name(record: Record) -> str:
    return f"record {record.id!r}"


def _check_count(record: Record, images: Sequence[Image.Image]) -> None:
    if len(images) != len(record.images):
        raise UserError(
            f"{_name(record)}: names {len(record.images)} images, {len(images)} were given"
        )


def _encode(
    record: Record,
    images: Sequence[Image.Image],
    chat: Chat,
    processor: ImageProcessor,
    prompt_ids: NDArray[np.int32],
    answer_ids: NDArray[np.int32],
    max_tokens: int | None,
    as_pixels: bool,
) -> Encoded:
    grids = []
    for path, image in zip(record.images, images, strict=True):
        try:
            grids.append(processor.grid(*image.size))
        except UserError as error:
            raise UserError(f"{_name(record)}: image {path!r}: {error}") from error
    ids_T = _expand(prompt_ids, grids, chat.image_token_id, record)
    n_image_tokens = sum(unit_count(g) for g in grids)
    length = len(ids_T) + len(answer_ids)
    if max_tokens is not None and length > max_tokens:  # before any pixel is touched
        raise UserError(
            f"{_name(record)}: {length} tokens ({n_image_tokens} of images) are over the limit of "
            f"{max_tokens}; lower max_pixels or leave the record out"
        )
    loss_mask_T = np.zeros(length, bool)
    loss_mask_T[len(ids_T) :] = True
    ids_T = np.concatenate([ids_T, answer_ids])
    positions_T3, rope_delta = mrope_positions(ids_T, grids, image_token_id=chat.image_token_id)
    make = processor.pixels if as_pixels else processor.patches
    return Encoded(
        ids_T=ids_T,
        loss_mask_T=loss_mask_T,
        positions_T3=positions_T3,
        rope_delta=rope_delta,
        patches=tuple(make(image)[0] for image in images),
        grids=tuple(grids),
        n_image_tokens=n_image_tokens,
        image_mask_T=ids_T == chat.image_token_id,
    )


def _expand(
    ids: NDArray[np.int32], grids: Sequence[Grid], image_token_id: int, record: Record
) -> NDArray[np.int32]:
    """Repeat each placeholder once per merge unit of its image."""
    spots = np.flatnonzero(ids == image_token_id)
    if len(spots) != len(grids):
        raise UserError(
            f"{_name(record)}: the chat template wrote {len(spots)} image placeholders for "
            f"{len(grids)} images"
        )
    repeats = np.ones(len(ids), np.int64)
    repeats[spots] = [unit_count(g) for g in grids]
    return np.repeat(ids, repeats)
