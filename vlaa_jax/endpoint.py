"""An asynchronous client for JSON endpoints: OpenAI-compatible chat, and plain POST.

Every call has a deadline that includes its retries, retries depend on the class of the failure, the
number of calls in flight is bounded, and a failure is an exception with a kind, never a value. The
bearer token is read from the environment when the client is made and is taken out of whatever the
server says, before anyone reads it. Replies are read uncompressed and up to a limit.
"""

import asyncio
import base64
import contextlib
import functools
import hashlib
import json
import math
import os
import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx

from vlaa_jax.foreign import MAX_IMAGE_BYTES, image_kind, parse_json, read_bytes
from vlaa_jax.redact import Redactor, check_address, check_variable
from vlaa_jax.schema import UserError

T = TypeVar("T")

Kind = Literal["timeout", "connection", "overload", "server", "refused", "malformed"]

_RETRIES_OF_KIND: Mapping[Kind, int | None] = {
    "connection": None,  # None: as many as the settings allow
    "overload": None,
    "server": None,
    "malformed": 1,  # a sick server may recover; a judge at temperature 0 repeats itself
    "timeout": 0,  # the deadline covers the retries
    "refused": 0,  # the request itself is wrong and stays wrong
}
_OVERLOAD = frozenset((408, 409, 425, 429, 503))
_MAX_BACKOFF_S = 20.0
_MAX_ERROR_BYTES = 1 << 16
_MAX_SAID_CHARS = 160
# What reading a JSON value of another form than expected may raise.
_UNEXPECTED = (
    *(ValueError, KeyError, TypeError, IndexError, AttributeError),
    *(ArithmeticError, RecursionError),
)


@dataclass(frozen=True)
class EndpointSettings:
    """Where an endpoint is and how patiently it is asked.

    Raises:
        UserError: the URL is not http(s), or a number is out of range.
    """

    url: str
    """Base URL, e.g. ``http://localhost:8000/v1``. Without credentials, query or fragment: it is
    shown in messages and recorded with runs."""
    model: str = ""
    key_env: str = ""
    """Environment variable that holds the bearer token; empty or unset sends none."""
    concurrency: int = 8
    """Calls in flight at once."""
    timeout_s: float = 60.0
    """Deadline of one call in seconds, from its turn on, pauses between retries included; of a job
    of several calls (see ``Endpoint.turn``) as a whole."""
    retries: int = 3
    """Further tries after a failure that may pass."""
    backoff_s: float = 0.5
    """First pause before a retry; doubles each time, with jitter."""
    max_reply_bytes: int = 4 * 2**20
    """Longer replies are refused while they are read; parsing takes up to thirty times as much."""

    def __post_init__(self) -> None:
        try:
            check_address(self.url)
            check_variable(self.key_env)
        except ValueError as error:
            raise UserError(f"endpoint: {error}") from None
        if min(self.concurrency, self.max_reply_bytes) < 1 or min(self.retries, self.backoff_s) < 0:
            raise UserError(
                "endpoint: concurrency and max_reply_bytes >= 1, retries and backoff_s >= 0 are "
                "needed"
            )
        if not 0 < self.timeout_s < math.inf:
            raise UserError("endpoint: timeout_s must be a positive number of seconds")


def bearer_token(settings: EndpointSettings) -> str:
    """The bearer token of an endpoint; empty where no variable is named, or it is not set.

    Raises:
        UserError: it cannot be sent in a header, or stands in the address.
    """
    token = os.environ.get(settings.key_env, "").strip() if settings.key_env else ""
    if not all("!" <= c <= "~" for c in token):
        raise UserError(f"${settings.key_env} holds characters that no key has (blanks, non-ASCII)")
    if token and token in settings.url:
        raise UserError(f"endpoint: the url holds the key of ${settings.key_env}; take it out")
    return token


