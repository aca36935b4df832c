import asyncio
import base64
import gzip
import json
import time
import traceback
import tracemalloc
import urllib.parse

import pytest

from misbehaving_server import MisbehavingServer
from vlaa_jax.endpoint import Endpoint, EndpointError, EndpointSettings, image_part
from vlaa_jax.loop_thread import LoopThread
from vlaa_jax.schema import UserError


def echo(request):
    return {"said": request["say"]}


def ask(server, *says, read=lambda reply: reply["said"], **settings):
    """Outcomes of several calls at once: values, or the EndpointError."""
    chosen = {"timeout_s": 5.0, "backoff_s": 0.01, **settings}

    async def run():
        async with Endpoint(EndpointSettings(server.url, **chosen)) as endpoint:
            calls = (endpoint.post("echo", {"say": say}, read) for say in says)
            return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(run())


@pytest.mark.parametrize(
    "trouble", [500, 502, 503, 429, 408, "close", "reset", "half", "noise", ("retry-after", 0)]
)
def test_passing_troubles_are_tried_again(trouble):
    with MisbehavingServer(echo, [trouble, trouble]) as server:
        assert ask(server, "a") == ["a"]
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [(500, "server"), (429, "overload"), ("close", "connection"), ("reset", "connection")],
)
def test_lasting_troubles_end_after_the_set_retries(trouble, kind):
    with MisbehavingServer(echo, [trouble] * 50) as server:
        (error,) = ask(server, "a", retries=2)
        assert isinstance(error, EndpointError)
        assert error.kind == kind
        assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_refusal_is_not_repeated(status):
    with MisbehavingServer(echo, [status] * 5) as server:
        (error,) = ask(server, "a")
        assert error.kind == "refused"
        assert str(status) in str(error)
        assert len(server.requests) == 1


@pytest.mark.parametrize("trouble", ["html", ("say", b""), ("say", b"[]"), ("say", b'{"a": 1}')])
def test_a_malformed_reply_is_tried_once_more(trouble):
    with MisbehavingServer(echo, [trouble] * 5) as server:
        (error,) = ask(server, "a", retries=4)
        assert error.kind == "malformed"
        assert len(server.requests) == 2


@pytest.mark.parametrize("trouble", ["hang", "drip"])
def test_the_deadline_covers_a_silent_and_a_dripping_server(trouble):
    with MisbehavingServer(echo, [trouble] * 5) as server:
        start = time.monotonic()
        (error,) = ask(server, "a", timeout_s=0.4)
        assert error.kind == "timeout"
        assert time.monotonic() - start < 2.5  # the server would take 3 s for each


def test_the_deadline_covers_retries_and_pauses():
    with MisbehavingServer(echo, [500] * 100) as server:
        start = time.monotonic()
        (error,) = ask(server, "a", timeout_s=0.5, retries=100, backoff_s=0.05)
        assert error.kind == "timeout"
        assert time.monotonic() - start < 2.5


def test_retry_after_is_respected():
    with MisbehavingServer(echo, [("retry-after", 0.4)]) as server:
        start = time.monotonic()
        assert ask(server, "a") == ["a"]
        assert time.monotonic() - start >= 0.4


def test_no_more_calls_are_in_flight_than_allowed():
    with MisbehavingServer(echo, ["slow"] * 24) as server:
        says = [str(i) for i in range(24)]
        assert ask(server, *says, concurrency=3) == says
        assert 1 < server.most_in_flight <= 3


def test_the_deadline_starts_with_the_turn_not_with_the_queue():
    says = [str(i) for i in range(12)]  # 12 calls of 0.15 s one after another, 0.9 s for each
    with MisbehavingServer(echo, ["slow"] * 12) as server:
        assert ask(server, *says, concurrency=1, timeout_s=0.9) == says


def test_one_failure_touches_no_other_call():
    script = ["slow", 400, "slow", 500, "close", "slow"]
    with MisbehavingServer(echo, script) as server:
        outcomes = ask(server, *"abcdefgh")
        failed = [o for o in outcomes if isinstance(o, EndpointError)]
        assert [o.kind for o in failed] == ["refused"]
        assert all(
            o == say for o, say in zip(outcomes, "abcdefgh", strict=True) if isinstance(o, str)
        )


def test_a_reply_past_the_limit_is_refused():
    with MisbehavingServer(echo, [("say", b'"' + b"x" * 5000 + b'"')] * 3) as server:
        (error,) = ask(server, "a", max_reply_bytes=1000)
        assert error.kind == "malformed"
        assert "larger than 1000 bytes" in str(error)


