"""A maintenance notice, from a real server that answers as the machine's metadata does."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vlaa_jax.parallel import hosts, notices


@pytest.fixture
def metadata():
    said = {"maintenance-event": "NONE", "preempted": "FALSE"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found = said.get(self.path.rpartition("/")[2])
            sound = self.headers["Metadata-Flavor"] == "Google" and found is not None
            self.send_response(200 if sound else 403)
            self.end_headers()
            self.wfile.write((found or "").encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield said, {"GCE_METADATA_HOST": f"127.0.0.1:{server.server_port}"}
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("what", "says"),
    [("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"), ("preempted", "TRUE")],
)
def test_a_notice_is_told_once_and_only_when_there_is_one(metadata, monkeypatch, what, says):
    said, environ = metadata
    monkeypatch.setattr(notices, "EVERY_S", 0.05)
    told, came = [], threading.Event()
    notices.watch(lambda words: (told.append(words), came.set()), environ)
    assert not came.wait(0.3)
    said["maintenance-event"] = "MIGRATE_ON_HOST_MAINTENANCE"  # a machine that moves runs on
    assert not came.wait(0.3)
    said[what] = says
    assert came.wait(60)
    assert told == [f"{what} is {says}"]


def test_no_answer_is_no_notice():
    assert notices._ask("127.0.0.1:9", "preempted") == ""


def test_a_notice_makes_a_run_leave_between_steps(monkeypatch):
    monkeypatch.setattr(hosts, "_link", hosts._Link())
    hosts.leave_if_wanted("after step 1")
    hosts.want_to_leave("maintenance-event is TERMINATE")
    with pytest.raises(hosts.Leave, match="TERMINATE; leaving after step 2"):
        hosts.leave_if_wanted("after step 2")
