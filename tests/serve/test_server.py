"""A server under load, among clients that leave, hostile requests, and signals."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import openai
import pytest

from serving import LIMIT, Running, ask, data_uri, picture, wait_for
from vlaa_jax.schema import UserError
from vlaa_jax.serve.app import _Events

ROOT = Path(__file__).parents[2]


def test_health_and_metrics(server):
    assert httpx.get(f"{server.root}/health").json() == {"status": "ok"}
    before = server.metric("vlaa_completion_tokens_total")
    assert server.post(ask(max_tokens=5, temperature=0)).status_code == 200
    after = server.metric("vlaa_completion_tokens_total")
    assert 0 < sum(after.values()) - sum(before.values()) <= 5
    assert server.metric('vlaa_requests_total{status="200"}').popitem()[1] >= 1
    assert server.metric("vlaa_programs_compiled").popitem()[1] == server.stream.compile_count


def test_requests_with_settings_of_their_own_compile_nothing_new_and_are_not_mixed_up(server):
    """The same requests one by one and all at once."""
    kinds = [
        {"temperature": 0},
        {"temperature": 1.3, "top_k": 7},
        {"temperature": 0.6, "top_p": 0.8, "max_tokens": 9},
        {"temperature": 1.0, "min_p": 0.05, "stop": ["e"]},
        {"temperature": 1.7, "n": 3, "max_tokens": 13},
        {"temperature": 0.9, "stop_token_ids": [300, 301], "logprobs": True, "top_logprobs": 4},
    ]
    asked = [ask(f"What is {i}?", seed=i, **kinds[i % len(kinds)]) for i in range(12)]

    def said(body):
        reply = server.post(body)
        assert reply.status_code == 200, reply.text
        found = reply.json()
        return found["choices"] if not body.get("logprobs") else texts(found), found["usage"]

    def texts(found):
        return [choice["message"]["content"] for choice in found["choices"]]

    alone = [said(body) for body in asked]
    before = server.stream.compile_count
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(said, asked))
    assert together == alone
    others = [
        dict(body, temperature=0.5 + i / 10, max_tokens=3 + i) for i, body in enumerate(asked)
    ]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(said, others))
    assert server.stream.compile_count == before


def test_short_texts_compile_nothing_after_the_start_whoever_comes_and_goes():
    settings = {"slots": 16, "max_requests": 32}
    with Running(**settings) as server:
        assert server.stream.widths == (4, 16)
        before, held = server.stream.compile_count, set()
        asked = [ask(f"What is {i}?", seed=i, max_tokens=4 + i % 7 * 7) for i in range(24)]

        def said(body):
            reply = server.post(body)
            held.add(server.stream._buffers.ids_PG.shape[0])
            return reply.status_code

        for clients in (1, 12, 1, 3, 12, 5):
            with ThreadPoolExecutor(clients) as pool:
                assert list(pool.map(said, asked[: 2 * clients])) == [200] * 2 * clients
        assert held == {4, 16}
        assert server.stream.compile_count == before


def test_prompt_and_answer_fit_the_model(server):
    """The limit of the model, not that of the server."""
    used = server.post(ask(max_tokens=1)).json()["usage"]["prompt_tokens"]
    text = replace(server.pretrained.config.text, max_positions=used + 7)
    pretrained = replace(server.pretrained, config=replace(server.pretrained.config, text=text))
    with Running((pretrained, *server.opened[1:])) as small:
        (model,) = httpx.get(f"{small.url}/models").json()["data"]
        assert model["max_model_len"] == used + 7
        for seed in range(3):
            bodies = ask(seed=seed), ask(seed=seed, max_tokens=7)
            left, told = (
                (reply["choices"], reply["usage"])
                for reply in (small.post(b).json() for b in bodies)
            )
            assert left == told
            assert left[1]["completion_tokens"] <= 7
        reply = small.post(ask(max_tokens=8))
        assert reply.status_code == 400
        assert reply.json()["error"] == {
            "message": f"{used} tokens of messages (0 of images) and 8 of max_tokens are over the "
            f"limit of {used + 7}",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }
        reply = small.post(ask(url=data_uri(picture())))
        assert "(6 of images) and 1 of max_tokens" in reply.text


class Slow:
    """Makes every burst take a while."""

    def __init__(self, server, monkeypatch, seconds=0.1):
        step, self.steps = server.stream.step, 0

        def slowly():
            time.sleep(seconds)
            self.steps += 1
            return step()

        monkeypatch.setattr(server.stream, "step", slowly)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_vanishes_frees_its_slots(server, monkeypatch, stream):
    slow = Slow(server, monkeypatch)
    body = json.dumps(ask(n=3, temperature=1.5, stop_token_ids=[], stream=stream)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as place:
        place.sendall(head.encode() + body)
        wait_for(lambda: server.stream.growing == 3)
    wait_for(lambda: server.stream.growing == 0)
    assert slow.steps < LIMIT // server.stream.burst, "it was decoded to its end"
    wait_for(lambda: server.metric("vlaa_requests_in_hand").popitem()[1] == 0)
    assert server.post(ask(max_tokens=2)).status_code == 200


def test_who_waits_and_vanishes_is_never_decoded(server, monkeypatch):
    Slow(server, monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(server.post, ask(n=4, temperature=1.5))
        wait_for(lambda: server.stream.growing)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/chat/completions", json=ask(), timeout=0.2)
        wait_for(lambda: server.served._worker.waiting == 0)
        assert long.result().status_code == 200
    assert server.stream.growing == 0


def test_who_comes_when_too_many_are_in_hand_is_told_429(server, monkeypatch):
    Slow(server, monkeypatch)
    with ThreadPoolExecutor(30) as pool:
        replies = list(pool.map(lambda i: server.post(ask(seed=i, temperature=1.5)), range(30)))
    codes = [reply.status_code for reply in replies]
    assert set(codes) == {200, 429}
    assert codes.count(200) >= server.settings.max_requests
    refused = next(reply for reply in replies if reply.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    with openai.OpenAI(base_url=server.url, api_key="none") as client:
        assert client.chat.completions.create(**ask(max_tokens=2)).choices


# -- hostile requests


def bomb(width, height):
    """A small PNG file of a large image of one colour."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * ((width // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("data:image/png;base64,!!!!", "not valid base64"),
        ("data:image/png;base64,AAAA", "not an image of a known format"),
        ("data:image/png;base64,", "empty file"),
        ("data:image/png,raw", "give the image as data:"),
        ("data:text/html;base64,AAAA", "give the image as data:"),
        (data_uri(bomb(30_000, 30_000)), "over the limit of"),
        (data_uri(bomb(1_200, 1_000)), "over the limit of"),
        (data_uri(picture((4000, 8))[:300]), "damaged|narrow"),
        (data_uri(picture((3000, 13))), "too narrow"),
        ("http://127.0.0.1:1/a.png", "not allowed here"),
        ("HTTPS://images.example.org/a.png", "not allowed here"),
        ("http://[::1", "not allowed here"),
        ("file:///etc/passwd", "not allowed here"),
        ("/etc/passwd", "give the image as data:"),
        ("ftp://a.org/a.png", "give the image as data:"),
        ("javascript:alert(1)", "give the image as data:"),
    ],
)
def test_images_that_are_none_or_not_allowed(server, url, said):
    reply = server.post(ask(url=url))
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert any(words in error["message"] for words in said.split("|")), error
    assert error["type"] == "invalid_request_error"


