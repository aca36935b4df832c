"""The whole way of a call: ledger, budget, pacing and real HTTP against servers that misbehave."""

import asyncio
import json

import pytest

from misbehaving_server import MisbehavingServer
from vlaa_jax.pipeline.client import CapReached, Client
from vlaa_jax.pipeline.contract import CallFailed
from vlaa_jax.pipeline.ledger import Ledger
from vlaa_jax.pipeline.request import Request
from vlaa_jax.schema import UserError
from vlaa_jax.settings.pipeline import PipelineRunSettings, ServedModel


def chat(request):
    text = request["messages"][-1]["content"]
    message = {"role": "assistant", "content": f"about {text}"}
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


def asked(*texts, **fields):
    return [Request("distil", f"sample-{text}", text, **fields) for text in texts]


def ask(server, ledger, requests, max_cost=0.0, **model):
    """Outcomes of requests asked at once: replies, or the exception."""
    chosen = {"backoff_s": 0.01, "timeout_s": 5.0, **model}
    served = ServedModel(server.url, "m", **chosen)
    capped = PipelineRunSettings(max_cost=max_cost)

    async def run():
        async with Client({"distil": served}, ledger.path.parent, ledger, run=capped) as c:
            return await asyncio.gather(*(c.ask(r) for r in requests), return_exceptions=True)

    return asyncio.run(run())


@pytest.mark.parametrize(
    "trouble", [500, 502, 503, 429, 408, "close", "reset", "half", "noise", ("retry-after", 0)]
)
def test_passing_troubles_end_in_one_recorded_answer(trouble, ledger):
    with MisbehavingServer(chat, [trouble, trouble]) as server:
        (reply,) = ask(server, ledger, asked("a"))
    assert reply.text == "about a"
    assert ledger.costs()["distil"].calls == 1


@pytest.mark.parametrize("trouble", ["html", ("say", b""), ("say", b"[]"), ("say", b"{}")])
def test_a_malformed_reply_is_tried_once_more(trouble, ledger):
    with MisbehavingServer(chat, [trouble]) as server:
        assert ask(server, ledger, asked("a"))[0].text == "about a"
    with MisbehavingServer(chat, [trouble] * 9) as server:
        (error,) = ask(server, ledger, asked("b"))
        assert isinstance(error, CallFailed) and error.kind == "malformed"
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": [{"message": {"content": "\\ud800"}}]}',  # a lone surrogate
        b'{"choices": [{"message": {"content": "\xff"}}]}',
        b'{"choices": [{"message": {"content": 7}}]}',
        b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": -5}}',
        b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": 1e999}}',
        b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": 1e300}}',
        b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": %d}}' % 10**18,
        b"[" * 100_000,
        b"9" * 10_000,
    ],
)
def test_no_broken_body_becomes_an_answer(body, ledger):
    with MisbehavingServer(chat, [("say", body)] * 9) as server:
        (error,) = ask(server, ledger, asked("a"))
    assert isinstance(error, CallFailed) and error.kind == "malformed"
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 \xff\r\ncontent-length: 2\r\n\r\n{}",  # its first line is no text
        b"HTTP/1.1 200 OK\r\na: b\x00c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"220 mail\r\n",
    ],
)
def test_what_is_no_http_is_a_connection_failure(head, ledger):
    def behave(handler, request):
        handler.connection.sendall(head)
        handler.close_connection = True

    with MisbehavingServer(chat, [behave] * 2) as server:
        (error,) = ask(server, ledger, asked("a"), retries=1)
    assert isinstance(error, CallFailed) and error.kind == "connection"
    assert "ConnectTimeout" not in str(error)


def test_the_servers_own_words_of_an_error_are_told_and_odd_reasons_are_recorded(ledger):
    spoken = b'{"error": {"message": "out of credit", "code": 402}}'
    with MisbehavingServer(chat, [("say", spoken)] * 2) as server:
        assert "out of credit" in str(ask(server, ledger, asked("a"))[0])
    odd = b'{"choices": [{"message": {"content": "a"}, "finish_reason": "\\ud800%s"}]}'
    with MisbehavingServer(chat, [("say", odd % (b"x" * 10_000))]) as server:
        assert len(ask(server, ledger, asked("b"))[0].finish_reason) == 64


@pytest.mark.parametrize("reason", ["insufficient_system_resource", "error", "abort"])
def test_a_reply_that_the_server_broke_off_is_no_answer(reason, ledger):
    choice = {"message": {"content": "half of"}, "finish_reason": reason}
    cut = json.dumps({"choices": [choice]}).encode()
    with MisbehavingServer(chat, [("say", cut)]) as server:
        assert ask(server, ledger, asked("a"))[0].text == "about a"
    with MisbehavingServer(chat, [("say", cut)] * 2) as server:
        (error,) = ask(server, ledger, asked("b"), retries=1)
    assert error.kind == "server" and reason in str(error)


def test_cookies_are_not_taken(ledger):
    def sets_a_cookie(handler, request):
        told = {"set-cookie": "a=1; path=/"}
        handler.send_raw(200, json.dumps(chat(request)).encode(), told)

    with MisbehavingServer(chat, [sets_a_cookie] * 3) as server:
        ask(server, ledger, asked(*"abc"), concurrency=1)
        sent = [{name.lower() for name in headers} for _, headers, _ in server.requests]
    assert len(sent) == 3 and not any("cookie" in names for names in sent)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_refusal_is_recorded_as_failed_and_asked_again_by_the_next_run(status, ledger):
    with MisbehavingServer(chat, [status]) as server:
        (error,) = ask(server, ledger, asked("a"))
        assert error.kind == "refused" and str(status) in str(error)
        assert len(server.requests) == 1
        assert [row["sample"] for row in ledger.failures()] == ["sample-a"]
        assert ask(server, ledger, asked("a"))[0].text == "about a"
    assert not list(ledger.failures())


