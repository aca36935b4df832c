"""From tokens to text as it grows: whole characters only, and nothing behind a stop text."""

import codecs
from collections.abc import Iterable, Sequence

from vlaa_jax.data.text.chat import Chat


def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    shifted = {chr(256 + place): byte for place, byte in enumerate(others)}
    return {chr(byte): byte for byte in plain} | shifted


_BYTES = _byte_alphabet()


class Vocabulary:
    """The bytes that tokens stand for.

    Args:
        chat: whose tokenizer is byte-level BPE, as those of Qwen2-VL and its like are.
    """

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._silent = frozenset((*chat.stop_ids, *chat.structural_ids))
        self._known: dict[int, bytes] = {}

    def spelt(self, token: int) -> bytes:
        """A token's bytes; a special one's are its name."""
        if token not in self._known:
            spelling = self._chat.spelling(token)
            letters = [_BYTES.get(letter) for letter in spelling]
            whole = bytes(b for b in letters if b is not None)
            self._known[token] = spelling.encode() if None in letters else whole
        return self._known[token]

    def said(self, token: int) -> bytes:
        """What a token adds to an answer: nothing, if it is a special one."""
        return b"" if token in self._silent else self.spelt(token)


class Writer:
    """The text of one completion.

    Args:
        vocabulary: of the tokens.
        stops: texts that end it; they are not part of it.
    """

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str] = ()) -> None:
        self._vocabulary, self._stops = vocabulary, tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False
        """Whether a stop text has come."""

    def add(self, tokens: Iterable[int]) -> tuple[str, int]:
        """Text that can be given out now, and how many of the tokens belong to the completion."""
        out, count = "", 0
        for token in tokens:
            count += 1
            self._held += self._decoder.decode(self._vocabulary.said(token))
            out += self._release()
            if self.stopped:
                break
        return out, count

    def end(self) -> str:
        """The rest of the text."""
        self._held += self._decoder.decode(b"", final=True)
        out = self._release()
        return out if self.stopped else out + self._held

    def _release(self) -> str:
        """Takes out what no stop text can begin in any more."""
        if self.stopped:
            return ""
        places = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if places:
            self.stopped = True
            return self._held[: min(places)]
        kept = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - kept
        out, self._held = self._held[:cut], self._held[cut:]
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of a text that a stop text begins with."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if stop.startswith(text[-size:])), 0)
