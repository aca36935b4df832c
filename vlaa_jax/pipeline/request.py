"""A question to a served model: what it is found by in the ledger, and what goes over the wire.

The key of a request covers everything that may change the answer (path, model, sampling, texts, the
digest of the image, the number of the try) and nothing else. The address of the server is not in
it, so a run may go on elsewhere; ``ServedModel.tag`` tells two models of one name apart.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlaa_jax.data.images.files import resolve_inside
from vlaa_jax.endpoint import EndpointError, image_part
from vlaa_jax.foreign import without_surrogates
from vlaa_jax.pipeline.ledger import Reply
from vlaa_jax.settings.pipeline import ServedModel

CHAT, SCORE = "chat/completions", "completions"
CHARS_PER_TOKEN = 3.5
"""For estimates before a call; on the safe side for English."""
_MAX_TOKENS = 1 << 31
_MAX_REASON = 64
_BROKEN_OFF = frozenset(("insufficient_system_resource", "error", "abort"))
"""Reasons that make a reply no answer, whatever text it has: DeepSeek's; OpenRouter's and
Mistral's; those of vLLM and SGLang."""


@dataclass(frozen=True)
class Request:
    """One question: ``CHAT`` wants a reply, ``SCORE`` how likely ``text`` is after ``prefix``."""

    step: str
    sample: str
    """Id of the sample; not part of the key."""
    text: str
    system: str = ""
    image: str = ""
    """Path below the image root; empty: no image."""
    digest: str = ""
    """SHA-256 of the image."""
    salt: int = 0
    """Number of the try, where several answers to one question are wanted."""
    path: str = CHAT
    prefix: str = ""

    def key(self, model: ServedModel) -> bytes:
        """Digest that the reply is found by."""
        parts = (self.path, model.model, model.tag, _sampling(model), self.system, self.text)
        whole = json.dumps((*parts, self.digest, self.salt, self.prefix), sort_keys=True)
        return hashlib.sha256(whole.encode()).digest()

    def prompt_tokens(self, model: ServedModel) -> int:
        """Estimate of the prompt's length."""
        chars = len(self.system) + len(self.text) + len(self.prefix)
        return int(chars / CHARS_PER_TOKEN) + 8 + (model.image_tokens if self.image else 0)

    def body(self, model: ServedModel, image_root: Path) -> dict[str, Any]:
        """The JSON body, with the image in it.

        Raises:
            UserError: the image is not there any more.
        """
        if self.path == SCORE:
            text = self.prefix + self.text
            return {
                "model": model.model,
                "prompt": text,
                "max_tokens": 0,
                "echo": True,
                "logprobs": 0,
            }
        content: Any = self.text
        if self.image:
            shown = image_part(resolve_inside(image_root, self.image))
            content = [shown, {"type": "text", "text": self.text}]
        messages = [{"role": "user", "content": content}]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        # A server that remembers requests must not answer every try from memory.
        seed = {"seed": self.salt} if self.salt else {}
        return {"model": model.model, "messages": messages, **_sampling(model), **seed}

    def read(self, reply: Any) -> Reply:
        """A parsed reply as a Reply; raises ValueError and its like where it is malformed.

        Raises:
            EndpointError: the server says itself that it broke off.
        """
        if "choices" not in reply and "error" in reply:
            raise ValueError(f"an error in place of a reply: {reply['error']}")
        usage = reply.get("usage") or {}
        counts = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
        if min(counts) < 0 or max(counts) > _MAX_TOKENS:
            raise ValueError("no possible counts of tokens")
        choice = reply["choices"][0]
        reason = without_surrogates(str(choice.get("finish_reason") or "")[:_MAX_REASON])
        if reason in _BROKEN_OFF:
            raise EndpointError("server", f"the reply was broken off ({reason})")
        if self.path == SCORE:
            value = _mean_nll(choice["logprobs"], len(self.prefix))
            return Reply("", "", reason, *counts, value)
        message = choice["message"]
        text, reasoning = message.get("content"), message.get("reasoning_content")
        reasoning = reasoning if reasoning is not None else message.get("reasoning")
        if refusal := message.get("refusal"):
            text, reason = str(refusal), "content_filter"
        if text is None and (reasoning or reason in ("length", "content_filter")):
            text = ""  # cut off while it thought, or kept back: an answer, though of no use
        if not isinstance(text, str) or not isinstance(reasoning or "", str):
            raise ValueError("the reply has no text")
        (text + (reasoning or "")).encode()  # lone surrogates raise a ValueError
        return Reply(text, reasoning or "", reason, *counts)


def _sampling(model: ServedModel) -> dict[str, Any]:
    chosen = {"temperature": model.temperature, "top_p": model.top_p}
    return {"max_tokens": model.max_tokens, **{k: v for k, v in chosen.items() if v is not None}}


def _mean_nll(logprobs: Mapping[str, Any], prefix_chars: int) -> float:
    """Mean negative log-likelihood of the tokens that begin behind the prefix."""
    pairs = zip(logprobs["text_offset"], logprobs["token_logprobs"], strict=True)
    scored = [
        float(value) for offset, value in pairs if offset >= prefix_chars and value is not None
    ]
    if not scored:
        raise ValueError("no token of the text was scored")
    mean = -sum(scored) / len(scored)
    if not math.isfinite(mean):
        raise ValueError("the likelihood is not finite")
    return mean
