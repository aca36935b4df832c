"""Connections to one endpoint, handed out in constant time.

httpcore's pool looks at every connection for every request, and asks the system about each idle
one; with 64 of them that costs more than the request itself. Here each place is a pool of a single
connection, and free places lie on a stack.
"""

import urllib.request
from collections.abc import AsyncIterator

import httpx


def fast_transport() -> httpx.AsyncBaseTransport | None:
    """A stack of connections; None, httpx's own, where the environment names a proxy."""
    proxied = urllib.request.getproxies().keys() & {"http", "https", "all"}
    return None if proxied else ConnectionStack()


class ConnectionStack(httpx.AsyncBaseTransport):
    """As many connections as there are requests at once; the last one used is used next."""

    def __init__(self) -> None:
        self._certificates = httpx.create_ssl_context()
        self._free: list[httpx.AsyncHTTPTransport] = []
        self._all: list[httpx.AsyncHTTPTransport] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request on a free connection, or a new one."""
        if not self._free:
            limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
            self._free.append(httpx.AsyncHTTPTransport(verify=self._certificates, limits=limits))
            self._all.append(self._free[-1])
        place = self._free.pop()
        try:
            response = await place.handle_async_request(request)
        except BaseException:
            self._free.append(place)
            raise
        response.stream = _Returning(response.stream, place, self._free)
        return response

    async def aclose(self) -> None:
        """Close all connections."""
        for place in self._all:
            await place.aclose()


class _Returning(httpx.AsyncByteStream):
    """A reply's bytes; gives the connection back when the reply is closed."""

    def __init__(
        self,
        stream: httpx.SyncByteStream | httpx.AsyncByteStream,
        place: httpx.AsyncHTTPTransport,
        free: list[httpx.AsyncHTTPTransport],
    ) -> None:
        assert isinstance(stream, httpx.AsyncByteStream)
        self._stream, self._place, self._free = stream, place, free

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            yield piece

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._free.append(self._place)
