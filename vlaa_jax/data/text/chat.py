"""Text to token ids through the checkpoint's own chat template, and back.

The template decides everything a model was trained to see; nothing of it is repeated here. Two
things are added. Texts that come from data may not contain the spelling of a special token: such a
token would be read as structure (a question with ``<|image_pad|>`` in it would ask for an image).
And the answer is tokenised apart from the prompt, so that the prompt of supervised training is
token for token the prompt of generation.
"""

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlaa_jax.data.text.template import MAX_OUTPUT_CHARS, Messages, messages, template_file, try_out
from vlaa_jax.foreign import local_path, read_bytes, read_object
from vlaa_jax.schema import UserError

IMAGE_TOKEN = "<|image_pad|>"
VIDEO_TOKEN = "<|video_pad|>"
END_OF_TURN = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
_JSON_FILES = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_LARGE_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "chat_template.jinja")
_MAX_TOKENIZER_BYTES = 64 << 20
"""Qwen's tokenizer.json has 7 to 11 MB."""


class Chat:
    """A tokenizer and its chat template. Safe to share between threads."""

    def __init__(self, tokenizer: Any, name: str = "tokenizer"):
        """Wrap a fast transformers tokenizer; ``name`` is for messages. See ``from_dir``."""
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(f"{name}: no chat template (tokenizer_config.json or chat_template.*)")
        try_out(tokenizer.chat_template, name)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(f"{name}: needs a fast tokenizer (tokenizer.json)")
        backend.no_truncation()
        backend.no_padding()
        self._tokenizer, self._name = tokenizer, name
        self._backend = backend
        self.image_token_id = self._id(IMAGE_TOKEN, name)
        if np.count_nonzero(self.encode(IMAGE_TOKEN * 64) == self.image_token_id) != 64:
            raise UserError(f"{name}: the tokenizer does not keep one {IMAGE_TOKEN} from the next")
        self.video_token_id: int = backend.token_to_id(VIDEO_TOKEN) or -1
        self.end_of_turn_id = self._id(END_OF_TURN, name)
        end_of_text = backend.token_to_id(END_OF_TEXT)
        stops = (self.end_of_turn_id, end_of_text, tokenizer.eos_token_id)
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(i for i in stops if i is not None))
        """Ids that end a completion: end of turn, end of text, the tokenizer's own eos."""
        pad = tokenizer.pad_token_id
        self.pad_id: int = next(i for i in (pad, end_of_text, self.end_of_turn_id) if i is not None)
        self.vocab_size: int = len(tokenizer)
        """Ids the tokenizer knows, added ones included; the head may have more rows."""
        structural = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        structural |= {self.image_token_id, self.video_token_id, self.pad_id}
        self.structural_ids: tuple[int, ...] = tuple(sorted(structural - set(self.stop_ids)))
        """Ids that a completion may never hold: vision and turn markers, padding."""
        special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        special += [IMAGE_TOKEN, VIDEO_TOKEN, END_OF_TURN]
        self._special = re.compile("|".join(re.escape(s) for s in sorted(set(special))))

    def _id(self, token: str, name: str) -> int:
        found = self._backend.token_to_id(token)
        if found is None:
            raise UserError(f"{name}: no token {token}; is this a Qwen2-VL tokenizer?")
        return int(found)

    @classmethod
    def from_dir(cls, tokenizer_dir: str | os.PathLike[str]) -> "Chat":
        """Load from a Hugging Face directory: local files only, never remote code.

        Raises:
            UserError: no loadable tokenizer or template there, or its image token is not the one
                that config.json names.
        """
        from transformers import AutoTokenizer  # a second of import that planning does not need

        path = local_path(tokenizer_dir)
        if not path.is_dir():
            raise UserError(f"{path}: no such tokenizer directory")
        _check_files(path)
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                os.fspath(path), local_files_only=True, trust_remote_code=False
            )
        except (KeyboardInterrupt, SystemExit):
            raise
        # The loader raises many kinds for one cause, unusable files; a panic of its Rust part is
        # not even an Exception.
        except BaseException as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"{path}: cannot load the tokenizer ({reason[0]})") from error
        if not getattr(tokenizer, "chat_template", None):
            tokenizer.chat_template = template_file(path)
        chat = cls(tokenizer, os.fspath(path))
        with contextlib.suppress(FileNotFoundError):
            expected = read_object(path / "config.json").get("image_token_id")
            if expected not in (None, chat.image_token_id):
                raise UserError(
                    f"{path}: config.json says image_token_id {expected} but the tokenizer gives "
                    f"{IMAGE_TOKEN} id {chat.image_token_id}"
                )
        return chat

    def check_text(self, text: str, what: str) -> None:
        """Refuse text that would be read as structure, or that is not valid Unicode.

        Raises:
            UserError: names ``what`` and the offending spelling.
        """
        found = self._special.search(text)
        if found:
            raise UserError(f"{what} contains the special token {found.group()!r}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"{what} is not valid Unicode (position {error.start})") from error

    def render(self, question: str, n_images: int = 0, system_prompt: str = "") -> str:
        """The prompt as text: images first, then the question, ready for the assistant to speak.

        An empty system prompt leaves the system turn to the template (Qwen adds its default line).
        """
        return self._apply(messages(question, n_images, system_prompt), True)

    def conversation_ids(self, conversation: Messages, what: str) -> NDArray[np.int32]:
        """Token ids of a conversation up to the assistant's next turn, one placeholder per image.

        Args:
            conversation: turns of ``role`` and ``content``: a text, or a list of parts
                ``{"type": "text", "text": ...}`` and ``{"type": "image"}``.
            what: it is, for messages.

        Raises:
            UserError: a text contains a special token.
        """
        for place, turn in enumerate(conversation):
            parts = turn["content"]
            for part in [{"text": parts}] if isinstance(parts, str) else parts:
                self.check_text(part.get("text", ""), f"{what}[{place}]")
        return self.encode(self._apply(conversation, True))

    def answer_ids(
        self, prompt: str, answer: str, question: str, n_images: int = 0, system_prompt: str = ""
    ) -> NDArray[np.int32]:
        """Token ids of what the assistant says after a prompt, end-of-turn token included.

        Args:
            prompt: what ``render`` makes of the other three.
            answer: what is said.
            question: as for ``render``.
            n_images: as for ``render``.
            system_prompt: as for ``render``.

        Raises:
            UserError: the answer contains a special token, or the template writes a finished
                conversation differently from a prompt and its continuation.
        """
        self.check_text(answer, "answer")
        told = {"role": "assistant", "content": answer}
        full = self._apply([*messages(question, n_images, system_prompt), told], False)
        if not full.startswith(prompt + answer):
            raise UserError("the chat template does not continue the prompt by the answer")
        ids = self.encode(full[len(prompt) :])
        ends = np.flatnonzero(ids == self.end_of_turn_id)
        if len(ends) != 1:
            raise UserError(f"the chat template does not end a turn with one {END_OF_TURN}")
        return ids[: ends[0] + 1]

    def _apply(self, conversation: Messages, prompt: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # a template is a program: it may raise anything
            reason = " ".join(str(error).split())[:200]
            failed = f"the chat template failed ({type(error).__name__}: {reason})"
            raise UserError(f"{self._name}: {failed}") from error
        if len(text) > MAX_OUTPUT_CHARS + 2 * len(str(conversation)):
            raise UserError(f"{self._name}: the chat template writes {len(text):,} characters")
        return str(text)

    def encode(self, text: str) -> NDArray[np.int32]:
        """Token ids of text in which special tokens count as such; nothing is added."""
        return np.array(self._backend.encode(text, add_special_tokens=False).ids, np.int32)

    def spelling(self, token_id: int) -> str:
        """A token as the vocabulary spells it: a character per byte, or that of a special token."""
        return str(self._backend.id_to_token(token_id) or "")

    def decode(self, ids: ArrayLike, skip_special_tokens: bool = True) -> str:
        """Text of one sequence of ids."""
        flat = np.asarray(ids).reshape(-1).tolist()
        return str(self._backend.decode(flat, skip_special_tokens=skip_special_tokens))

    def decode_batch(
        self, ids: Sequence[Sequence[int]], skip_special_tokens: bool = True
    ) -> list[str]:
        """Texts of several sequences of ids."""
        rows = [[int(i) for i in row] for row in ids]
        return list(self._backend.decode_batch(rows, skip_special_tokens=skip_special_tokens))


def _check_files(path: Path) -> None:
    """Refuses files that the libraries would read without bounds, before they do.

    Raises:
        UserError: a file is no JSON object, too large, a git-lfs pointer or a link to nothing.
    """
    for name in _JSON_FILES:
        with contextlib.suppress(FileNotFoundError):
            read_object(path / name)
    for name in _LARGE_FILES:
        with contextlib.suppress(FileNotFoundError):
            read_bytes(path / name, _MAX_TOKENIZER_BYTES)
