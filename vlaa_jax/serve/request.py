"""The chat request: which fields there are, what they may be, and what becomes of the others.

A field is read, or it may only have the value that changes nothing, or it is said that it was not
looked at. One that nobody knows is refused.
"""

import difflib
import itertools
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vlaa_jax.foreign import parse_json, shown
from vlaa_jax.rollout.stream import MAX_LIKELIEST
from vlaa_jax.schema import printable
from vlaa_jax.serve.errors import Refusal

NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        ("frequency_penalty", "presence_penalty", "min_tokens", "prompt_logprobs"), (0,)
    ),
    **dict.fromkeys(("repetition_penalty", "length_penalty", "best_of"), (1,)),
    **dict.fromkeys(("tools", "functions", "bad_words"), ([],)),
    **dict.fromkeys(("ignore_eos", "echo", "use_beam_search", "continue_final_message"), (False,)),
    **dict.fromkeys(("skip_special_tokens", "add_generation_prompt"), (True,)),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "chat_template_kwargs": ({},),
    "mm_processor_kwargs": ({},),
}
"""Fields that would change the answer and that are not supported: the values that do not."""
UNREAD = frozenset(
    (
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("parallel_tool_calls", "request_id", "priority"),
    )
)
"""Fields that change no answer; a reply names those that were given."""
NEUTRAL_OF_TURN: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("tool_calls", "annotations"), ([],)),
    **dict.fromkeys(("refusal", "audio", "function_call"), ()),
}
"""As `NEUTRAL`: what a reply's message holds besides, when it is sent again in a conversation."""

LEAST = 1e-6
"""Of a temperature above 0 and of top_p: what is far below is 0 to float32."""
_MOST_TURNS = 1000
_Id = Annotated[int, Field(ge=0, lt=2**31)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Part):
    """A text of a turn."""

    type: Literal["text"]
    text: str


