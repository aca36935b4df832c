import asyncio
import json
import re
import sqlite3
from dataclasses import replace

import pytest

from pipeline_cases import changed, outputs, run, settings_for
from vlaa_jax.endpoint import EndpointError
from vlaa_jax.pipeline import batch_api
from vlaa_jax.pipeline.batch_api import BatchTransport
from vlaa_jax.pipeline.batch_files import BatchFiles
from vlaa_jax.pipeline.embedded import draw
from vlaa_jax.pipeline.ledger import Entry, Ledger
from vlaa_jax.pipeline.local_server import Answer, Call, LocalServer
from vlaa_jax.pipeline.request import Request
from vlaa_jax.pipeline.scripted_models import ScriptedModels
from vlaa_jax.settings.pipeline import ServedModel


class BatchProvider:
    """The batch API over scripted models; each batch is looked at once before it is completed."""

    def __init__(self, drawn, end="completed"):
        self.models, self.end = ScriptedModels(drawn), end
        self.files, self.batches, self.looked = {}, {}, set()
        self.broken = self.silent = False

    async def __call__(self, call):
        if call.method == "POST" and call.path.endswith("/files"):
            body = re.search(rb"application/jsonl\r\n\r\n(.*?)\r\n--", call.body, re.DOTALL)[1]
            return self._new(self.files, "file", body)
        if call.method == "POST" and call.path.endswith("/batches"):
            return self._new(self.batches, "batch", call.json()["input_file_id"])
        name = call.path.split("/")[3]
        if call.path.endswith("/content"):
            return Answer(await self._results(name))
        if self.silent or name not in self.looked:
            self.looked.add(name)
            return Answer({"id": name, "status": "in_progress"})
        output = {"output_file_id": self.batches[name]} if self.end == "completed" else {}
        return Answer({"id": name, "status": self.end, **output})

    def _new(self, where, kind, value):
        name = f"{kind}-{len(where)}"
        where[name] = value
        return Answer({"id": name})

    async def _results(self, file_id):
        lines = []
        for line in self.files[file_id].splitlines():
            asked = json.loads(line)
            call = Call("POST", asked["url"], {}, json.dumps(asked["body"]).encode())
            body = (await self.models(call)).value
            response = {"status_code": 200, "body": body}
            lines.append(json.dumps({"custom_id": asked["custom_id"], "response": response}))
        if self.broken:
            lines[0] = lines[0][:40]
        return "\n".join(lines).encode()


@pytest.fixture
def provider(monkeypatch):
    monkeypatch.setattr(batch_api.BatchTransport.__init__, "__defaults__", (0.05,))
    return BatchProvider(draw(40, 0))


def batched(url):
    return settings_for(url, transport="batch", batch_poll_s=0.02, batch_requests=16)


def test_batches_bring_what_calls_bring(provider, served, tmp_path):
    run(served, tmp_path / "live")
    with LocalServer(provider) as server:
        run(batched(server.url), tmp_path / "batch")
    assert outputs(tmp_path / "batch") == outputs(tmp_path / "live")
    assert max(len(file.splitlines()) for file in provider.files.values()) <= 16


def test_an_answer_that_a_batch_left_out_is_a_failure_and_asked_again(provider, tmp_path):
    provider.broken = True
    with LocalServer(provider) as server:
        first = run(batched(server.url), tmp_path)
        assert sum(first.tally.failed.values()) >= 3  # the first line of every file
        provider.broken = False
        again = run(batched(server.url), tmp_path)
    assert not again.tally.failed


def test_an_expired_batch_fails_its_requests(provider, tmp_path):
    provider.end = "expired"
    with LocalServer(provider) as server:
        settings = changed(batched(server.url), "run", max_failed=100)
        summary = run(settings, tmp_path)
    assert sum(summary.tally.failed.values()) == 27  # all but those that need no answer
    assert "expired" in (tmp_path / "failed.jsonl").read_text()


