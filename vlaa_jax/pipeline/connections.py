"""Connections for many small calls at once: httpx over aiohttp's connector and its compiled parser.

httpx's own pool looks at every connection for every request, and its parser is Python: a call
costs a quarter more of the processor, and with 64 at once that holds the run.
"""

import urllib.request

import aiohttp
import httpx
import httpx_aiohttp

from vlaa_jax.schema import UserError


def fast_transport() -> httpx.AsyncBaseTransport | None:
    """A transport for one endpoint; None, httpx's own, where the environment names a proxy.

    Raises:
        UserError: the certificates that the environment names cannot be read.
    """
    proxied = urllib.request.getproxies().keys() & {"http", "https", "all"}
    try:
        return None if proxied else _Transport(client=_session)
    except OSError as error:
        told = "the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read"
        raise UserError(f"{told} ({error.strerror or type(error).__name__})") from None


def _session() -> aiohttp.ClientSession:
    # The window of the pacer limits calls in flight; cookies would tie one call to another.
    connector = aiohttp.TCPConnector(limit=0, ssl=httpx.create_ssl_context())
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


class _Transport(httpx_aiohttp.AiohttpTransport):
    """Whatever fails on the way is a transport error of httpx, under a name that says where."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        except httpx.ConnectTimeout as error:  # so the adapter calls every lost connection
            refused = isinstance(error.__cause__, aiohttp.ClientConnectorError)
            failure = httpx.ConnectError if refused else httpx.ReadError
            raise failure(type(error.__cause__).__name__) from None
        except (aiohttp.ClientError, ValueError) as error:  # no HTTP, or no text in its first line
            raise httpx.RemoteProtocolError(type(error).__name__) from None