@pytest.mark.parametrize("trouble", ["hang", "drip"])
def test_a_silent_and_a_dripping_server_run_into_the_deadline(trouble, ledger):
    with MisbehavingServer(chat, [trouble] * 3) as server:
        (error,) = ask(server, ledger, asked("a"), timeout_s=0.2, deadline_s=0.3)
    assert error.kind == "timeout"


def test_the_key_is_in_no_message_and_not_in_the_ledger(ledger, monkeypatch):
    key = "sk-0123456789-secret-key"
    monkeypatch.setenv("SOME_KEY", key)
    echo = json.dumps({"error": f"bad key {key}"}).encode()

    def refuse(handler, request):
        handler.send_raw(401, echo)

    with MisbehavingServer(chat, [refuse]) as server:
        (error,) = ask(server, ledger, asked("a"), key_env="SOME_KEY")
        assert server.requests[0][1]["authorization"] == f"Bearer {key}"
    assert key not in str(error)
    assert key not in ledger.path.read_bytes().decode("latin-1")
    assert key not in str(list(ledger.failures()))


def test_a_key_that_is_not_set_is_told_before_anything_is_asked(ledger):
    with (
        MisbehavingServer(chat) as server,
        pytest.raises(UserError, match=r"distil.model.key_env: \$NO_SUCH_KEY is not set"),
    ):
        ask(server, ledger, asked("a"), key_env="NO_SUCH_KEY")


def test_certificates_that_cannot_be_read_are_told(ledger, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    with MisbehavingServer(chat) as server, pytest.raises(UserError, match="SSL_CERT_FILE"):
        ask(server, ledger, asked("a"))


def test_equal_requests_in_flight_share_one_call(ledger):
    with MisbehavingServer(chat, ["slow"]) as server:
        replies = ask(server, ledger, asked("a", "a", "a", "b"))
        assert len(server.requests) == 2
    assert [reply.text for reply in replies] == ["about a"] * 3 + ["about b"]


def test_the_key_of_a_request_covers_all_that_changes_the_answer():
    model = ServedModel("http://a", "m")
    base = Request("distil", "id", "text")
    others = [
        (Request("distil", "id", "other"), model),
        (Request("distil", "id", "text", system="s"), model),
        (Request("distil", "id", "text", digest="d", image="i"), model),
        (Request("distil", "id", "text", salt=1), model),
        (base, ServedModel("http://a", "n")),
        (base, ServedModel("http://a", "m", tag="t")),
        (base, ServedModel("http://a", "m", temperature=0.5)),
        (base, ServedModel("http://a", "m", max_tokens=7)),
    ]
    keys = {request.key(served) for request, served in others} | {base.key(model)}
    assert len(keys) == len(others) + 1
    same = Request("verify", "other id", "text").key(ServedModel("http://b", "m", concurrency=3))
    assert same == base.key(model)


def test_the_cap_is_never_exceeded_and_is_used_up(ledger):
    # A call costs 10 * 1 + 5 * 1 = 15 millionths; admitted at 8 + 1 + 10 estimated ones at most.
    price = {"price_prompt": 1.0, "price_completion": 1.0, "max_tokens": 10}
    with MisbehavingServer(chat) as server:
        outcomes = ask(server, ledger, asked(*"abcdefghij"), max_cost=100e-6, **price)
    spent = ledger.costs()["distil"].cost
    assert spent == pytest.approx(90e-6)
    assert sum(isinstance(outcome, CapReached) for outcome in outcomes) == 4


def test_the_cap_counts_earlier_runs(ledger):
    price = {"price_prompt": 1.0, "price_completion": 1.0, "max_tokens": 10}
    with MisbehavingServer(chat) as server:
        ask(server, ledger, asked("a"), **price)
        (error,) = ask(server, ledger, asked("b"), max_cost=20e-6, **price)
        assert isinstance(error, CapReached)
        assert ask(server, ledger, asked("a"), max_cost=20e-6, **price)[0].text == "about a"


def test_nobody_listening_is_a_connection_failure(ledger):
    class Nobody:
        url = "http://127.0.0.1:9"

    (error,) = ask(Nobody, ledger, asked("a"), retries=1)
    assert error.kind == "connection"


def test_no_more_calls_are_in_flight_than_the_cap(ledger):
    with MisbehavingServer(chat, ["slow"] * 24) as server:
        ask(server, ledger, asked(*(str(i) for i in range(24))), concurrency=3)
        assert 1 < server.most_in_flight <= 3


def test_a_server_that_counts_nothing_is_not_free(ledger):
    def uncounted(request):
        return {k: v for k, v in chat(request).items() if k != "usage"}

    with MisbehavingServer(uncounted) as server:
        ask(server, ledger, asked("a" * 350), price_prompt=1e6, price_completion=1e6)
    cost = ledger.costs()["distil"]
    assert cost.prompt_tokens >= 100 and cost.completion_tokens >= 100
    assert cost.cost == cost.prompt_tokens + cost.completion_tokens