def test_nobody_listening_is_a_connection_error():
    with MisbehavingServer(echo) as server:
        pass
    (error,) = ask(server, "a", retries=1)
    assert error.kind == "connection"
    assert "no connection to http://" in str(error)


def test_a_retry_carries_the_same_idempotency_key_and_other_calls_another():
    with MisbehavingServer(echo, [500]) as server:
        ask(server, "a")
        ask(server, "b")
        keys = [headers["idempotency-key"] for _, headers, _ in server.requests]
        assert keys[0] == keys[1] != keys[2]


def test_the_token_comes_from_the_environment_and_is_never_shown(monkeypatch):
    monkeypatch.setenv("A_TEST_KEY", "sesame-open")
    with MisbehavingServer(echo, [401]) as server:
        (error,) = ask(server, "a", key_env="A_TEST_KEY")
        assert server.requests[0][1]["authorization"] == "Bearer sesame-open"
        settings = EndpointSettings(server.url, key_env="A_TEST_KEY")
        assert "sesame" not in f"{error} {error!r} {settings}"
        ask(server, "a", key_env="AN_UNSET_KEY")
        assert "authorization" not in server.requests[1][1]


KEY = "sk-SECRET+123/x"


def echoes():
    """Behaviours of a server that sends the key back, each in another place or spelling."""
    sent = {"authorization": f"Bearer {KEY}"}
    texts = {
        "plain": f"invalid key: Bearer {KEY}".encode(),
        "json": json.dumps({"error": {"message": str(sent)}}).encode(),
        "escaped": json.dumps({"error": KEY}).replace("-", "\\u002d").encode(),
        "spread": " ".join(KEY).encode(),
        "percent": urllib.parse.quote(KEY, safe="").encode(),
        "base64": base64.b64encode(f"user:{KEY}".encode()),
        "past the end of the message": b"x" * 150 + KEY.encode(),
        "past what is read": b" " * 65530 + KEY.encode() * 9,
    }
    return {name: lambda h, r, text=text: h.send_raw(401, text) for name, text in texts.items()}


def leaks(text):
    return any(KEY[i : i + 6] in text for i in range(len(KEY) - 5))


@pytest.mark.parametrize("name", echoes())
def test_a_server_that_echoes_the_key_does_not_make_us_show_it(monkeypatch, caplog, name):
    monkeypatch.setenv("A_TEST_KEY", KEY)
    caplog.set_level("DEBUG")
    with MisbehavingServer(echo, [echoes()[name]]) as server:
        (error,) = ask(server, "a", key_env="A_TEST_KEY")
        assert server.requests[0][1]["authorization"] == f"Bearer {KEY}"
    assert error.kind == "refused" and f"HTTP 401 from {server.url}/echo" in str(error)
    seen: list[BaseException | None] = [error]
    while seen[-1] is not None:
        assert not leaks("".join(traceback.format_exception(seen[-1])))
        seen.append(seen[-1].__cause__ or seen[-1].__context__)
    assert not leaks(caplog.text)
    assert base64.b64encode(KEY.encode()).decode()[:12] not in str(error)


@pytest.mark.parametrize(
    "behave",
    [
        lambda h, r: h.send(200, {"said": f"Bearer {KEY}", KEY: [KEY]}),
        lambda h, r: h.send(200, {"unlike": f"Bearer {KEY}"}),
        lambda h, r: h.send_raw(200, f'"Bearer {KEY}'.encode()),
        lambda h, r: h.connection.sendall(f"Bearer {KEY}\r\n\r\n".encode()),
        lambda h, r: h.send(200, {}, {"content-encoding": KEY}),
        lambda h, r: h.send(401, {}, {"x-echo": KEY}),
        lambda h, r: h.connection.sendall(
            f"HTTP/1.1 403 {KEY}\r\ncontent-length: 0\r\n\r\n".encode()
        ),
    ],
)
def test_no_part_of_a_reply_carries_the_key_past_the_client(monkeypatch, caplog, behave):
    monkeypatch.setenv("A_TEST_KEY", KEY)
    caplog.set_level("DEBUG")

    def read(reply):
        return json.dumps(reply) if "said" in reply else reply["no " + json.dumps(reply)]

    with MisbehavingServer(echo, [behave] * 3) as server:
        (outcome,) = ask(server, "a", read=read, key_env="A_TEST_KEY", retries=0)
    assert not leaks(f"{outcome} {outcome!r} {caplog.text}")


