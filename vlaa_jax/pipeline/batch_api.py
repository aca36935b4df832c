"""The provider's batch API as another transport: half the price, an answer within a day.

Requests gather into a file, the file becomes a batch, the batch is asked after until it ends, and
its output is handed out. The provider's id of a batch is in the ledger before anybody waits for it,
so a run that was killed finds its batches again and pays for nothing twice. Spoken is OpenAI's form
(``/files`` and ``/batches``), which others speak too.
"""

import asyncio
import json
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlaa_jax.endpoint import EndpointError
from vlaa_jax.pipeline.batch_files import BatchFiles, Gone
from vlaa_jax.pipeline.ledger import Ledger, Reply
from vlaa_jax.pipeline.request import Request
from vlaa_jax.settings.pipeline import ServedModel

_MAX_FILE_BYTES = 90 << 20
"""Of an input file; providers allow 100 to 200 MB, and images are inside."""
_GATHER_S = 2.0
"""A file is sent when nothing new came for this long, or when it is full."""
_ENDED = frozenset(("completed", "expired", "failed", "cancelled"))
_UNEXPECTED = (ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError)


@dataclass
class _Waiting:
    """A request whose answer a batch is to bring."""

    request: Request
    line: bytes
    answer: "asyncio.Future[Reply]"


class BatchTransport:
    """Answers requests of one model through batches. Belongs to one event loop."""

    def __init__(self, model: ServedModel, ledger: Ledger, gather_s: float = _GATHER_S) -> None:
        self._model, self._ledger, self._gather_s = model, ledger, gather_s
        self._files = BatchFiles(model)
        self._gathering: dict[str, _Waiting] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._earlier: set[str] = set()  # in batches of earlier runs, not answered yet
        self._early: dict[str, dict[str, Any]] = {}  # answered, and nobody has asked yet
        self._over: dict[str, list[str]] = {}  # batches that ended, with what they answered
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Event()
        self._begun = False
        self._broken: EndpointError | None = None

    async def aclose(self) -> None:
        """Stop waiting; what the provider still works on is found by the next run."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for batch_id, answered in self._over.items():
            if all(self._ledger.knows(bytes.fromhex(name)) for name in answered):
                self._ledger.close_batch(batch_id)
        await self._files.aclose()

    async def send(self, request: Request, key: bytes, image_root: Path) -> Reply:
        """The answer to a request, when its batch has ended.

        Raises:
            EndpointError: the provider answered with an error, or not within its time.
        """
        if self._broken is not None:
            raise self._broken
        if not self._begun:
            self._begun = True
            for batch_id, keys in self._ledger.open_batches(self._model.url):
                names = [key.hex() for key in keys if not self._ledger.knows(key)]
                self._earlier.update(names)
                self._start(self._collect(batch_id, names))
            self._start(self._gather())
        name = key.hex()
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        waiting = self._waiting[name] = _Waiting(request, b"", answer)
        if name in self._early:
            self._settle(name, self._early.pop(name))
        elif name not in self._earlier:
            body = request.body(self._model, image_root)
            line = {"custom_id": name, "method": "POST", "url": f"/v1/{request.path}", "body": body}
            waiting.line = json.dumps(line).encode() + b"\n"
            self._gathering[name] = waiting
            self._arrived.set()
        return await answer

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            said = self._files.quote(f"{type(error).__name__}: {error}")
            self._broken = EndpointError("server", f"the batch transport broke: {said}")
            self._fail(list(self._waiting), self._broken)  # nobody is to wait for ever

    async def _gather(self) -> None:
        """Cut what arrives into files and hand them in."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            before = 0
            while before != (count := len(self._gathering)) < self._model.batch_requests:
                before = count
                await asyncio.sleep(self._gather_s)
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

    async def _hand_in(self, taken: Mapping[str, _Waiting]) -> None:
        path = next(iter(taken.values())).request.path
        try:
            batch_id = await self._files.hand_in((w.line for w in taken.values()), path)
        except EndpointError as error:
            self._fail(taken, error)
            return
        self._ledger.add_batch(batch_id, self._model.url, [bytes.fromhex(name) for name in taken])
        for waiting in taken.values():
            waiting.line = b""  # images need not stay in memory
        self._start(self._collect(batch_id, list(taken)))

    async def _collect(self, batch_id: str, names: list[str]) -> None:
        """Ask after a batch until it ends, and hand out what it brought."""
        answered: list[str] = []
        over = True
        try:
            batch = await self._until_over(batch_id)
            for field in ("output_file_id", "error_file_id"):
                if file_id := batch.get(field):
                    async for result in self._files.results(str(file_id)):
                        answered += self._hand_out(result)
            reason = f"batch {batch_id} {batch['status']} without an answer to this request"
            error = EndpointError("server", reason)
        except EndpointError as failure:
            error, over = failure, isinstance(failure, Gone)
        self._earlier.difference_update(names)
        self._fail([name for name in names if name in self._waiting], error)
        if over:
            self._over[batch_id] = answered

    async def _until_over(self, batch_id: str) -> Mapping[str, Any]:
        """What became of a batch; a provider that is away is waited for until the deadline."""
        clock = asyncio.get_running_loop().time
        heard = clock()
        while True:
            try:
                batch = await self._files.batch(batch_id)
                heard = clock()
                if batch.get("status") in _ENDED:
                    return batch
            except EndpointError as error:
                if error.kind == "refused" or clock() - heard > self._model.deadline_s:
                    raise
            await asyncio.sleep(self._model.batch_poll_s)

    def _hand_out(self, result: dict[str, Any]) -> list[str]:
        """Give one answer to who waits for it, or will; returns its name if it is one of ours."""
        name = str(result.get("custom_id"))
        if name in self._waiting:
            self._settle(name, result)
        elif name in self._earlier:
            self._early[name] = result
        else:
            return []
        return [name]

    def _settle(self, name: str, result: dict[str, Any]) -> None:
        waiting = self._waiting.pop(name)
        try:
            response = result["response"]
            if (status := int(response["status_code"])) != 200:
                kind = "refused" if 400 <= status < 500 else "server"
                raise EndpointError(kind, f"HTTP {status} in a batch")  # type: ignore[arg-type]
            reply = waiting.request.read(response["body"])
        except EndpointError as error:
            _tell(waiting, error)
        except _UNEXPECTED as error:
            said = self._files.quote(f"{type(error).__name__}: {error}")
            _tell(waiting, EndpointError("malformed", said))
        else:
            if not waiting.answer.done():
                waiting.answer.set_result(reply)

    def _fail(self, names: Mapping[str, Any] | list[str], error: EndpointError) -> None:
        for name in names:
            _tell(self._waiting.pop(name), error)


def _tell(waiting: _Waiting, error: EndpointError) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)
