"""A real HTTP server on localhost that misbehaves on purpose, by script."""

import json
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class MisbehavingServer:
    """Answers requests by a script of behaviours, then properly for ever.

    ``reply`` makes the proper JSON reply from the request; ``script`` is a list of behaviours, one
    for each request in order of arrival: a name or status for ``_Handler.behave``, or a callable
    that takes the handler.
    """

    def __init__(self, reply, script=()):
        self.reply = reply
        self.script = list(script)
        self.requests = []
        self.answered = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.lock = threading.Lock()
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.owner = self
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        serve = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        serve.start()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()

    def times_asked(self):
        """How often each answer text was sent in a score request."""
        return _count(request for _, _, request in self.requests)

    def times_answered(self):
        """How often each answer text was sent in a request that got its proper, whole reply."""
        return _count(self.answered)


def _count(requests):
    return Counter(
        (item["question"], item["answer"])
        for request in requests
        for item in request.get("items", [])
    )


class _Server(ThreadingHTTPServer):
    """Knows the ``MisbehavingServer`` that it serves as ``owner``."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        owner = self.server.owner
        body = self.rfile.read(int(self.headers["content-length"]))
        with owner.lock:
            owner.requests.append((self.path, dict(self.headers), json.loads(body)))
            behaviour = owner.script.pop(0) if owner.script else "fine"
            owner.in_flight += 1
            owner.most_in_flight = max(owner.most_in_flight, owner.in_flight)
        try:
            self.behave(behaviour, json.loads(body))
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with owner.lock:
                owner.in_flight -= 1

    def behave(self, behaviour, request):
        if callable(behaviour):
            behaviour(self, request)
        elif isinstance(behaviour, int):
            self.send(behaviour, {"error": "scripted"})
        elif isinstance(behaviour, tuple):
            name, argument = behaviour
            _WITH_ARGUMENT[name](self, argument)
        else:
            _NAMED[behaviour](self, request)

    # -- behaviours by name

    def fine(self, request):
        self.server.owner.answered.append(request)  # before the asker can look
        self.send(200, self.server.owner.reply(request))

    def slow(self, request):
        time.sleep(0.15)
        self.fine(request)

    def hang(self, request):
        time.sleep(3.0)

    def drip(self, request):
        self.send_response(200)
        self.send_header("content-length", "100000")
        self.end_headers()
        for _ in range(60):
            self.wfile.write(b" ")
            time.sleep(0.05)

    def close(self, request):
        self.close_connection = True

    def reset(self, request):
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.close_connection = True

    def half(self, request):
        data = json.dumps(self.server.owner.reply(request)).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.close_connection = True

    def html(self, request):
        self.send_raw(200, b"<html>upstream is down</html>")

    def noise(self, request):
        self.connection.sendall(b"\x00\x01 this is not HTTP\r\n\r\n")
        self.close_connection = True

    def retry_after(self, seconds):
        self.send(429, {}, {"retry-after": str(seconds)})

    def say(self, data):
        self.send_raw(200, data)

    # -- replies

    def send(self, status, reply, headers=()):
        self.send_raw(status, json.dumps(reply).encode(), headers)

    def send_raw(self, status, data, headers=()):
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


_NAMED = {
    "fine": _Handler.fine,
    "slow": _Handler.slow,
    "hang": _Handler.hang,
    "drip": _Handler.drip,
    "close": _Handler.close,
    "reset": _Handler.reset,
    "half": _Handler.half,
    "html": _Handler.html,
    "noise": _Handler.noise,
}
_WITH_ARGUMENT = {"retry-after": _Handler.retry_after, "say": _Handler.say}