def test_a_batch_of_a_killed_run_is_collected_not_handed_in_again(provider, tmp_path):
    asked = Request("distil", "a", "Below are ... Drawing 0")
    other = Request("distil", "b", "Below are ... Drawing 2")

    async def first(url):
        provider.silent = True
        transport = BatchTransport(model_at(url), ledger, 0.01)
        waiting = [
            asyncio.create_task(transport.send(r, r.key(model_at(url)), tmp_path))
            for r in (asked, other)
        ]
        while not ledger.open_batches(url):
            await asyncio.sleep(0.01)
        for task in (*waiting, *transport._tasks):  # as if killed: nothing is closed
            task.cancel()

    async def second(url):
        provider.silent = False
        transport = BatchTransport(model_at(url), ledger, 0.01)
        reply = await transport.send(asked, key := asked.key(model_at(url)), tmp_path)
        await ledger.record(Entry(key, "distil", "a", "m", reply))
        late = await transport.send(other, other.key(model_at(url)), tmp_path)
        await ledger.record(Entry(other.key(model_at(url)), "distil", "b", "m", late))
        await transport.aclose()
        return reply.text

    ledger = Ledger(tmp_path / "ledger.sqlite")
    with LocalServer(provider) as server:
        asyncio.run(first(server.url))
        asyncio.run(second(server.url))
        assert len(provider.batches) == 1
        assert not ledger.open_batches(server.url)
    ledger.close()


def test_answers_that_nobody_asked_for_yet_stay_to_be_collected(provider, tmp_path):
    """Neither a run that ends early nor another model at the same place may close them."""
    asked = Request("distil", "a", "Below are ... Drawing 0")

    async def hand_in(url):
        transport = BatchTransport(model_at(url), ledger, 0.01)
        waits = asyncio.create_task(transport.send(asked, asked.key(model_at(url)), tmp_path))
        while not ledger.open_batches(url):
            await asyncio.sleep(0.01)
        for task in (waits, *transport._tasks):
            task.cancel()

    async def look(url, request, batches):
        transport = BatchTransport(model_at(url), ledger, 0.01)
        await transport.send(request, request.key(model_at(url)), tmp_path)
        while len(transport._over) < batches:
            await asyncio.sleep(0.01)
        await transport.aclose()

    ledger = Ledger(tmp_path / "ledger.sqlite")
    with LocalServer(provider) as server:
        asyncio.run(hand_in(server.url))
        asyncio.run(look(server.url, Request("distil", "b", "Below are ... Drawing 2"), 2))
        assert "batch-0" in [name for name, _ in ledger.open_batches(server.url)]
        asyncio.run(look(server.url, asked, 1))
        assert len(provider.batches) == 2  # it was not handed in again
    ledger.close()


@pytest.mark.parametrize(("status", "closed"), [(401, False), (404, True)])
def test_a_batch_is_closed_when_the_provider_knows_it_no_more_and_not_before(
    status, closed, tmp_path
):
    async def refuse(call):
        return Answer({"error": "no"}, status)

    async def ask(url, request):
        transport = BatchTransport(model_at(url), ledger, 0.01)
        key = request.key(model_at(url))
        ledger.add_batch("batch-7", url, [key])
        with pytest.raises(EndpointError, match=f"HTTP {status}"):
            await transport.send(request, key, tmp_path)
        await transport.aclose()

    ledger = Ledger(tmp_path / "ledger.sqlite")
    with LocalServer(refuse) as server:
        asyncio.run(ask(server.url, Request("distil", "a", "x")))
        assert (not ledger.open_batches(server.url)) is closed
    ledger.close()


def test_a_provider_that_is_away_for_a_while_is_waited_for(provider, tmp_path):
    asked = Request("distil", "a", "Below are ... Drawing 0")
    away = [503, 503, 503]

    async def sometimes(call):
        if call.method == "GET" and away:
            return Answer({}, away.pop())
        return await provider(call)

    async def ask(url):
        model = replace(model_at(url), retries=0)
        transport = BatchTransport(model, ledger, 0.01)
        reply = await transport.send(asked, asked.key(model), tmp_path)
        await transport.aclose()
        return reply

    ledger = Ledger(tmp_path / "ledger.sqlite")
    with LocalServer(sometimes) as server:
        assert asyncio.run(ask(server.url)).text
    assert not away
    ledger.close()


