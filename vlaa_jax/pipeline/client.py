"""One call to a served model: looked up, budgeted, paced, made, recorded."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vlaa_jax.endpoint import Endpoint, EndpointError, EndpointSettings
from vlaa_jax.pipeline.batch_api import BatchTransport
from vlaa_jax.pipeline.connections import fast_transport
from vlaa_jax.pipeline.contract import CallFailed
from vlaa_jax.pipeline.ledger import Entry, Ledger, Reply
from vlaa_jax.pipeline.pacing import Pace, Pacer
from vlaa_jax.pipeline.request import CHARS_PER_TOKEN, Request
from vlaa_jax.schema import UserError
from vlaa_jax.settings.pipeline import PipelineRunSettings, ServedModel


class CapReached(UserError):
    """The next call might cost more than what is left under the cap."""


def check_models(models: Mapping[str, ServedModel]) -> None:
    """See that every model can be asked.

    Raises:
        UserError: a model has no url, no name, or a key that is not set.
    """
    for step, model in models.items():
        group = "split" if step == "difficulty" else step
        if not model.url or not model.model:
            raise UserError(f"{group}.model: url and model must be set")
        if model.key_env and not os.environ.get(model.key_env):
            raise UserError(f"{group}.model.key_env: ${model.key_env} is not set")


class Budget:
    """Dollars spent and promised; a call is admitted only if even its longest reply fits."""

    def __init__(self, cap: float, spent: float) -> None:
        self.cap, self.spent, self.promised = cap, spent, 0.0
        self._open = 0
        self._settled = asyncio.Event()

    async def promise(self, most: float) -> None:
        """Set aside what a call may cost, once calls in flight have left enough of the cap.

        Raises:
            CapReached: nothing is in flight, and what is left is less.
        """
        while self.cap and self.spent + self.promised + most > self.cap:
            if not self._open:
                raise CapReached(
                    f"run.max_cost = {self.cap:g} dollars: {self.spent:.4f} are spent and the next"
                    f" call may cost {most:.4f}; raise it to go on"
                )
            await self._settled.wait()
        self._open += 1
        self.promised += most

    def settle(self, most: float, cost: float) -> None:
        """Turn a promise into what it really cost."""
        self._open -= 1
        self.promised -= most
        self.spent += cost
        self._settled.set()
        self._settled = asyncio.Event()


class Client:
    """Asks the models of all steps. Belongs to one event loop; use it as a context.

    Raises:
        UserError: a model cannot be asked; see ``check_models``.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        image_root: Path,
        ledger: Ledger,
        *,
        run: PipelineRunSettings | None = None,
    ) -> None:
        run = run or PipelineRunSettings()
        check_models(models)
        self._models = dict(models)
        self._image_root, self._ledger = image_root, ledger
        self.budget = Budget(run.max_cost, ledger.spent())
        self.calls: Counter[str] = Counter()
        """Calls answered by a model, per step; those answered by the ledger are not in it."""
        self.costs: dict[str, float] = dict.fromkeys(models, 0.0)
        """Dollars of these calls."""
        self._run = run
        self._open: dict[bytes, asyncio.Future[Reply]] = {}
        self._lines: dict[tuple[Any, ...], _Line] = {}
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> "Client":
        for model in self._models.values():
            if _place(model) not in self._lines:
                line = _Line(model, self._ledger, self._run)
                self._lines[_place(model)] = await self._exit.enter_async_context(line)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._exit.aclose()

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that ask a model."""
        return tuple(self._models)

    def windows(self) -> dict[str, tuple[int, float, int]]:
        """Calls in flight, the window's size and its cap, per model."""
        found = {}
        for line in self._lines.values():
            window = line.pacer.window
            found[line.model.model] = (window.in_flight, window.size, window.cap)
        return found

    async def ask(self, request: Request) -> Reply:
        """The answer to a request; equal requests in flight share one call.

        Raises:
            CallFailed: there was no usable answer.
            UserError: nothing more may be asked (cap, endpoint down, ledger not writable).
        """
        model = self._models[request.step]
        key = request.key(model)
        if (known := self._ledger.get(key)) is not None:
            return known
        if key in self._open:
            return await asyncio.shield(self._open[key])
        mine = self._open[key] = asyncio.get_running_loop().create_future()
        try:
            reply = await self._call(request, model, key)
        except Exception as error:
            mine.set_exception(error)
            mine.exception()  # whoever waits is told; nobody may wait
            raise
        except BaseException:
            mine.cancel()
            raise
        else:
            mine.set_result(reply)
            return reply
        finally:
            del self._open[key]

    async def _call(self, request: Request, model: ServedModel, key: bytes) -> Reply:
        prompt = request.prompt_tokens(model)
        most = _cost(model, prompt, model.max_tokens)
        await self.budget.promise(most)
        began, cost = time.monotonic(), 0.0
        row = partial(Entry, key, request.step, request.sample, model.model)

        async def keep(reply: Reply) -> Reply:
            nonlocal cost
            if not reply.prompt_tokens:  # a server that counts nothing must not look free
                said = int(len(reply.text + reply.reasoning) / CHARS_PER_TOKEN) + 1
                reply = replace(reply, prompt_tokens=prompt, completion_tokens=said)
            cost = _cost(model, reply.prompt_tokens, reply.completion_tokens)
            await self._ledger.record(row(reply, "", cost, time.monotonic() - began))
            return reply

        try:
            line = self._lines[_place(model)]
            reply = await line.send(request, model, key, self._image_root, keep)
        except EndpointError as failure:
            await self._ledger.record(row(None, str(failure), 0.0, time.monotonic() - began))
            raise CallFailed(request.step, failure.kind, str(failure)) from None
        finally:
            self.budget.settle(most, cost)
        self.calls[request.step] += 1
        self.costs[request.step] += cost
        return reply