def test_control_characters_of_a_server_are_shown_as_escapes():
    said = "\x1b[2J\x07\u202edesrever\x9b\n\tnext é".encode()
    with MisbehavingServer(echo, [lambda h, r: h.send_raw(400, said)]) as server:
        (error,) = ask(server, "a")
    assert str(error).endswith(r": \x1b[2J\x07\u202edesrever\x9b next é")
    assert str(error).isprintable()


def bomb(size, layers):
    data = b'"' + b" " * size + b'"'
    for _ in range(layers):
        data = gzip.compress(data, 9)
    return data


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "br", "zstd", "deflate", "x-unknown"])
@pytest.mark.parametrize("status", [200, 500, 401])
def test_an_encoded_reply_is_never_unfolded(encoding, status):
    data = bomb(20_000_000, encoding.count("gzip"))

    def behave(handler, request):
        handler.send_raw(status, data, {"content-encoding": encoding})

    with MisbehavingServer(echo, [behave] * 2) as server:
        tracemalloc.start()
        (error,) = ask(server, "a", retries=1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert server.requests[0][1]["accept-encoding"] == "identity"
    assert isinstance(error, EndpointError)
    assert error.kind == {200: "malformed", 500: "server", 401: "refused"}[status]
    assert status != 200 or f"encoded as {encoding}" in str(error)
    assert peak < len(data) + 10_000_000


@pytest.mark.parametrize(
    "url", ["http://a..b/v1", f"http://{'a' * 70}.x/v1", "http://256.1.1.1/v1", "http://xn--a.x/v1"]
)
def test_an_address_that_cannot_be_looked_up_is_refused_at_once(url):
    with pytest.raises(UserError, match="the url is none"):
        EndpointSettings(url)


@pytest.mark.parametrize("url", ["http://[::1]:80/v1", "http://a_b.c-d.:1/v1", "http://1.2.3.4/v1"])
def test_other_addresses_are_taken(url):
    assert EndpointSettings(url).url == url


@pytest.mark.parametrize("proxy", ["socks5://u:pass@h:1", "ftp://u:pass@h:1", "http://u:pass@[::"])
def test_a_proxy_that_cannot_be_used_is_told_in_one_line_without_its_password(proxy, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(UserError, match="proxy") as caught:
        Endpoint(EndpointSettings("http://h/v1"))
    assert "pass@" not in str(caught.value)


def test_identity_may_be_named():
    with MisbehavingServer(
        echo, [lambda h, r: h.send(200, echo(r), {"content-encoding": "identity"})]
    ) as server:
        assert ask(server, "a") == ["a"]


def endless(status):
    def behave(handler, request):
        handler.send_response(status)
        handler.end_headers()  # no length: the body goes on until somebody hangs up
        handler.close_connection = True
        for _ in range(20_000):
            handler.wfile.write(b" " * 65536)

    return behave


@pytest.mark.parametrize(("status", "kind"), [(200, "malformed"), (401, "refused")])
def test_an_endless_reply_is_cut_at_the_limit(status, kind):
    with MisbehavingServer(echo, [endless(status)] * 2) as server:
        (error,) = ask(server, "a", retries=0)
    assert error.kind == kind


def test_the_deadline_holds_while_a_reply_is_read():
    def drip(handler, request):
        handler.send_response(200)
        handler.send_header("content-length", "3000000")
        handler.end_headers()
        for _ in range(60):
            handler.wfile.write(b" " * 50_000)
            time.sleep(0.05)

    with MisbehavingServer(echo, [drip]) as server:
        start = time.monotonic()
        (error,) = ask(server, "a", timeout_s=0.4)
        assert error.kind == "timeout" and time.monotonic() - start < 2.0


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 500 + "1" + "}" * 500, "[NaN]", "[1e999]", '{"said": %s}' % (10**40)],
)
def test_a_reply_of_absurd_json_is_malformed(text):
    with MisbehavingServer(echo, [("say", text.encode())] * 2) as server:
        (error,) = ask(server, "a")
    assert error.kind == "malformed" and len(str(error)) < 200


