"""The provider's batch API as another transport: half the price, an answer within a day.

Requests gather into a file, the file becomes a batch, the batch is asked after until it ends, and
its output is handed out. The provider's id of a batch is in the ledger before anybody waits for it,
so a run that was killed finds its batches again and pays for nothing twice.
(OpenAI's ``/files`` and ``/batches``, which others speak, too.)
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from vlaa_jax.endpoint import EndpointError, Kind
from vlaa_jax.pipeline.ledger import Ledger, Reply
from vlaa_jax.pipeline.request import Request
from vlaa_jax.settings.pipeline import ServedModel

_MAX_FILE_BYTES = 90 << 20
"""Of an input file; providers allow 100 to 200 MB, and images are inside."""
_MAX_REPLY_BYTES = 1 << 30
_GATHER_S = 2.0
"""A file is sent when nothing new came for this long, or when it is full."""
_ENDED = frozenset(("completed", "expired", "failed", "cancelled"))


@dataclass
class _Waiting:
    """A request whose answer a batch will bring."""

    request: Request
    line: bytes
    answer: "asyncio.Future[Reply]"


class BatchTransport:
    """Answers requests of one model through batches. Belongs to one event loop."""

    def __init__(self, model: ServedModel, ledger: Ledger) -> None:
        self._model, self._ledger = model, ledger
        token = os.environ.get(model.key_env, "") if model.key_env else ""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.AsyncClient(
            base_url=model.url.rstrip("/") + "/", headers=headers, timeout=model.timeout_s
        )
        self._gathering: dict[str, _Waiting] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._early: dict[str, dict[str, Any]] = {}  # answers of earlier runs nobody asked for yet
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Event()
        self._begun = False

    async def aclose(self) -> None:
        """Stop waiting; batches that were handed in go on and are found by the next run."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()

    async def send(self, request: Request, key: bytes, image_root: Path) -> Reply:
        """The answer to a request, when its batch has ended.

        Raises:
            EndpointError: the provider answered with an error, or not within its time.
        """
        if not self._begun:
            self._begun = True
            await self._find_open_batches()
            self._start(self._gather())
        name = key.hex()
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(request, b"", answer)
        if name in self._early:
            self._settle(name, waiting, self._early.pop(name))
        elif name in self._waiting:  # in a batch of an earlier run
            self._waiting[name] = waiting
        else:
            body = request.body(self._model, image_root)
            line = {"custom_id": name, "method": "POST", "url": f"/v1/{request.path}", "body": body}
            waiting.line = json.dumps(line).encode() + b"\n"
            self._gathering[name] = waiting
            self._arrived.set()
        return await answer

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _find_open_batches(self) -> None:
        for batch_id, keys in self._ledger.open_batches(self._model.url):
            self._start(self._collect(batch_id, [key.hex() for key in keys]))
            for key in keys:
                placeholder: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
                self._waiting[key.hex()] = _Waiting(Request("", "", ""), b"", placeholder)

    async def _gather(self) -> None:
        """Cut what arrives into files and hand them in."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            size = -1
            while len(self._gathering) < self._model.batch_requests and size != len(
                self._gathering
            ):
                size = len(self._gathering)
                await asyncio.sleep(_GATHER_S)
            while self._gathering:
                await self._hand_in(self._next_file())

    def _next_file(self) -> dict[str, _Waiting]:
        taken: dict[str, _Waiting] = {}
        size = 0
        for name, waiting in self._gathering.items():
            size += len(waiting.line)
            if taken and (len(taken) >= self._model.batch_requests or size > _MAX_FILE_BYTES):
                break
            taken[name] = waiting
        for name in taken:
            del self._gathering[name]
        return taken

    async def _hand_in(self, taken: dict[str, _Waiting]) -> None:
        self._waiting.update(taken)
        try:
            content = b"".join(waiting.line for waiting in taken.values())
            upload = {"file": ("requests.jsonl", content, "application/jsonl")}
            file = await self._json("POST", "files", data={"purpose": "batch"}, files=upload)
            path = next(iter(taken.values())).request.path
            window = {"endpoint": f"/v1/{path}", "completion_window": "24h"}
            made = await self._json("POST", "batches", json={"input_file_id": file["id"], **window})
            batch_id = str(made["id"])
        except (EndpointError, KeyError, TypeError) as error:
            self._fail(taken, error)
            return
        self._ledger.add_batch(batch_id, self._model.url, [bytes.fromhex(name) for name in taken])
        for waiting in taken.values():
            waiting.line = b""  # images need not stay in memory
        self._start(self._collect(batch_id, list(taken)))

    async def _collect(self, batch_id: str, names: list[str]) -> None:
        """Ask after a batch until it ends, and hand out what it brought."""
        batch = await self._ended(batch_id)
        for field in ("output_file_id", "error_file_id"):
            if file_id := batch.get(field):
                async for result in self._lines(str(file_id)):
                    self._hand_out(result)
        missing = {name: self._waiting.pop(name) for name in names if name in self._waiting}
        reason = f"batch {batch_id} {batch['status']} without an answer to this request"
        self._fail(missing, EndpointError("server", reason))
        self._ledger.close_batch(batch_id)

    async def _ended(self, batch_id: str) -> Mapping[str, Any]:
        while True:
            try:
                batch = await self._json("GET", f"batches/{batch_id}")
                if batch.get("status") in _ENDED:
                    return batch
            except EndpointError as error:
                if error.kind == "refused":
                    return {"status": f"cannot be read ({error})"}
            await asyncio.sleep(self._model.batch_poll_s)

    async def _lines(self, file_id: str) -> AsyncIterator[dict[str, Any]]:
        """Results of an output file, within bounds; a broken line is skipped."""
        size = 0
        async with self._http.stream("GET", f"files/{file_id}/content") as reply:
            async for line in reply.aiter_lines():
                size += len(line)
                if size > _MAX_REPLY_BYTES:
                    return
                try:
                    result = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(result, dict):
                    yield result

    def _hand_out(self, result: dict[str, Any]) -> None:
        name = str(result.get("custom_id"))
        waiting = self._waiting.pop(name, None)
        if waiting is None:
            return
        if waiting.request.step:
            self._settle(name, waiting, result)
        else:
            self._early[name] = result

    def _settle(self, name: str, waiting: _Waiting, result: dict[str, Any]) -> None:
        response = result.get("response") or {}
        status = response.get("status_code", 0)
        if status != 200:
            kind: Kind = "refused" if 400 <= status < 500 else "server"
            self._fail({name: waiting}, EndpointError(kind, f"HTTP {status} in a batch"))
            return
        try:
            reply = waiting.request.read(response["body"])
        except (
            ValueError,
            KeyError,
            TypeError,
            IndexError,
            AttributeError,
            RecursionError,
        ) as error:
            self._fail({name: waiting}, EndpointError("malformed", str(error)[:200]))
            return
        if not waiting.answer.done():
            waiting.answer.set_result(reply)

    def _fail(self, waiting: Mapping[str, _Waiting], error: Exception) -> None:
        if not isinstance(error, EndpointError):
            error = EndpointError("malformed", f"{type(error).__name__}: {error}"[:200])
        for name, one in waiting.items():
            self._waiting.pop(name, None)
            if not one.answer.done():
                one.answer.set_exception(error)

    async def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """One request of the batch API, tried again while the failure may pass."""
        for attempt in range(self._model.retries + 1):
            try:
                reply = await self._http.request(method, path, **options)
                if reply.status_code < 300:
                    value = reply.json()
                    return value if isinstance(value, dict) else {}
                refused = 400 <= reply.status_code < 500 and reply.status_code not in (408, 429)
                kind: Kind = "refused" if refused else "server"
                failure = EndpointError(kind, f"HTTP {reply.status_code} from /{path}")
            except httpx.HTTPError as error:
                failure = EndpointError("connection", f"{type(error).__name__} at /{path}")
            except ValueError:
                failure = EndpointError("malformed", f"no JSON from /{path}")
            if failure.kind == "refused" or attempt == self._model.retries:
                break
            await asyncio.sleep(self._model.backoff_s * 2**attempt)
        raise failure
