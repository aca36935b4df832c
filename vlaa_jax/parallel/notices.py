"""Maintenance notices of Google Cloud: a machine that is to go says so in its metadata.

Compute Engine tells of a maintenance event or a preemption before it sends SIGTERM, or without it.
A thread asks every few seconds, on machines that have such metadata, and has the run left at the
next point where all hosts agree to.
"""

import os
import threading
import urllib.request
from collections.abc import Callable, Mapping

EVERY_S = 5.0
ANSWER_S = 5.0
"""Longest wait for an answer of the metadata server."""
LARGEST = 1024
"""Bytes of an answer."""
QUIET = ("", "NONE", "FALSE", "MIGRATE_ON_HOST_MAINTENANCE")
ASKED = ("maintenance-event", "preempted")


def has_metadata(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this is a machine of Google Cloud, by its firmware or by its environment."""
    if "GCE_METADATA_HOST" in environ:
        return True
    try:
        with open("/sys/class/dmi/id/product_name", encoding="utf-8") as file:
            return file.read(64).strip() == "Google Compute Engine"
    except OSError:
        return False


def watch(tell: Callable[[str], None], environ: Mapping[str, str] = os.environ) -> None:
    """Starts to listen for notices, where there can be some.

    Args:
        tell: called once, with what the notice says.
        environ: GCE_METADATA_HOST names another metadata server.
    """
    if has_metadata(environ):
        host = environ.get("GCE_METADATA_HOST", "metadata.google.internal")
        thread = threading.Thread(target=_listen, args=(host, tell), name="notices", daemon=True)
        thread.start()


def _listen(host: str, tell: Callable[[str], None]) -> None:
    pause = threading.Event()
    while True:
        for what in ASKED:
            said = _ask(host, what)
            if said.upper() not in QUIET:
                tell(f"{what} is {said}")
                return
        pause.wait(EVERY_S)


def _ask(host: str, what: str) -> str:
    """A field of the machine's metadata; nothing where it does not answer."""
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/{what}", headers={"Metadata-Flavor": "Google"}
    )
    try:
        # No proxy: the address means this machine alone.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=ANSWER_S) as answer:
            return answer.read(LARGEST).decode("ascii", "replace").strip()[:80]
    except (OSError, ValueError):
        return ""