@pytest.mark.parametrize(
    ("url", "fields"),
    [
        ("localhost:8000", {}),
        ("ftp://host/x", {}),
        ("ftp://user:secret@host/x", {}),
        ("secret@host", {}),
        ("http://", {}),
        ("http://[secret", {}),
        ("http://host:secret/", {}),
        ("http://host/\nsecret", {}),
        ("http://user:secret@host/v1", {}),
        ("http://secret@host/v1", {}),
        ("http://@host/v1", {}),
        ("http://host/v1?key=secret", {}),
        ("http://host/v1#secret", {}),
        ("http://host", {"key_env": "sk-secret"}),
        ("http://host", {"key_env": "$SECRET"}),
        ("http://host", {"concurrency": 0}),
        ("http://host", {"timeout_s": 0}),
        ("http://host", {"timeout_s": float("nan")}),
        ("http://host", {"timeout_s": float("inf")}),
        ("http://host", {"retries": -1}),
        ("http://host", {"backoff_s": -1}),
        ("http://host", {"max_reply_bytes": 0}),
    ],
)
def test_senseless_settings_are_refused_without_repeating_secrets(url, fields):
    with pytest.raises(UserError) as caught:
        EndpointSettings(url, **fields)
    assert "secret" not in str(caught.value).lower()


@pytest.mark.parametrize("token", ["secret\nx: y", "sécret", "secret key", "secret\x00"])
def test_a_key_that_no_header_can_hold_is_refused_by_its_variable(monkeypatch, token):
    if "\0" in token:
        monkeypatch.setattr("os.environ", {"A_TEST_KEY": token})
    else:
        monkeypatch.setenv("A_TEST_KEY", token)
    with MisbehavingServer(echo) as server, pytest.raises(UserError) as caught:
        ask(server, "a", key_env="A_TEST_KEY")
    assert "A_TEST_KEY" in str(caught.value) and "cret" not in str(caught.value)


def test_a_key_in_the_path_of_the_address_is_refused(monkeypatch):
    monkeypatch.setenv("A_TEST_KEY", KEY)

    async def make():
        Endpoint(EndpointSettings(f"http://host/{KEY}/v1", key_env="A_TEST_KEY"))

    with pytest.raises(UserError, match=r"key of \$A_TEST_KEY; take it out") as caught:
        asyncio.run(make())
    assert not leaks(str(caught.value))


def test_blanks_around_the_key_are_not_part_of_it(monkeypatch):
    monkeypatch.setenv("A_TEST_KEY", f" {KEY}\n")
    with MisbehavingServer(echo) as server:
        assert ask(server, "a", key_env="A_TEST_KEY") == ["a"]
        assert server.requests[0][1]["authorization"] == f"Bearer {KEY}"


def test_chat_reads_text_reason_and_usage():
    def reply(request):
        return {
            "choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 2},
        }

    async def run(server):
        async with Endpoint(EndpointSettings(server.url + "/v1", model="m")) as endpoint:
            return await endpoint.chat([{"role": "user", "content": "hi"}], temperature=0)

    with MisbehavingServer(reply) as server:
        said = asyncio.run(run(server))
        path, _, body = server.requests[0]
    assert (said.text, said.finish_reason) == ("hello", "stop")
    assert (said.prompt_tokens, said.completion_tokens) == (5, 2)
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("m", 0)


@pytest.mark.parametrize(
    "reply", [{}, {"choices": []}, {"choices": [{"message": {"content": None}}]}, [], None]
)
def test_a_chat_reply_without_text_is_malformed(reply):
    async def run(server):
        async with Endpoint(EndpointSettings(server.url, backoff_s=0.01)) as endpoint:
            await endpoint.chat([])

    with MisbehavingServer(lambda request: reply) as server, pytest.raises(EndpointError) as error:
        asyncio.run(run(server))
    assert error.value.kind == "malformed"


def test_images_become_data_urls(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG....")
    assert image_part(path)["image_url"]["url"].startswith("data:image/png;base64,")
    (tmp_path / "b.txt").write_text("hello")
    with pytest.raises(UserError, match=r"b\.txt: not a JPEG"):
        image_part(tmp_path / "b.txt")
    with pytest.raises(UserError, match="missing"):
        image_part(tmp_path / "missing.png")


def test_a_loop_thread_runs_work_and_ends():
    thread = LoopThread("test")

    async def double(x):
        await asyncio.sleep(0)
        return 2 * x

    assert thread.run(double(4)) == 8
    forever = thread.submit(asyncio.sleep(60))
    thread.close()
    assert forever.cancelled()
    thread.close()
