"""Shows runs that are going on, to this machine alone."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from vlaa_jax.report.record import HELDOUT, INDEX, ROLLOUTS, RunRecord
from vlaa_jax.schema import UserError

HOST = "127.0.0.1"
_TIMEOUT_S = 30
_WATCHED = ("metrics.jsonl", "heldout.json", f"{ROLLOUTS}/{INDEX}", f"{HELDOUT}/{INDEX}")


def state(paths: Sequence[Path]) -> str:
    """Changes whenever a run has written something that the page shows."""
    stats = [_stat(path / name) for path in paths for name in _WATCHED]
    return json.dumps(stats)


def _stat(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
        return found.st_mtime_ns, found.st_size
    except OSError:
        return 0, 0


class _Page:
    """The page as it is now; made when it is asked for and something has changed."""

    def __init__(self, records: Sequence[RunRecord], render: Callable[[], bytes]) -> None:
        self._paths, self._render = [record.path for record in records], render
        self._lock, self._state, self._bytes = Lock(), "", b""

    def state(self) -> str:
        return state(self._paths)

    def bytes(self) -> bytes:
        with self._lock:
            now = self.state()
            if now != self._state:
                self._bytes, self._state = self._render(), now
            return self._bytes


def make_server(
    records: Sequence[RunRecord], render: Callable[[], bytes], port: int = 0
) -> ThreadingHTTPServer:
    """A server of ``/``, the page, and ``/state``, on loopback.

    Other names of this machine are refused: a page elsewhere on the web may have its own name
    point here.

    Args:
        records: the runs.
        render: makes the page.
        port: 0 takes any that is free.

    Raises:
        UserError: the port is in use.
    """
    page = _Page(records, render)

    class Handler(BaseHTTPRequestHandler):
        timeout = _TIMEOUT_S

        def do_GET(self) -> None:
            port = server.server_address[1]
            if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
                self.send_error(403, "only by the name of this machine's loopback")
            elif self.path == "/":
                self._answer("text/html; charset=utf-8", page.bytes)
            elif self.path == "/state":
                self._answer("application/json", lambda: page.state().encode())
            else:
                self.send_error(404)

        def _answer(self, kind: str, make: Callable[[], bytes]) -> None:
            try:
                body, status = make(), 200
            except UserError as error:
                kind, body, status = "text/plain; charset=utf-8", str(error).encode(), 503
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            with suppress(ConnectionError):  # whoever asked may have left
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing of single requests."""

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise UserError(f"--port={port}: cannot be listened on ({error.strerror})") from error
    return server
