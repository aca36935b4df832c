"""A real HTTP server with the OpenAI chat interface that counts and answers as it is told."""

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], str | int]
"""The text of the reply to a request, or a status of HTTP to fail with."""


class StubServer:
    """Serves while the ``with`` block runs; ``seen`` counts requests by the key they are given."""

    def __init__(self, answer: Answer, key: Callable[[dict[str, Any]], Any] = str) -> None:
        self.seen: Counter[Any] = Counter()
        self.requests: list[dict[str, Any]] = []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    outer.seen[key(request)] += 1
                    outer.requests.append(request)
                said = answer(request)
                status, text = (said, "") if isinstance(said, int) else (200, said)
                choice = {"message": {"content": text}, "finish_reason": "stop"}
                usage = {"prompt_tokens": 1, "completion_tokens": len(text.split())}
                body = json.dumps({"choices": [choice], "usage": usage}).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):  # whoever asked may be gone
                    self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "StubServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