def test_bodies(server):
    assert server.post(b"{" + b" " * 2_100_000 + b"}", headers=JSON).status_code == 413
    assert server.post(b"nonsense", headers=JSON).status_code == 400
    form = server.post(json.dumps(ask()).encode(), headers={"content-type": "text/plain"})
    assert form.status_code == 415
    shown = {"type": "image_url", "image_url": {"url": data_uri(picture())}}
    many = ask()
    many["messages"][0]["content"] = [shown] * 9
    assert "over the limit of 8" in server.post(many).json()["error"]["message"]
    assert httpx.get(f"{server.url}/chat/completions").json()["error"]["message"]
    assert httpx.get(f"{server.root}/nowhere").status_code == 404
    assert server.metric("vlaa_requests_in_hand").popitem()[1] == 0


JSON = {"content-type": "application/json"}


def test_a_page_of_the_web_whose_name_points_here_is_refused(server):
    reply = server.post(ask(max_tokens=1), headers={"host": f"evil.example.org:{server.port}"})
    assert reply.status_code == 403
    for name in ("127.0.0.1.evil.org", "[::1].evil.org", ""):
        assert server.post(ask(max_tokens=1), headers={"host": name}).status_code == 403
    for name in (f"localhost:{server.port}", "LocalHost", "[::1]", "[::1]:80"):
        assert server.post(ask(max_tokens=1), headers={"host": name}).status_code == 200


