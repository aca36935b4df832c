"""A small HTTP/1.1 server on the loopback, for scripted models: what :tiny and the tests talk to.

It reads requests with a length, keeps connections alive and answers what its handler says. Bodies
are bounded; nothing else of HTTP is understood.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vlaa_jax.loop_thread import LoopThread

_MAX_BODY = 256 << 20


@dataclass(frozen=True)
class Call:
    """One request that came in."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """What goes back: a value that becomes JSON, or bytes as they are."""

    value: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        """The whole response."""
        raw = isinstance(self.value, bytes)
        body = self.value if raw else json.dumps(self.value).encode()
        lines = [f"HTTP/1.1 {self.status} X", f"content-length: {len(body)}"]
        lines += ["content-type: application/json"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body


Handler = Callable[[Call], Awaitable[Answer]]


class LocalServer:
    """Serves until it is closed, on a thread with an event loop of its own.

    Args:
        handler: answers calls; runs on the server's loop.
        port: 0 takes any that is free.
    """

    def __init__(self, handler: Handler, port: int = 0) -> None:
        self._handler = handler
        self._thread = LoopThread("local-server")
        self._server = self._thread.run(self._start(port))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def _start(self, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (call := await _read(reader)) is not None:
                writer.write((await self._handler(call)).encoded())
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, ValueError):
            pass
        finally:
            writer.close()

    def close(self) -> None:
        """Stop serving."""
        self._thread.close()

    def __enter__(self) -> "LocalServer":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


async def _read(reader: asyncio.StreamReader) -> Call | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    method, path, _ = head[0].split(" ", 2)
    pairs = (line.partition(":") for line in head[1:] if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    length = int(headers.get("content-length", "0"))
    if not 0 <= length <= _MAX_BODY:
        raise ValueError(f"a body of {length} bytes")
    return Call(method, path, headers, await reader.readexactly(length))
