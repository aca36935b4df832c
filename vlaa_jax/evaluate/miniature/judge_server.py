"""A judge that goes by a script, behind a real HTTP server with the OpenAI chat interface.

It reads what the templates of ``prompts/`` put in front of it and copies out the last letter,
number or word that fits, so the same prompt always gets the same reply.
"""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MAX_BODY = 8 * 2**20
_LETTERS = re.compile(r"\b[A-D]\b")
_WORDS = re.compile(r"-?\d+(?:[./]\d+)?|\b[A-Z]\b")


def scripted_reply(prompt: str) -> str:
    """What the script says to a prompt of ours."""
    if prompt.startswith("Two answers to one"):
        gold, answer = _after(prompt, "Reference:"), _after(prompt, "Model:")
        return "1" if gold == answer else "0"
    if prompt.startswith("You turn a long answer"):
        return _last(_after(prompt, "Long answer:", "\n\nWrite"), "none")
    if prompt.startswith("Below is what a model"):
        return _last(_after(prompt, "Model:", "\nAnswer:"), "null")
    said = _after(prompt, "Reply:", "\nFinal answer:", "\nLetter")
    if prompt.startswith(("Which option", "A question has")):
        letters = _LETTERS.findall(said)
        return letters[-1] if letters else "Z"
    return _last(said, "None")


def _after(prompt: str, start: str, *ends: str) -> str:
    """What follows the last start, up to the first of the ends."""
    text = prompt[prompt.rindex(start) + len(start) :]
    for end in ends or ("\n",):
        text = text.split(end)[0]
    return text.strip()


def _last(text: str, otherwise: str) -> str:
    found = _WORDS.findall(text)
    return found[-1] if found else otherwise


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        if not 0 < length <= MAX_BODY:
            self.send_error(413)
            return
        request: dict[str, Any] = json.loads(self.rfile.read(length))
        reply = scripted_reply(str(request["messages"][-1]["content"]))
        choice = {"message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
        body = json.dumps({"choices": [choice], "usage": {}}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class JudgeServer:
    """The server, on a free port of this machine while the ``with`` block runs."""

    def __enter__(self) -> str:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
