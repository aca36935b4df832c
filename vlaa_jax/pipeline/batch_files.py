"""The HTTP side of the batch API: files up, batches made and asked after, results down.

Replies are read with bounds and without the key, as those of ``endpoint`` are.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any

import httpx

from vlaa_jax.endpoint import EndpointError, EndpointSettings, Kind, bearer_token, no_cookies
from vlaa_jax.foreign import parse_json
from vlaa_jax.redact import Redactor
from vlaa_jax.settings.pipeline import ServedModel

_MAX_REPLY_BYTES = 4 << 20
_MAX_RESULTS_BYTES = 2 << 30
_MAX_SAID_CHARS = 160


class Gone(EndpointError):
    """The provider does not know the batch or the file any more."""


class BatchFiles:
    """Speaks to one provider."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        token = bearer_token(EndpointSettings(model.url, key_env=model.key_env))
        headers = {"accept-encoding": "identity"}
        if token:
            headers["authorization"] = f"Bearer {token}"
        self._redactor = Redactor(token)
        self._redactor.watch()
        self._http = httpx.AsyncClient(
            base_url=model.url.rstrip("/") + "/",
            headers=headers,
            cookies=no_cookies(),
            timeout=model.timeout_s,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()
        self._redactor.unwatch()

    def quote(self, text: str) -> str:
        """What a server said, as one printable line without the key."""
        return self._redactor.line(text, _MAX_SAID_CHARS)

    async def hand_in(self, lines: Iterable[bytes], path: str) -> str:
        """Make a batch of request lines for one path; returns its id.

        Raises:
            EndpointError: the provider did not take it.
        """
        upload = {"file": ("requests.jsonl", b"".join(lines), "application/jsonl")}
        file = await self._json("POST", "files", data={"purpose": "batch"}, files=upload)
        window = {"endpoint": f"/v1/{path}", "completion_window": "24h"}
        wanted = {"input_file_id": _id_of(file), **window}

        async def made() -> dict[str, Any]:
            listed, _ = await self._once("GET", "batches", {"params": {"limit": 100}})
            rows = listed.get("data")
            found = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
            return next((r for r in found if r.get("input_file_id") == wanted["input_file_id"]), {})

        return _id_of(await self._json("POST", "batches", made, json=wanted))

    async def batch(self, batch_id: str) -> Mapping[str, Any]:
        """What the provider says of a batch.

        Raises:
            EndpointError: it says nothing.
        """
        return await self._json("GET", f"batches/{batch_id}")

    async def results(self, file_id: str) -> AsyncIterator[dict[str, Any]]:
        """The lines of a result file; broken ones are left out.

        Raises:
            EndpointError: the file cannot be read to its end.
        """
        failure: EndpointError | None = None
        try:
            async with self._http.stream("GET", f"files/{file_id}/content") as reply:
                if reply.status_code == 200:
                    async for line in _lines(reply):
                        if (value := self._object(line)) is not None:
                            yield value
                else:
                    said = f"HTTP {reply.status_code} for a result file"
                    failure = _class_of(reply.status_code)("server", said)
        except httpx.HTTPError as error:
            failure = EndpointError("connection", f"{type(error).__name__} in a result file")
        if failure is not None:
            raise failure

    def _object(self, line: bytes) -> dict[str, Any] | None:
        try:
            value = self._redactor.tree(parse_json(line))
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    async def _json(
        self,
        method: str,
        path: str,
        made: Callable[[], Awaitable[dict[str, Any]]] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """One request, tried again while the failure may pass.

        Args:
            method: of HTTP.
            path: below the base URL.
            made: looks whether a request whose reply was lost has done its work.
            options: of httpx.
        """
        attempt = 0
        while True:
            value, failure = await self._once(method, path, options)
            if failure is None:
                return value
            if failure.kind == "refused" or attempt >= self._model.retries:
                raise failure
            await asyncio.sleep(self._model.backoff_s * 2**attempt)
            attempt += 1
            if made is not None and (value := await made()):
                return value

    async def _once(
        self, method: str, path: str, options: Mapping[str, Any]
    ) -> tuple[dict[str, Any], EndpointError | None]:
        try:
            async with self._http.stream(method, path, **options) as reply:
                data = b""
                async for piece in reply.aiter_raw():
                    data += piece
                    if len(data) > _MAX_REPLY_BYTES:
                        return {}, EndpointError("malformed", f"/{path}: the reply is too large")
        except httpx.HTTPError as error:
            return {}, EndpointError("connection", f"{type(error).__name__} at /{path}")
        if reply.status_code >= 300:
            refused = 400 <= reply.status_code < 500 and reply.status_code not in (408, 429)
            kind: Kind = "refused" if refused else "server"
            said = self.quote(data.decode(errors="replace"))
            told = f"HTTP {reply.status_code} from /{path}: {said}"
            return {}, _class_of(reply.status_code)(kind, told)
        value = self._object(data)
        if value is None:
            return {}, EndpointError("malformed", f"/{path}: the reply is no JSON object")
        return value, None


def _class_of(status: int) -> type[EndpointError]:
    return Gone if status in (404, 410) else EndpointError


def _id_of(value: Mapping[str, Any]) -> str:
    name = value.get("id")
    if not isinstance(name, str) or not name or set(name) & set("/?#% "):
        raise EndpointError("malformed", "the provider gave no usable id")
    return name


async def _lines(reply: httpx.Response) -> AsyncIterator[bytes]:
    """Lines of a long reply, each within bounds."""
    rest, total = b"", 0
    async for piece in reply.aiter_raw():
        total += len(piece)
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) > _MAX_REPLY_BYTES or total > _MAX_RESULTS_BYTES:
            raise EndpointError("malformed", "a result file is too large")
        for line in whole:
            yield line
    yield rest
