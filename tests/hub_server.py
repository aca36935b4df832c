"""A local server that speaks the hub's file API."""

import contextlib
import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *unused):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path, server = self.path.split("?")[0], self.server
        if "/tree/" in path:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": COMMIT}
                for name, data in server.files.items()
            ]
            return self.reply(json.dumps(entries).encode(), body)
        if path.startswith((f"/api/datasets/{server.repo}", f"/api/models/{server.repo}")):
            files = [{"rfilename": name} for name in server.files]
            told = {"id": server.repo, "sha": COMMIT, "siblings": files}
            return self.reply(json.dumps(told).encode(), body)
        name = path.rpartition("/resolve/")[2].partition("/")[2]
        if name not in server.files:
            self.send_error(404)
            return None
        if body:
            server.asked.append(name)
        return self.reply(server.files[name], body)

    def reply(self, data, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", hashlib.sha256(data).hexdigest())
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextlib.contextmanager
def hub_of(repo):
    """A hub with one repository: `.files` may change, `.asked` lists what was downloaded."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.repo, server.files, server.asked = repo, {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def environment_of(hub, home):
    """The environment of a process that takes it for the hub."""
    endpoint = f"http://127.0.0.1:{hub.server_address[1]}"
    return {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
