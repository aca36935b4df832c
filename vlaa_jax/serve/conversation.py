"""From a conversation to a prompt, and from a request to the rule it is answered by."""

import secrets
from collections.abc import Sequence

from PIL import Image

from vlaa_jax.data.samples.preprocessor import Preprocessor
from vlaa_jax.data.text.template import Messages
from vlaa_jax.policy.pretrained import Pretrained
from vlaa_jax.policy.prompts import Prompt
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.rollout.stream import Wanted
from vlaa_jax.schema import Record, UserError
from vlaa_jax.serve.errors import Refusal
from vlaa_jax.serve.request import ChatRequest, ImagePart, TextPart, Turn
from vlaa_jax.settings.serve import ServerSettings

_CHARS_PER_TOKEN = 128
"""The longest tokens, of blanks alone, have as many."""


def addresses(request: ChatRequest) -> list[str]:
    """Addresses of the images, in order."""
    parts = (part for turn in request.messages for part in turn.parts)
    return [part.image_url.url for part in parts if isinstance(part, ImagePart)]


def conversation(turns: Sequence[Turn], system_prompt: str) -> Messages:
    """The turns as a chat template takes them."""
    found: Messages = []
    if system_prompt and turns[0].role not in ("system", "developer"):
        found.append({"role": "system", "content": system_prompt})
    for turn in turns:
        role = "system" if turn.role == "developer" else turn.role
        parts = [
            {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
            for part in turn.parts
        ]
        # Templates read the system's and the assistant's words as one text.
        text = "".join(part.get("text", "") for part in parts)
        found.append({"role": role, "content": parts if turn.role == "user" else text})
    return found


def context_of(pretrained: Pretrained, settings: ServerSettings) -> int:
    """Most tokens of a prompt and its answer together."""
    served = settings.max_prompt_tokens + settings.max_new_tokens
    return min(pretrained.config.text.max_positions, served)


def make_prompt(
    request: ChatRequest,
    images: Sequence[Image.Image],
    pretrained: Pretrained,
    settings: ServerSettings,
) -> Prompt:
    """The request as the model reads it.

    Raises:
        Refusal: a text with a special token, an image that cannot be used, or too long.
    """
    most, context = settings.max_prompt_tokens, context_of(pretrained, settings)

    def fits(tokens: int, of_images: int) -> None:
        said = f"{tokens} tokens of messages ({of_images} of images)"
        if tokens > most:
            raise _too_long(f"{said} are over the limit of {most}")
        if tokens + (asked := request.limit or 1) > context:
            raise _too_long(f"{said} and {asked} of max_tokens are over the limit of {context}")

    parts = (part for turn in request.messages for part in turn.parts)
    chars = sum(len(part.text) for part in parts if isinstance(part, TextPart))
    if chars > _CHARS_PER_TOKEN * most:  # tokenising takes its time, too
        raise _too_long(f"{chars:,} characters are over the limit of {most} tokens")
    turns = conversation(request.messages, settings.system_prompt)
    reader = Preprocessor(pretrained.chat, pretrained.processor)
    try:
        encoded = reader.encode_conversation(turns, images, "messages", fits)
    except UserError as error:
        raise Refusal(str(error), param="messages") from None
    return Prompt(Record("messages", "", ()), encoded, images[0].size if images else None)


def _too_long(said: str) -> Refusal:
    return Refusal(said, param="messages", code="context_length_exceeded")


def wanted_of(request: ChatRequest, stop_ids: tuple[int, ...], settings: ServerSettings) -> Wanted:
    """How the request is to be answered.

    Args:
        request: the request.
        stop_ids: tokens that end every completion.
        settings: the server's limits.

    Raises:
        Refusal: it asks for more tokens than the server gives.
    """
    limit = request.limit or settings.max_new_tokens
    if limit > settings.max_new_tokens:
        said = f"max_tokens: {limit} is over this server's limit of {settings.max_new_tokens}"
        raise Refusal(said, param="max_tokens")
    greedy = request.temperature == 0
    sampling = Sampling(
        1.0 if greedy else request.temperature,
        max(request.top_k, 0),
        request.top_p,
        request.min_p,
        greedy,
    )
    seed = secrets.randbits(63) if request.seed is None else request.seed % 2**64
    stops = tuple(dict.fromkeys((*stop_ids, *request.stop_token_ids)))
    return Wanted(sampling, limit, stops, seed, request.n, bool(request.top_logprobs))