class EndpointError(Exception):
    """A call that gave no usable reply. The message is one printable line without secrets.

    Attributes:
        kind: class of the failure; decides whether it is worth another try.
        retry_after_s: what the server asked for, in seconds; None where it did not.
    """

    def __init__(self, kind: Kind, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind: Kind = kind
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class ChatReply:
    """Text of the first choice, why it ended, and what it cost."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    raw: Mapping[str, Any]


class Endpoint:
    """Client of one endpoint. Make and use it on one event loop; see ``LoopThread`` for threads."""

    def __init__(
        self, settings: EndpointSettings, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.settings = settings
        self._gate = asyncio.Semaphore(settings.concurrency)
        # Encodings are not ours to undo: a few bytes could unfold to any number.
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        if token := bearer_token(settings):
            headers["authorization"] = f"Bearer {token}"
        self._redactor = Redactor(token)
        self._redactor.watch()
        try:
            self._client = httpx.AsyncClient(
                headers=headers,
                verify=_certificates(),
                timeout=None,  # deadlines are ours: httpx would count each phase anew
                transport=transport,
                cookies=no_cookies(),
                limits=httpx.Limits(max_connections=settings.concurrency),
            )
        except ImportError:
            raise UserError("endpoint: a SOCKS proxy needs pip install 'httpx[socks]'") from None
        except (ValueError, httpx.InvalidURL):  # the message may hold the proxy's password
            raise UserError("endpoint: the environment names a proxy that is no address") from None

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()
        self._redactor.unwatch()

    def quote(self, text: str, max_chars: int = _MAX_SAID_CHARS) -> str:
        """What a server said, as one printable line without the key, for a message."""
        return self._redactor.line(text, max_chars)

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> ChatReply:
        """One chat completion (``POST {url}/chat/completions``).

        Args:
            messages: OpenAI-style messages; images as ``data:`` URLs (see ``image_part``).
            options: further request fields, e.g. ``temperature=0``.

        Raises:
            EndpointError: no usable reply before the deadline.
        """
        payload = {"model": self.settings.model, "messages": list(messages), **options}
        return await self.post("chat/completions", payload, _read_chat)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[float]:
        """Wait for a place among the calls in flight, and hold it.

        For callers that make several calls of one job, one after another, under one deadline.

        Yields:
            The job's deadline on the event loop's clock: ``timeout_s`` from the turn on. Waiting
            for a turn is not the server's fault.
        """
        async with self._gate:
            yield asyncio.get_running_loop().time() + self.settings.timeout_s

    async def post(
        self,
        path: str,
        payload: Mapping[str, Any],
        read: Callable[[Any], T],
        *,
        deadline: float | None = None,
        retries: int | None = None,
    ) -> T:
        """POST JSON and return what ``read`` makes of the JSON reply.

        Args:
            path: below the base URL; empty posts to the base URL itself.
            payload: request body.
            read: turns the parsed reply, from which the key has been taken, into a value; raises
                ValueError, KeyError, TypeError, IndexError, AttributeError or ArithmeticError when
                the reply is not what was agreed, which counts as malformed.
            deadline: from ``turn``, by a caller who holds one; None takes a turn for this call.
            retries: further tries; None takes the settings'.

        Raises:
            EndpointError: no usable reply before the deadline.
        """
        body = json.dumps(payload, allow_nan=False).encode()
        # The same request carries the same key, so a server may answer a retry from memory.
        headers = {
            "content-type": "application/json",
            "idempotency-key": hashlib.sha256(path.encode() + b"\0" + body).hexdigest(),
        }
        url = f"{self.settings.url.rstrip('/')}/{path}".rstrip("/")
        retries = self.settings.retries if retries is None else retries
        if deadline is None:
            async with self.turn() as own:
                return await self._until(own, url, body, headers, read, retries)
        return await self._until(deadline, url, body, headers, read, retries)

    async def _until(
        self,
        deadline: float,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        read: Callable[[Any], T],
        retries: int,
    ) -> T:
        try:
            if deadline <= asyncio.get_running_loop().time():
                raise TimeoutError
            async with asyncio.timeout_at(deadline):
                return await self._with_retries(url, body, headers, read, retries)
        except TimeoutError:
            limit = f"no reply within {self.settings.timeout_s:g} s"
            raise EndpointError("timeout", limit) from None

    async def _with_retries(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        read: Callable[[Any], T],
        retries: int,
    ) -> T:
        attempt = 0
        while True:
            try:
                return await self._once(url, body, headers, read)
            except EndpointError as error:
                allowed = _RETRIES_OF_KIND[error.kind]
                if attempt >= (retries if allowed is None else min(allowed, retries)):
                    raise
                pause = min(_MAX_BACKOFF_S, self.settings.backoff_s * 2**attempt)
                pause *= random.uniform(0.5, 1.0)  # so that many clients do not return together
                await asyncio.sleep(max(pause, error.retry_after_s or 0.0))
                attempt += 1

    async def _once(
        self, url: str, body: bytes, headers: Mapping[str, str], read: Callable[[Any], T]
    ) -> T:
        failure: EndpointError | None = None
        try:
            async with self._client.stream("POST", url, content=body, headers=headers) as reply:
                data = await self._read_body(reply)
        except httpx.TransportError as error:
            reason = f"no connection to {url} ({type(error).__name__})"
            failure = EndpointError("connection", self.quote(reason, 300))
        except httpx.HTTPError as error:
            failure = EndpointError("malformed", type(error).__name__)
        # Raised out here, so that no traceback leads to an exception that repeats the server.
        if failure or (failure := self._failure_of(reply, data)):
            raise failure
        try:
            return read(self._redactor.tree(parse_json(data)))
        except _UNEXPECTED as error:
            failure = EndpointError("malformed", self.quote(f"{type(error).__name__}: {error}"))
        raise failure

    def _failure_of(self, reply: httpx.Response, data: bytes) -> EndpointError | None:
        """The failure that a status stands for."""
        status, wait_s = reply.status_code, _seconds(reply.headers.get("retry-after"))
        if status in _OVERLOAD:
            return EndpointError("overload", f"HTTP {status}", wait_s)
        if status >= 500:
            return EndpointError("server", f"HTTP {status}", wait_s)
        if status == 200:
            return None
        said = f": {words}" if (words := self.quote(_as_text(data))) else ""
        place = self.quote(str(reply.url), 300)
        return EndpointError("refused", f"HTTP {status} from {place}{said}")

    async def _read_body(self, reply: httpx.Response) -> bytes:
        """The bytes of a reply; of a failure only if they are few."""
        encoding = reply.headers.get("content-encoding", "").strip()
        if encoding.lower() not in ("", "identity"):
            if reply.status_code != 200:
                return b""
            said = f"the reply is encoded as {self.quote(encoding, 30)}, identity was asked for"
            raise EndpointError("malformed", said)
        data = bytearray()
        async for piece in reply.aiter_raw():
            data += piece
            if reply.status_code != 200 and len(data) > _MAX_ERROR_BYTES:
                return b"(a long text)"  # a cut could leave half of a key that nobody knows
            if len(data) > self.settings.max_reply_bytes:
                limit = f"reply is larger than {self.settings.max_reply_bytes} bytes"
                raise EndpointError("malformed", limit)
        return bytes(data)


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Whom to trust, as httpx would find it for every client anew, which takes it 30 ms."""
    return httpx.create_ssl_context()


def no_cookies() -> CookieJar:
    """A jar that takes nothing: cookies would tie calls together, and a server can send many."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=()))


def data_url(image: bytes, name: str) -> str:
    """An encoded image as a ``data:`` URL.

    Raises:
        UserError: it is no JPEG, PNG, WebP or GIF; ``name`` says which.
    """
    if (kind := image_kind(image)) is None:
        raise UserError(f"{name}: not a JPEG, PNG, WebP or GIF file")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def image_data_url(path: str | Path) -> str:
    """``data_url`` of a local image; UserError where the file cannot be read, too."""
    try:
        return data_url(read_bytes(Path(path), MAX_IMAGE_BYTES), f"image {path}")
    except FileNotFoundError:
        raise UserError(f"image {path} does not exist") from None


def image_part(path: str | Path) -> dict[str, Any]:
    """The message part that shows a local image to an OpenAI-compatible endpoint."""
    return {"type": "image_url", "image_url": {"url": image_data_url(path)}}


def _read_chat(reply: Any) -> ChatReply:
    choice = reply["choices"][0]
    text = choice["message"]["content"]
    if not isinstance(text, str):
        raise ValueError("the reply has no text")
    usage = reply.get("usage") or {}
    return ChatReply(
        text,
        str(choice.get("finish_reason") or ""),
        int(usage.get("prompt_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
        reply,
    )


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; the date form is ignored."""
    try:
        value = float(header) if header is not None else None
    except ValueError:
        return None
    return value if value is not None and 0 <= value < 3600 else None


def _as_text(data: bytes) -> str:
    """A reply to quote from: JSON with its escapes undone, anything else as it is."""
    try:
        return json.dumps(parse_json(data), ensure_ascii=False)
    except ValueError:
        return data.decode(errors="replace")
