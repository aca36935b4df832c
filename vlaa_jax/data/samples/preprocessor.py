"""A record and its images to what the model reads: ids, positions, patches. Nothing is ever cut.

How long a record is, is known from its text and its image sizes alone, before a pixel is touched.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlaa_jax.data.images.bins import rows_of_largest, unit_count, vision_load
from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.text.chat import Chat, Messages
from vlaa_jax.data.text.positions import mrope_positions
from vlaa_jax.schema import Grid, Record, UserError

_NO_ANSWER = np.empty(0, np.int32)


class Unfit(UserError):
    """A record that no model can read as it is; ``field`` names the part that is to blame."""

    def __init__(self, field: str, reason: str, record_id: str) -> None:
        super().__init__(f"record {record_id!r}: {reason}")
        self.field, self.reason, self.record_id = field, reason, record_id


class Encoded(NamedTuple):
    """One sample; T tokens, image placeholders expanded."""

    ids_T: NDArray[np.int32]
    loss_mask_T: NDArray[np.bool_]
    """True at targets: the answer and its end-of-turn token. All False in a prompt."""
    positions_T3: NDArray[np.int32]
    """Time, height, width (M-RoPE)."""
    rope_delta: int
    """A token decoded at index n has position n + rope_delta."""
    patches: tuple[NDArray[np.uint8], ...]
    """Per image [grid rows * columns, 3 * patch size squared], in order of occurrence; the model
    normalises them."""
    grids: tuple[Grid, ...]
    """Per image (frames, patch rows, patch columns)."""
    n_image_tokens: int
    image_mask_T: NDArray[np.bool_]
    """True at image placeholders."""

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.ids_T)


@dataclass(frozen=True)
class Measure:
    """Lengths of one record at given pixel limits."""

    tokens: int
    """All tokens: text, image tokens, and the answer where it is to be learnt."""
    image_tokens: int
    answer_tokens: int
    grids: tuple[Grid, ...]

    @property
    def patches(self) -> int:
        """Patches of all images."""
        return 4 * self.image_tokens

    def vision_rows(self, window_units: int) -> int:
        """Vision rows of the largest image; see ``bins.rows_needed``."""
        return rows_of_largest(self.grids, window_units)

    def over(self, max_tokens: int) -> tuple[str, str] | None:
        """(field, reason) of a record that is too long; the field is that of its longest part."""
        if self.tokens <= max_tokens:
            return None
        parts = {
            "image": self.image_tokens,
            "answer": self.answer_tokens,
            "question": self.tokens - self.image_tokens - self.answer_tokens,
        }
        reason = (
            f"{self.tokens} tokens ({self.image_tokens} of images) are over the limit of "
            f"{max_tokens}"
        )
        return max(parts, key=lambda name: parts[name]), reason


@dataclass(frozen=True)
class Preprocessor:
    """Everything of a checkpoint that stands between a record and the model.

    Attributes:
        chat: tokenizer and template.
        processor: image processor of the same checkpoint.
        system_prompt: empty for the template's own.

    Raises:
        UserError: the system prompt contains a special token.
    """

    chat: Chat
    processor: ImageProcessor
    system_prompt: str = ""

    def __post_init__(self) -> None:
        self.chat.check_text(self.system_prompt, "the system prompt")

    @classmethod
    def from_dir(
        cls,
        hf_dir: str | os.PathLike[str],
        min_pixels: int = 0,
        max_pixels: int = 0,
        system_prompt: str = "",
    ) -> "Preprocessor":
        """Read from a Hugging Face directory; pixel limits of 0 are the checkpoint's own."""
        processor = ImageProcessor.from_dir(hf_dir, min_pixels, max_pixels)
        return cls(Chat.from_dir(hf_dir), processor, system_prompt)

    def measure(
        self, record: Record, sizes: Sequence[tuple[int, int]], *, with_answer: bool = False
    ) -> Measure:
        """The lengths that ``encode`` will find.

        Args:
            record: question and, with ``with_answer``, answer are used.
            sizes: (width, height) of each image.
            with_answer: count the answer too.

        Raises:
            Unfit: names the field: a special token in the text, an image that is too narrow, or a
                template that does not ask for as many images.
        """
        grids = self._grids(record, sizes)
        prompt, answer = self._texts(record, len(sizes), with_answer)
        tokens = len(self._expanded(record, prompt, grids)) + len(answer)
        return Measure(tokens, vision_load(grids), len(answer), grids)

    def encode(
        self,
        record: Record,
        images: Sequence[Image.Image],
        *,
        with_answer: bool = False,
        max_tokens: int | None = None,
    ) -> Encoded:
        """The question as a prompt, with ``with_answer`` followed by the answer to be learnt.

        The ids of the prompt are the same in both; targets are the answer and its end of turn.

        Args:
            record: its texts, id and number of images are used.
            images: opened, in the record's order; they are placed before the question.
            with_answer: the answer too.
            max_tokens: limit on the number of tokens, image tokens included.

        Raises:
            Unfit: names the record: too long, wrong number of images, an image that cannot be
                used, a special token in the text, or no answer.
        """
        if len(images) != len(record.images):
            reason = f"names {len(record.images)} images, {len(images)} were given"
            raise Unfit("image", reason, record.id)
        prompt, answer = self._texts(record, len(images), with_answer)

        def fits(tokens: int, of_images: int) -> None:
            if max_tokens is not None and tokens > max_tokens:
                over = f"{tokens} tokens ({of_images} of images) are over the limit of {max_tokens}"
                reason = f"{over}; lower max_pixels or leave the record out"
                raise Unfit("image", reason, record.id)

        return self._laid_out(record, images, prompt, answer, fits)

    def encode_conversation(
        self,
        conversation: Messages,
        images: Sequence[Image.Image],
        name: str,
        fits: Callable[[int, int], object],
    ) -> Encoded:
        """A conversation up to the assistant's next turn.

        Args:
            conversation: see ``Chat.conversation_ids``; the system prompt stands in it.
            images: opened, in the order of their places.
            name: of the conversation, for messages.
            fits: told of its tokens, and how many of them are of images, before any pixel is
                touched; raises where they are too many.

        Raises:
            Unfit: as ``encode``.
        """
        record = Record(name, "", tuple(str(place) for place in range(len(images))))
        with _blaming("question", record):
            ids = self.chat.conversation_ids(conversation, name)
        return self._laid_out(record, images, ids, _NO_ANSWER, fits)

    def _laid_out(
        self,
        record: Record,
        images: Sequence[Image.Image],
        prompt_ids: NDArray[np.int32],
        answer: NDArray[np.int32],
        fits: Callable[[int, int], object],
    ) -> Encoded:
        """Prompt and answer as the model reads them; errors as ``encode``."""
        grids = self._grids(record, [image.size for image in images])
        ids_T = np.concatenate([self._expanded(record, prompt_ids, grids), answer])
        length, n_image_tokens = len(ids_T), vision_load(grids)
        fits(length, n_image_tokens)
        token = self.chat.image_token_id
        positions_T3, rope_delta = mrope_positions(ids_T, grids, image_token_id=token)
        return Encoded(
            ids_T=ids_T,
            loss_mask_T=np.arange(length) >= length - len(answer),
            positions_T3=positions_T3,
            rope_delta=rope_delta,
            patches=tuple(self.processor.pixels(image)[0] for image in images),
            grids=grids,
            n_image_tokens=n_image_tokens,
            image_mask_T=ids_T == token,
        )

    def _grids(self, record: Record, sizes: Sequence[tuple[int, int]]) -> tuple[Grid, ...]:
        grids = []
        for path, size in zip(record.images, sizes, strict=True):
            with _blaming("image", record, f"image {path!r}: "):
                grids.append(self.processor.grid(*size))
        return tuple(grids)

    def _texts(
        self, record: Record, n_images: int, with_answer: bool
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Ids of the prompt, one placeholder per image, and those of the answer, if asked for."""
        asked = record.question, n_images, self.system_prompt
        with _blaming("question", record):
            self.chat.check_text(record.question, "the text")
            prompt = self.chat.render(*asked)
        answer = _NO_ANSWER
        if with_answer:
            if record.answer is None:
                raise Unfit("answer", "no answer to learn from", record.id)
            with _blaming("answer", record):
                answer = self.chat.answer_ids(prompt, record.answer, *asked)
        return self.chat.encode(prompt), answer

    def _expanded(
        self, record: Record, ids: NDArray[np.int32], grids: Sequence[Grid]
    ) -> NDArray[np.int32]:
        """Repeat each placeholder once per merge unit of its image."""
        spots = np.flatnonzero(ids == self.chat.image_token_id)
        if len(spots) != len(grids):
            wrote = f"the chat template wrote {len(spots)} image placeholders for "
            raise Unfit("image", f"{wrote}{len(grids)} images", record.id)
        repeats = np.ones(len(ids), np.int64)
        repeats[spots] = [unit_count(g) for g in grids]
        return np.repeat(ids, repeats)


@contextmanager
def _blaming(field: str, record: Record, prefix: str = "") -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise Unfit(field, f"{prefix}{error}", record.id) from error