def test_a_key(server, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-0123456789")
    with Running(server.opened, key_env="SOME_KEY") as locked:
        for key in ("sk-0123456780", "sk-0123456789x", "é"):
            headers = {"authorization": f"Bearer {key}".encode()}
            reply = httpx.get(f"{locked.url}/models", headers=headers)
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
            assert "sk-" not in reply.text
            assert locked.post(ask(), headers=headers).status_code == 401
        assert httpx.get(f"{locked.root}/metrics").status_code == 401
        assert httpx.get(f"{locked.root}/health").status_code == 200
        with openai.OpenAI(base_url=locked.url, api_key="sk-0123456789") as client:
            assert client.chat.completions.create(**ask(max_tokens=1)).choices


def test_others_can_only_ask_with_a_key(server):
    with pytest.raises(UserError, match=r"0\.0\.0\.0 can be reached by others; set a key in"):
        Running(server.opened, host="0.0.0.0")


# -- images from elsewhere


class _Images(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("location", "/a.png")
            self.end_headers()
            return
        body = b"\0" * 3_000_000 if self.path == "/large" else picture(seed=4)
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_images_from_a_host_or_folder_that_is_allowed(server, tmp_path):
    folder = tmp_path / "images"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "a b.png").write_bytes(picture(seed=4))
    (tmp_path / "secret.png").write_bytes(picture())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Images) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{web.server_address[1]}"
        allowed = {"image_folder": str(folder), "image_domains": (host,)}
        with Running(server.opened, **allowed) as reading:

            def said(url):
                reply = reading.post(ask(url=url, temperature=0, max_tokens=6))
                found = reply.json()
                return found["error"]["message"] if reply.is_error else found["choices"]

            want = said(data_uri(picture(seed=4)))
            assert isinstance(want, list)
            assert said(f"http://{host}/a.png") == want
            assert said(f"file://{folder}/in/a%20b.png") == want
            assert "HTTP 404" in said(f"http://{host}/missing")
            assert "HTTP 302" in said(f"http://{host}/moved")
            assert "larger than" in said(f"http://{host}/large")
            assert "not allowed here" in said(f"http://user@{host}/a.png")
            assert "not allowed here" in said(f"http://{host}.evil.org/a.png")
            for path in ("../secret.png", "in/../../secret.png", "%2e%2e/secret.png"):
                assert "outside the image root" in said(f"file://{folder}/{path}")
            assert "leaves the image root" in said(f"file://{folder}/link.png")
            assert "not in the server's folder" in said(f"file://{tmp_path}/secret.png")
            assert "does not exist" in said(f"file://{folder}/none.png")
            assert "not a regular file" in said(f"file://{folder}/in")
            assert "null character" in said(f"file://{folder}/a%00b")
        web.shutdown()


# -- whole processes


def environment():
    flags = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
    return {**os.environ, **flags, "PYTHONPATH": str(ROOT), "VLAA_API_KEY": ""}


