"""The text of single tokens, and which of them are the answer that was scored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlaa_jax.foreign import read_bytes
from vlaa_jax.schema import UserError

UNKNOWN = "\ufffd"
_MAX_TOKENIZER_BYTES = 64 << 20
_LONGEST_CHARACTER = 4
"""Bytes of UTF-8, and so tokens that a character may be spread over."""


class Pieces:
    """Cuts completions into the texts of their tokens.

    Args:
        file: tokenizer.json, as a run keeps it; without a usable one there are no pieces.
    """

    def __init__(self, file: Path) -> None:
        self._tokenizer = _load(file)

    def __call__(self, ids: Sequence[int], text: str) -> tuple[list[str], list[bool]] | None:
        """What each token adds to a completion, and which tokens are no part of its text.

        A character spread over several tokens belongs to the last of them.

        Returns:
            None where the tokenizer is missing or does not give `text`.
        """
        if self._tokenizer is None:
            return None
        size = self._tokenizer.get_vocab_size()
        texts, special, waiting = [], [], []
        for number in ids:
            if not 0 <= number < size:
                return None
            waiting.append(number)
            said = self._tokenizer.decode(waiting)
            partial = said.endswith(UNKNOWN) and len(waiting) < _LONGEST_CHARACTER
            texts.append("" if partial else said or str(self._tokenizer.id_to_token(number)))
            special.append(not said)
            waiting = waiting if partial else []
        if waiting:
            texts[-1] = self._tokenizer.decode(waiting)
        whole = "".join(t for t, marker in zip(texts, special, strict=True) if not marker)
        return (texts, special) if whole == text else None


def _load(file: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(read_bytes(file, _MAX_TOKENIZER_BYTES))
    except (KeyboardInterrupt, SystemExit):
        raise
    except (FileNotFoundError, UserError):
        return None
    except BaseException:  # a panic of the Rust part is not even an Exception
        return None


def covered(
    texts: Sequence[str], special: Sequence[bool], span: tuple[int, int] | None
) -> list[int] | None:
    """First token and the one behind the last that overlap a span of characters."""
    if span is None:
        return None
    begin, touched = 0, []
    for number, (text, marker) in enumerate(zip(texts, special, strict=True)):
        end = begin + (0 if marker else len(text))
        if begin < span[1] and end > span[0]:
            touched.append(number)
        begin = end
    return [touched[0], touched[-1] + 1] if touched else None
