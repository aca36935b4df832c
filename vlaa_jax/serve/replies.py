"""Answers in OpenAI's form: whole ones, and the pieces of a stream."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vlaa_jax.rollout.stream import News
from vlaa_jax.serve.request import ChatRequest
from vlaa_jax.serve.text import Vocabulary, Writer


@dataclass
class Piece:
    """What news add to a choice."""

    text: str
    logprobs: list[dict[str, Any]]
    finish_reason: str | None


@dataclass
class Choice:
    """One completion as it grows."""

    request: ChatRequest
    vocabulary: Vocabulary
    tokens: int = 0
    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None

    def __post_init__(self) -> None:
        self._writer = Writer(self.vocabulary, self.request.stops)

    def add(self, news: News) -> Piece:
        """Take in what a burst has added."""
        tokens = news.tokens_T.tolist()
        text, count = self._writer.add(tokens)
        self.tokens += count
        logprobs = self._logprobs(news, tokens[:count]) if self.request.logprobs else []
        if self._writer.stopped:
            self.finish_reason = "stop"
        elif news.ended:
            text += self._writer.end()
            self.finish_reason = "stop" if self._writer.stopped else news.ended
        if not self.request.stream:  # of a stream, what has been sent is not kept
            self.text += text
            self.logprobs += logprobs
        return Piece(text, logprobs, self.finish_reason)

    def _logprobs(self, news: News, tokens: Sequence[int]) -> list[dict[str, Any]]:
        ids_TK, best_TK = news.likeliest or ([()] * len(tokens), [()] * len(tokens))
        count = self.request.top_logprobs
        return [
            self._entry(token, news.logprobs_T[t])
            | {"top_logprobs": [
                self._entry(int(other), logprob)
                for other, logprob in zip(ids_TK[t][:count], best_TK[t][:count], strict=True)
            ]}
            for t, token in enumerate(tokens)
        ]  # fmt: skip

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        spelt = self.vocabulary.spelt(token)
        return {
            "token": spelt.decode("utf-8", "replace"),
            "logprob": float(logprob),
            "bytes": list(spelt),
        }


class Reply:
    """What is the same in all parts of an answer.

    Args:
        request: what is answered.
        prompt_tokens: length of its prompt.
        vocabulary: of the tokens.
    """

    def __init__(self, request: ChatRequest, prompt_tokens: int, vocabulary: Vocabulary) -> None:
        self._request, self._prompt_tokens = request, prompt_tokens
        self.choices = [Choice(request, vocabulary) for _ in range(request.n)]
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": request.model,
        }

    @property
    def finished(self) -> bool:
        """Whether all choices have ended."""
        return all(choice.finish_reason for choice in self.choices)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens so far."""
        said = sum(choice.tokens for choice in self.choices)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": said,
            "total_tokens": self._prompt_tokens + said,
        }

    def whole(self) -> dict[str, Any]:
        """The answer."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": self._logprobs(choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(self.choices)
        ]
        return {
            **self._head, "object": "chat.completion", "choices": choices, "usage": self.usage
        }  # fmt: skip

    def begin(self) -> list[dict[str, Any]]:
        """The first pieces of a stream."""
        empty = {"role": "assistant", "content": ""}
        return [self._chunk(index, empty, Piece("", [], None)) for index in range(self._request.n)]

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """A later one."""
        return self._chunk(index, {"content": piece.text} if piece.text else {}, piece)

    def end(self) -> list[dict[str, Any]]:
        """The last ones."""
        return [self._of_stream([], usage=self.usage)] if self._tells_usage else []

    @property
    def _tells_usage(self) -> bool:
        options = self._request.stream_options
        return bool(options and options.include_usage)

    def _chunk(self, index: int, delta: dict[str, Any], piece: Piece) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(piece.logprobs) if piece.logprobs else None,
            "finish_reason": piece.finish_reason,
        }
        return self._of_stream([choice], **({"usage": None} if self._tells_usage else {}))

    def _of_stream(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": choices, **more}

    def _logprobs(self, entries: list[dict[str, Any]]) -> dict[str, Any] | None:
        return {"content": entries, "refusal": None} if self._request.logprobs else None