class _Line:
    """One endpoint with its pacer and transport; steps that ask the same model share it."""

    def __init__(self, model: ServedModel, ledger: Ledger, run: PipelineRunSettings) -> None:
        self.model = model
        self.pacer = Pacer(
            Pace(
                name=f"{model.model} at {model.url}",
                concurrency=model.concurrency,
                start_concurrency=model.start_concurrency,
                requests_per_minute=model.requests_per_minute,
                tokens_per_minute=model.tokens_per_minute,
                timeout_s=model.timeout_s,
                deadline_s=model.deadline_s,
                retries=model.retries,
                backoff_s=model.backoff_s,
                breaker_calls=run.max_failed,
                rest_s=run.rest_s,
            )
        )
        self._endpoint = Endpoint(
            EndpointSettings(
                model.url,
                model=model.model,
                key_env=model.key_env,
                concurrency=model.concurrency,
                timeout_s=model.timeout_s,
            ),
            fast_transport(),
        )
        self._batches = BatchTransport(model, ledger) if model.transport == "batch" else None

    async def __aenter__(self) -> "_Line":
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._batches is not None:
            await self._batches.aclose()
        await self._endpoint.aclose()

    async def send(
        self,
        request: Request,
        model: ServedModel,
        key: bytes,
        root: Path,
        keep: Callable[[Reply], Awaitable[Reply]],
    ) -> Reply:
        """Ask, and record with ``keep`` while the call still counts as in flight.

        So a crash can cost no more replies than the window has places.
        """
        if self._batches is not None:
            return await keep(await self._batches.send(request, key, root))

        async def one_try(deadline: float) -> Reply:
            body = request.body(model, root)
            asked = self._endpoint.post(
                request.path, body, request.read, deadline=deadline, retries=0
            )
            return await keep(await asked)

        most = request.prompt_tokens(model) + model.max_tokens
        return await self.pacer.call(one_try, most, _tokens)


def _place(model: ServedModel) -> tuple[Any, ...]:
    return model.url, model.model, model.key_env, model.transport


def _tokens(reply: Reply) -> float:
    return reply.prompt_tokens + reply.completion_tokens


def _cost(model: ServedModel, prompt_tokens: int, completion_tokens: int) -> float:
    per_token = (model.price_prompt / 1e6, model.price_completion / 1e6)
    return prompt_tokens * per_token[0] + completion_tokens * per_token[1]
