"""An asynchronous client for JSON endpoints: OpenAI-compatible chat, and plain POST.

Every call has a deadline that includes its retries, retries depend on the class of the failure, the
number of calls in flight is bounded, and a failure is an exception with a kind, never a value. The
bearer token is read from the environment when the client is made and appears in no message.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import httpx

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
    """Base URL, e.g. ``http://localhost:8000/v1``; must not carry credentials."""
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
    max_reply_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"endpoint url {self.url!r}: use http://host:port/path or https://")
        if parts.username or parts.password:
            raise UserError("endpoint url: put the credentials into the environment, not the url")
        if self.concurrency < 1 or self.retries < 0 or not self.timeout_s > 0:
            raise UserError("endpoint: concurrency >= 1, retries >= 0 and timeout_s > 0 are needed")


class EndpointError(Exception):
    """A call that gave no usable reply. The message is one line without secrets.

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
        headers = {"accept": "application/json"}
        token = os.environ.get(settings.key_env, "") if settings.key_env else ""
        if token:
            headers["authorization"] = f"Bearer {token}"
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=None,  # deadlines are ours: httpx would count each phase anew
            transport=transport,
            limits=httpx.Limits(max_connections=settings.concurrency),
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

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
            read: turns the parsed reply into a value; raises ValueError, KeyError, TypeError,
                IndexError, AttributeError or ArithmeticError when the reply is not what was
                agreed, which counts as malformed.
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
        try:
            async with self._client.stream("POST", url, content=body, headers=headers) as reply:
                status, retry_after = reply.status_code, reply.headers.get("retry-after")
                data = await self._read_body(reply)
        except httpx.TransportError as error:
            reason = f"no connection to {_place(url)} ({type(error).__name__})"
            raise EndpointError("connection", reason) from None
        except httpx.HTTPError as error:
            raise EndpointError("malformed", type(error).__name__) from None
        if status in _OVERLOAD:
            raise EndpointError("overload", f"HTTP {status}", _seconds(retry_after))
        if status >= 500:
            raise EndpointError("server", f"HTTP {status}", _seconds(retry_after))
        if status != 200:
            said = f": {words}" if (words := _excerpt(data)) else ""
            raise EndpointError("refused", f"HTTP {status} from {_place(url)}{said}")
        try:
            return read(json.loads(data))
        except _UNEXPECTED as error:
            detail = f"{type(error).__name__}: {error}"
            raise EndpointError("malformed", detail[:200]) from None

    async def _read_body(self, reply: httpx.Response) -> bytes:
        data = bytearray()
        async for piece in reply.aiter_bytes():
            data += piece
            if len(data) > self.settings.max_reply_bytes:
                limit = f"reply is larger than {self.settings.max_reply_bytes} bytes"
                raise EndpointError("malformed", limit)
        return bytes(data)


def _place(url: str) -> str:
    """The address for messages: without a query, which may hold a secret."""
    return url.partition("?")[0]


class LoopThread:
    """An event loop in a thread of its own, for callers that are not asynchronous.

    Work may be handed in from any thread. Close it to end the thread; whoever still waits for
    something then gets a CancelledError.
    """

    def __init__(self, name: str = "endpoint") -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._open: set[Future[Any]] | None = set()  # None once closing
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Start a coroutine on the loop.

        Raises:
            CancelledError: the loop is closed, or about to be.
        """
        with self._lock:
            if self._open is None:
                work.close()
                raise CancelledError("the event loop is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._open.add(future)
        future.add_done_callback(self._forget)
        return future

    def _forget(self, future: "Future[Any]") -> None:
        with self._lock:
            if self._open is not None:
                self._open.discard(future)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; interrupting the caller cancels it."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancel what still runs and end the thread."""
        with self._lock:
            left, self._open = self._open, None  # what comes from here on is refused
        if left is None:
            return
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result(timeout=5.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5.0)
        for future in left:
            future.cancel()  # handed in, but never begun
        if not self._thread.is_alive():
            self._loop.close()


def image_data_url(path: str | Path) -> str:
    """A local image as a ``data:`` URL.

    Raises:
        UserError: the file cannot be read or is no JPEG, PNG, WebP or GIF.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise UserError(f"image {path}: {getattr(error, 'strerror', None) or error}") from None
    for magic, mime in (
        (b"\xff\xd8\xff", "jpeg"),
        (b"\x89PNG", "png"),
        (b"RIFF", "webp"),
        (b"GIF8", "gif"),
    ):
        if data.startswith(magic):
            return f"data:image/{mime};base64,{base64.b64encode(data).decode()}"
    raise UserError(f"image {path}: not a JPEG, PNG, WebP or GIF file")


def image_part(path: str | Path) -> dict[str, Any]:
    """The message part that shows a local image to an OpenAI-compatible endpoint."""
    return {"type": "image_url", "image_url": {"url": image_data_url(path)}}


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


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


def _excerpt(data: bytes) -> str:
    return " ".join(data[:300].decode(errors="replace").split())[:120]