def test_a_batch_whose_confirmation_was_lost_is_not_made_twice(provider):
    lost = [502]

    async def loses(call):
        if call.method == "GET" and call.path.endswith("/batches?limit=100"):
            pairs = provider.batches.items()
            return Answer({"data": [{"id": b, "input_file_id": file} for b, file in pairs]})
        answer = await provider(call)
        lose = call.method == "POST" and call.path.endswith("/batches") and lost
        return Answer({}, lost.pop()) if lose else answer

    async def hand_in(url):
        files = BatchFiles(replace(model_at(url), backoff_s=0.01))
        try:
            return await files.hand_in([b"{}"], "chat/completions")
        finally:
            await files.aclose()

    with LocalServer(loses) as server:
        assert asyncio.run(hand_in(server.url)) == "batch-0"
    assert len(provider.batches) == 1 and not lost


def test_a_provider_without_a_batch_api_is_a_refusal_in_one_line(tmp_path):
    async def absent(call):
        return Answer({"error": "no such path, key sk-0123456789abcdef"}, 404)

    async def ask(url):
        ledger = Ledger(tmp_path / "ledger.sqlite")
        transport = BatchTransport(model_at(url), ledger, 0.01)
        request = Request("distil", "a", "b")
        try:
            await transport.send(request, request.key(model_at(url)), tmp_path)
        finally:
            await transport.aclose()
            ledger.close()

    with LocalServer(absent) as server, pytest.raises(EndpointError, match="refused: HTTP 404"):
        asyncio.run(ask(server.url))


def model_at(url):
    return ServedModel(url, "scripted-reasoner", transport="batch", batch_poll_s=0.02)


def test_the_key_is_sent_and_comes_back_in_no_message(tmp_path, monkeypatch):
    key = "sk-0123456789-secret-key"
    monkeypatch.setenv("SOME_KEY", key)
    seen = []

    async def refuse(call):
        seen.append(call.headers.get("authorization"))
        return Answer({"error": f"bad key {key}"}, 401)

    async def ask(url):
        files = BatchFiles(replace(model_at(url), key_env="SOME_KEY"))
        try:
            await files.hand_in([b"{}"], "chat/completions")
        finally:
            await files.aclose()

    with LocalServer(refuse) as server, pytest.raises(EndpointError, match="HTTP 401") as caught:
        asyncio.run(ask(server.url))
    assert seen == [f"Bearer {key}"] and key not in str(caught.value)


@pytest.mark.parametrize(
    "reply",
    [b"", b"[]", b"{}", b'{"id": 7}', b'{"id": "../../x"}', b"[" * 99_999, b"x" * (5 << 20)],
)
def test_what_is_no_batch_is_a_malformed_reply(reply):
    async def answer(call):
        return Answer(reply)

    async def ask(url):
        files = BatchFiles(replace(model_at(url), retries=0))
        try:
            await files.hand_in([b"{}"], "chat/completions")
        finally:
            await files.aclose()

    with LocalServer(answer) as server, pytest.raises(EndpointError, match="malformed"):
        asyncio.run(ask(server.url))


def test_nobody_waits_for_a_transport_that_broke(provider, tmp_path):
    def fail(*values):
        raise sqlite3.OperationalError("database or disk is full")

    async def ask(url):
        ledger = Ledger(tmp_path / "ledger.sqlite")
        ledger.add_batch = fail  # as a full disk does
        transport = BatchTransport(model_at(url), ledger, 0.01)
        request = Request("distil", "a", "Below are ... Drawing 0")
        try:
            for _ in range(2):
                with pytest.raises(EndpointError, match="the batch transport broke"):
                    await transport.send(request, request.key(model_at(url)), tmp_path)
        finally:
            await transport.aclose()
            ledger.close()

    with LocalServer(provider) as server:
        asyncio.run(ask(server.url))