def test_a_process_that_is_told_to_end_finishes_its_answers(tmp_path):
    command = [sys.executable, "-m", "vlaa_jax.serve", "embedded", "--port=0", "--slots=2"]
    command += ["--max_new_tokens=48", "--max_prompt_tokens=128", "--model.unroll=0", "--burst=2"]
    command += [f"--compilation_cache={tmp_path}"]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("embedded  http://127.0.0.1:"), process.stderr.read()
        url = line.split()[1]
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            with client.chat.completions.create(
                **ask(temperature=1.5, seed=1, stream=True, max_tokens=LIMIT)
            ) as stream:
                chunks = iter(stream)
                while not next(chunks).choices[0].delta.content:
                    pass
                process.send_signal(signal.SIGTERM)
                assert list(chunks)[-1].choices[0].finish_reason
            assert process.wait(60) == 0
            with pytest.raises(openai.APIConnectionError):
                client.models.list()
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nowhere/at/all/x"], "does not exist"),
        (["embedded", "--slots=0"], "slots: 0 is too small"),
        (["embedded", "--host=0.0.0.0"], "can be reached by others"),
        (["embedded", "--port=TAKEN"], "cannot be listened on"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(server, argv, said):
    argv = [word.replace("TAKEN", str(server.port)) for word in argv]
    command = [sys.executable, "-m", "vlaa_jax.serve", "--port=0", *argv]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_chat_prints_one_answer(server, tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes(picture())
    command = [sys.executable, "-m", "vlaa_jax.chat", "embedded", "How many squares are there?"]
    command += ["--image", str(image), "--max_new_tokens=20", "--dtype=float32"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    fields = {"temperature": 0, "max_tokens": 20}
    reply = server.post(ask(url=data_uri(image.read_bytes()), **fields)).json()
    assert done.stdout == reply["choices"][0]["message"]["content"] + "\n"


def test_answers_that_are_unfinished_when_patience_is_over_are_refused(server, monkeypatch):
    Slow(server, monkeypatch)
    with Running(server.opened) as ending, ThreadPoolExecutor(6) as pool:
        bodies = [ask(n=2, temperature=1.5, stream=i % 2 == 0) for i in range(6)]
        replies = [pool.submit(ending.post, body) for body in bodies]
        wait_for(lambda: ending.stream.growing == 4 and ending.served._worker.waiting == 4)
        ending.served.leave()
        for reply in [reply.result() for reply in replies]:
            assert "the server is ending" in reply.text
            streamed = reply.headers["content-type"].startswith("text/event-stream")
            assert reply.status_code == (200 if streamed else 503)
        assert ending.stream.growing == 0
        assert ending.post(ask()).status_code == 503


@pytest.mark.parametrize("where", ["step", "seat"])
def test_decoding_that_fails_ends_the_server_and_leaves_nobody_waiting(server, monkeypatch, where):
    with Running(server.opened) as broken:

        def fail(*_):
            raise RuntimeError("out of memory")

        monkeypatch.setattr(broken.stream, where, fail)
        reply = broken.post(ask())
        assert (reply.status_code, reply.json()["error"]["type"]) == (500, "server_error")
        wait_for(lambda: broken.died)
        assert httpx.get(f"{broken.root}/health").status_code == 503
        assert broken.post(ask()).status_code == 503
        for job in list(broken.stream._ticket_P):  # of the seat that failed
            broken.stream.drop(int(job))


def test_prompts_that_cannot_be_prefilled_together_are_prefilled_alone(server, monkeypatch):
    stream, all_wait, tried = server.stream, threading.Event(), []
    places, prefill = stream.places, stream.prefill

    def scarce(prompts):
        tried.append(len(prompts.ids_PT))
        if len(prompts.ids_PT) > 1:
            raise RuntimeError("out of memory")
        return prefill(prompts)

    monkeypatch.setattr(stream, "places", lambda *a: places(*a) if all_wait.is_set() else [])
    monkeypatch.setattr(stream, "prefill", scarce)
    with ThreadPoolExecutor(4) as pool:
        replies = [pool.submit(server.post, ask(max_tokens=2)) for _ in range(4)]
        wait_for(lambda: server.served._worker.waiting == 4)
        all_wait.set()
        assert [reply.result().status_code for reply in replies] == [200] * 4
    assert tried == [4, 1, 1, 1, 1]


def test_a_client_that_does_not_read_its_stream_is_left():
    """The socket of such a client is full: sending to it does not return."""
    told = []

    async def body():
        while True:
            yield b"data: more\n\n"

    async def never(*_):
        await asyncio.sleep(3600)

    events = _Events(body(), told.append, {}, patience_s=0.05)
    scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
    asyncio.run(asyncio.wait_for(events(scope, never, never), 10))
    assert told == [499]
