"""The routes: who may ask, reading a request, answering it whole or as a stream."""

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from vlaa_jax.policy.pretrained import Pretrained
from vlaa_jax.policy.prompts import Collator
from vlaa_jax.rollout.rules import MAX_STOPS
from vlaa_jax.rollout.stream import Stream
from vlaa_jax.schema import UserError, printable
from vlaa_jax.serve.access import Access
from vlaa_jax.serve.conversation import addresses, context_of, make_prompt, wanted_of
from vlaa_jax.serve.errors import Refusal
from vlaa_jax.serve.images import ImageSource
from vlaa_jax.serve.metrics import Live, Metrics
from vlaa_jax.serve.replies import Reply
from vlaa_jax.serve.request import ChatRequest, read_request
from vlaa_jax.serve.text import Vocabulary
from vlaa_jax.serve.worker import Job, Worker
from vlaa_jax.settings.serve import ServerSettings

_READERS = 2
"""Threads that decode images and tokenise."""
_GONE = 499
"""Of a client that left before its answer was there; what proxies log for it."""


class Served:
    """A model that answers requests.

    Args:
        settings: limits.
        name: of the model.
        pretrained: its tokenizer and image processor.
        stream: its decoder.
        collator: puts prompts on the mesh.
        died: called if decoding fails for good.

    Raises:
        UserError: the address can be reached by others, and there is no key.
    """

    def __init__(
        self,
        settings: ServerSettings,
        name: str,
        pretrained: Pretrained,
        stream: Stream,
        collator: Collator,
        died: Callable[[Exception], None],
    ) -> None:
        self.settings, self.name = settings, name
        self._pretrained, self._stream, self._collator = pretrained, stream, collator
        self._died = died
        self._access = Access(settings)
        pretrained.chat.check_text(settings.system_prompt, "system_prompt")
        if len(pretrained.chat.stop_ids) + 8 > MAX_STOPS:
            raise UserError(f"the tokenizer has more than {MAX_STOPS - 8} end tokens")
        self.context = context_of(pretrained, settings)
        self._images = ImageSource(settings, pretrained.processor)
        self._vocabulary = Vocabulary(pretrained.chat)
        self._readers = ThreadPoolExecutor(_READERS, "read")
        self._worker: Worker | None = None
        self._in_hand = 0
        self.started = int(time.time())
        self.metrics = Metrics(
            Live(
                lambda: self._in_hand,
                lambda: self._worker.waiting if self._worker else 0,
                lambda: stream.growing,
                lambda: stream.compile_count,
            )
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Decodes while the context is open."""
        loop = asyncio.get_running_loop()
        self._worker = Worker(self._stream, self._collator, loop, self._died)
        try:
            yield
        finally:
            await asyncio.to_thread(self._worker.close)
            self._readers.shutdown(cancel_futures=True)

    @property
    def alive(self) -> bool:
        """Whether requests are answered."""
        return self._worker is not None and self._worker.alive

    def leave(self) -> None:
        """Refuse what is still in hand; for when patience is over."""
        if self._worker is not None:
            self._worker.leave()

    async def check(self, request: Request) -> None:
        """Refuses whoever may not ask; see `Access`."""
        self._access.check(request.headers)

    async def chat(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        over = _Over(self, time.monotonic())
        if self._in_hand >= self.settings.max_requests:
            self.metrics.requests.labels("429").inc()
            raise Refusal("too many requests in hand; try again", status=429)
        self._in_hand += 1
        try:
            asked, unread, job = await self._read(request)
            reply = Reply(asked, job.prompt.encoded.length, self._vocabulary)
            pieces = self._pieces(job, reply, over.began)
            if asked.stream:
                body = self._events(pieces, reply, over)
                return _Events(body, over, _warning(unread), self.settings.patience_s)
            await self._unless_gone(request, pieces)
        except BaseException as error:
            over(error.status if isinstance(error, Refusal) else 500)
            raise
        over(200)
        return JSONResponse(reply.whole(), headers=_warning(unread))

    def count(self, status: int, seconds: float) -> None:
        """Book a request that is over."""
        self._in_hand -= 1
        self.metrics.requests.labels(str(status)).inc()
        self.metrics.whole_s.observe(seconds)

    async def _read(self, request: Request) -> tuple[ChatRequest, list[str], Job]:
        """The request, the names of fields that were not looked at, and what is to be done."""
        loop = asyncio.get_running_loop()
        body = await self._body(request)
        asked, unread = await loop.run_in_executor(self._readers, read_request, body)
        if asked.model != self.name:
            said = f"the model {asked.model[:100]!r} is not here; this is {self.name!r}"
            raise Refusal(printable(said), status=404, param="model", code="model_not_found")
        if asked.n > self._stream.most:
            raise Refusal(f"n: {asked.n} is over this server's {self._stream.most}", param="n")
        wanted = wanted_of(asked, self._pretrained.chat.stop_ids, self.settings)
        urls = addresses(asked)
        if len(urls) > self.settings.max_images:
            raise Refusal(f"{len(urls)} images are over the limit of {self.settings.max_images}")
        try:
            async with asyncio.timeout(self.settings.patience_s):
                found = [await self._images.fetch(url) for url in urls]
        except TimeoutError:
            raise Refusal("an image could not be fetched in time") from None

        def prompt() -> Any:
            images = [self._images.open(one, f"image {i}") for i, one in enumerate(found)]
            return make_prompt(asked, images, self._pretrained, self.settings)

        made = await loop.run_in_executor(self._readers, prompt)
        self.metrics.prompt_tokens.inc(made.encoded.length)
        self.metrics.images.inc(len(urls))
        room = self.context - made.encoded.length
        return asked, unread, Job(made, wanted._replace(limit=min(wanted.limit, room)))

    async def _body(self, request: Request) -> bytes:
        limit = int(self.settings.max_body_mb * 1e6)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a form of a page of the web may send other kinds unasked
            raise Refusal("content-type: send application/json", status=415)
        body = bytearray()
        try:
            async with asyncio.timeout(self.settings.patience_s):
                async for piece in request.stream():
                    body += piece
                    if len(body) > limit:
                        raise Refusal(f"the body is larger than {limit:,} bytes", status=413)
        except TimeoutError:
            raise Refusal("the body did not come in time", status=408) from None
        except ClientDisconnect:
            raise Refusal("the client is gone", status=_GONE) from None
        return bytes(body)

    async def _pieces(self, job: Job, reply: Reply, began: float) -> AsyncGenerator[dict[str, Any]]:
        """Decodes a job into its reply, piece by piece; stops it where nobody listens any more."""
        worker = self._worker
        assert worker is not None
        worker.submit(job)
        first = True
        try:
            while not reply.finished:
                news = await job.news.get()
                if isinstance(news, Refusal):
                    raise news
                if first:
                    self.metrics.first_s.observe(time.monotonic() - began)
                    first = False
                choice = reply.choices[news.choice]
                if choice.finish_reason:  # a stop text came; the decoder did not know yet
                    continue
                piece = choice.add(news)
                if piece.finish_reason and not news.ended:
                    worker.cancel(job, news.choice)
                yield reply.piece(news.choice, piece)
        finally:
            if not reply.finished:
                worker.cancel(job)
            self.metrics.completion_tokens.inc(reply.usage["completion_tokens"])

    async def _unless_gone(self, request: Request, pieces: AsyncIterator[Any]) -> None:
        """Exhausts the pieces; leaves off when the client does.

        Raises:
            Refusal: the client is gone, or the job failed.
        """

        async def exhaust() -> None:
            async for _ in pieces:
                pass

        async def left() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        work, gone = asyncio.ensure_future(exhaust()), asyncio.ensure_future(left())
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Refusal("the client is gone", status=_GONE)
            work.result()
        finally:
            for task in (work, gone):
                task.cancel()
            with suppress(asyncio.CancelledError, Refusal):
                await work

    async def _events(
        self, pieces: AsyncGenerator[dict[str, Any]], reply: Reply, over: "_Over"
    ) -> AsyncIterator[bytes]:
        """The pieces as server-sent events."""
        try:
            for chunk in reply.begin():
                yield _event(chunk)
            async for chunk in pieces:
                yield _event(chunk)
            for chunk in reply.end():
                yield _event(chunk)
            yield b"data: [DONE]\n\n"
            over(200)
        except Refusal as refusal:
            over(refusal.status)
            yield _event(refusal.body())
        finally:
            await pieces.aclose()


class _Over:
    """Books the end of a request, once."""

    def __init__(self, served: Served, began: float) -> None:
        self.began, self._served, self._told = began, served, False

    def __call__(self, status: int) -> None:
        if not self._told:
            self._told = True
            self._served.count(status, time.monotonic() - self.began)


class _Events(StreamingResponse):
    """A stream whose end is booked, even if the client leaves before it begins.

    A client that does not read for `patience_s` is left.
    """

    def __init__(
        self, body: AsyncIterator[bytes], over: _Over, headers: dict[str, str], patience_s: float
    ) -> None:
        super().__init__(body, headers=headers, media_type="text/event-stream")
        self._over, self._patience_s = over, patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_soon(message: Message) -> None:
            async with asyncio.timeout(self._patience_s):
                await send(message)

        try:
            with suppress(TimeoutError):
                await super().__call__(scope, receive, send_soon)
        finally:
            self._over(_GONE)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _warning(unread: list[str]) -> dict[str, str]:
    """The header that names fields that were not looked at."""
    if not unread:
        return {}
    # A client wrote some of them: nothing that would end the header, or cannot stand in it.
    names = re.sub(r"[^\w.\[\], -]", "?", ", ".join(unread)[:500], flags=re.ASCII)
    return {"warning": f'299 vlaa_jax "these change nothing here: {names}"'}


def make_app(served: Served) -> FastAPI:
    """The routes of a served model."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with served.running():
            yield

    # Pages of documentation would load scripts from elsewhere.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    may_ask = [Depends(served.check)]
    model = {
        "id": served.name,
        "object": "model",
        "created": served.started,
        "owned_by": "vlaa_jax",
        "max_model_len": served.context,
    }

    @app.get("/v1/models", dependencies=may_ask)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}", dependencies=may_ask)
    async def one_model(name: str) -> dict[str, Any]:
        if name != served.name:
            raise Refusal("no such model", status=404, param="model", code="model_not_found")
        return model

    @app.post("/v1/chat/completions", dependencies=may_ask)
    async def chat(request: Request) -> Response:
        return await served.chat(request)

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse(
            {"status": "ok" if served.alive else "ended"}, 200 if served.alive else 503
        )

    @app.get("/metrics", dependencies=may_ask)
    async def metrics() -> Response:
        return Response(served.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    _say_errors(app)
    return app


def _say_errors(app: FastAPI) -> None:
    """Every failure in OpenAI's form."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        wait = {"retry-after": "1"} if error.status == 429 else {}
        return JSONResponse(error.body(), error.status, headers=wait)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        said = Refusal(str(error.detail), status=error.status_code)
        return JSONResponse(said.body(), error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return JSONResponse(Refusal("an error of the server", status=500).body(), 500)