class ImageUrl(_Part):
    """Where an image is."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Part):
    """An image of a turn."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Turn(_Part):
    """A turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: (
        str
        | Annotated[
            list[Annotated[TextPart | ImagePart, Field(discriminator="type")]],
            Field(max_length=_MOST_TURNS),
        ]
    )
    name: str | None = None

    @property
    def parts(self) -> list[TextPart | ImagePart]:
        """The content as parts."""
        if isinstance(self.content, str):
            return [TextPart(type="text", text=self.content)]
        return self.content


class StreamOptions(_Part):
    """What a stream says besides the answer."""

    include_usage: bool = False


class ChatRequest(_Part):
    """A request for completions of a conversation."""

    model: str
    messages: list[Turn] = Field(min_length=1, max_length=_MOST_TURNS)
    n: int = Field(1, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stop_token_ids: list[_Id] = Field([], max_length=8)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=LEAST, le=1)
    top_k: int = Field(0, ge=-1, lt=2**31)
    min_p: float = Field(0.0, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LIKELIEST)

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end a completion."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def limit(self) -> int | None:
        """The token limit, if one is given."""
        return self.max_completion_tokens or self.max_tokens

    @model_validator(mode="after")
    def _fits(self) -> "ChatRequest":
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("max_tokens: is not max_completion_tokens; give one of them")
        if 0 < self.temperature < LEAST:
            raise ValueError(f"temperature: {self.temperature} is too small; 0 is greedy")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: set logprobs to true as well")
        if self.stream_options and not self.stream:
            raise ValueError("stream_options: for streams alone")
        if any(not stop or len(stop) > 200 for stop in self.stops):
            raise ValueError("stop: give texts of 1 to 200 characters")
        if self.messages[-1].role != "user":
            raise ValueError("messages: the last turn must be the user's")
        for place, turn in enumerate(self.messages):
            if turn.role in ("system", "developer") and place:
                raise ValueError(f"messages[{place}]: a {turn.role} turn may only come first")
            if turn.role != "user" and any(isinstance(part, ImagePart) for part in turn.parts):
                raise ValueError(f"messages[{place}]: only the user shows images")
        return self


_MODELS = (TextPart, ImageUrl, ImagePart, Turn, StreamOptions, ChatRequest)
_KNOWN = {*NEUTRAL, *NEUTRAL_OF_TURN, *UNREAD}.union(*(kind.model_fields for kind in _MODELS))


def read_request(body: bytes) -> tuple[ChatRequest, list[str]]:
    """A request, and the names of its fields that were not looked at.

    Raises:
        Refusal: no JSON object, an unknown field, or a value that cannot be served.
    """
    try:
        value = parse_json(body)
    except ValueError as error:
        raise Refusal(f"the body: {error}") from None
    if not isinstance(value, dict):
        raise Refusal("the body is not a JSON object")
    unread: list[str] = []
    given = _given(value, "", unread)
    unread += [name for name in given if name in UNREAD]
    given = {name: item for name, item in given.items() if name not in UNREAD}
    _drop_neutral(given, NEUTRAL)
    turns = given.get("messages")
    for place, turn in enumerate(turns if isinstance(turns, list) else ()):
        if isinstance(turn, dict):
            _drop_neutral(turn, NEUTRAL_OF_TURN, f"messages[{place}].")
    try:
        request = ChatRequest.model_validate(given)
    except ValidationError as error:
        raise _refusal(error) from None
    for place, turn in enumerate(request.messages):
        unread += [f"messages[{place}].name"] if turn.name is not None else []
        details = {p.image_url.detail for p in turn.parts if isinstance(p, ImagePart)}
        unread += [f"messages[{place}].image_url.detail"] if details & {"low", "high"} else []
    return request, unread


def _given(value: Any, place: str, unread: list[str]) -> Any:
    """A value without fields that are null, which means not given; adds those nobody knows.

    Names are made printable: pydantic names no field whose name is no Unicode.
    """
    if isinstance(value, list):
        return [_given(item, f"{place}[{i}]", unread) for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    nulls = [name for name, item in value.items() if item is None]
    unread += [f"{place}.{name}".lstrip(".") for name in nulls if name not in _KNOWN]
    return {
        printable(name): _given(item, f"{place}.{name}", unread)
        for name, item in value.items()
        if item is not None
    }


def _drop_neutral(
    given: dict[str, Any], neutral: dict[str, tuple[Any, ...]], place: str = ""
) -> None:
    """Takes out fields that are not supported.

    Raises:
        Refusal: one has a value that would change the answer.
    """
    for name in [name for name in given if name in neutral]:
        item = given.pop(name)
        if item not in neutral[name]:
            said = f"{place}{name}: {shown(item)} is not supported; leave it out"
            raise Refusal(printable(said), param=place + name, code="unsupported_parameter")


def _refusal(error: ValidationError) -> Refusal:
    """The first thing that is wrong, by the name of its field."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    # A value that may be a text or a list is told as both: the one it was meant as goes deeper.
    same = [p for p in problems if p["loc"][:1] == problems[0]["loc"][:1]]
    first = max(same, key=lambda p: (len(p["loc"]), p["type"] != "string_type"))
    loc, unknown = first["loc"], first["type"] == "extra_forbidden"
    # Kinds of a union stand between the names of fields, and repeat them.
    kinds = [p for p in loc if isinstance(p, int) or (p.isidentifier() and p != "str")]
    path = [name for name, _ in itertools.groupby(kinds)]
    path = [*path, loc[-1]] if unknown and loc[-1] not in path[-1:] else path
    field = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
    field = printable(field)[:100]
    if not unknown:
        said = first["msg"].removeprefix("Value error, ")
        about = re.match(r"[\w\[\]]+(?=: )", said)  # of several fields, by their own rule
        param = field or (about[0] if about else None)
        return Refusal(f"{field}: {said}" if field else said, param=param)
    close = difflib.get_close_matches(str(path[-1]), ChatRequest.model_fields, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return Refusal(f"{field}: unknown field{hint}", param=field, code="unknown_parameter")
