"""Connections for many small calls at once: httpx over aiohttp's connector and its compiled parser.

httpx's own pool looks at every connection for every request, and its parser is Python: a call
costs a quarter more of the processor, and with 64 at once that holds the run.
"""

import urllib.request

import aiohttp
import httpx
import httpx_aiohttp


def fast_transport() -> httpx.AsyncBaseTransport | None:
    """A transport for one endpoint; None, httpx's own, where the environment names a proxy."""
    proxied = urllib.request.getproxies().keys() & {"http", "https", "all"}
    return None if proxied else _Transport(client=_session)


def _session() -> aiohttp.ClientSession:
    # The window of the pacer limits calls in flight; cookies would tie one call to another.
    connector = aiohttp.TCPConnector(limit=0, ssl=httpx.create_ssl_context())
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


class _Transport(httpx_aiohttp.AiohttpTransport):
    """Whatever aiohttp raises on a reply that is no HTTP is a transport error of httpx."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        except aiohttp.ClientError as error:
            raise httpx.RemoteProtocolError(type(error).__name__) from None
