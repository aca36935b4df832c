"""Notices hosts that are gone: every host says once a second that it lives, and listens.

The watch decides nothing about the run. It names a host that is not heard, gives the main thread a
few seconds to stop by itself, and ends the process where that is stuck in a collective operation.
"""

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

EVERY_S = 1.0
GRACE_S = 5.0
"""Seconds that the main thread has to stop by itself."""
LINGER_S = GRACE_S + 2 * EVERY_S
"""Time that the coordinating host stays when it stops: with it goes what the others talk over."""

LEFT = 130
"""Exit code of a host that was told to go; the others then go, too."""
ALIVE = "vlaa_jax/alive/"
_SENTINEL = 'read -r word || printf "%s\\n" "$1" >&2'


class Watch(threading.Thread):
    """Listens to the other hosts.

    Args:
        client: of the coordination service.
        index: of this host.
        count: hosts of the run.
        silence_s: seconds after which a host that is not heard counts as lost.
        end_process: called with a message and an exit code where the main thread does not stop.
    """

    def __init__(
        self,
        client: Any,
        index: int,
        count: int,
        silence_s: float,
        end_process: Callable[[str, int], Any],
    ) -> None:
        super().__init__(name="hosts", daemon=True)
        self.silence_s, self.trouble = silence_s, ""
        """What is wrong with another host, or nothing."""
        self.code = 1
        """Exit code of that host, where it has said it: `LEFT` if it was told to go."""
        self._client, self._index, self._count = client, index, count
        self._end_process = end_process
        self._beat, self._state, self._own_code = 0, "", 0
        self._heard = {k: (-1, time.monotonic()) for k in range(count) if k != index}
        self._names: dict[int, str] = {}
        self._over = threading.Event()
        self._sentinel = _sentinel(
            f"vlaa_jax: host {index} ({_own_name()}) ended without a word: it was killed, or the "
            "coordinating host 0 was; start all hosts again with the same command, it goes on "
            "after the last saved step"
        )

    def where(self, host: int) -> str:
        """Where a host runs."""
        return self._names.get(host, "never heard")

    def run(self) -> None:
        """Says and hears once a second."""
        while not self._over.wait(EVERY_S):
            try:
                self._say()
                self._hear()
            except Exception as error:
                reason = " ".join(str(error).split())[:120]
                self.trouble = f"host 0, which coordinates, cannot be reached ({reason})"
            if self.trouble:
                if not self._over.wait(GRACE_S):
                    self._end_process(self.trouble, self.code)
                return

    def _say(self) -> None:
        self._beat += 1
        word = json.dumps([self._beat, _own_name(), self._state, self._own_code])
        self._client.key_value_set(f"{ALIVE}{self._index}", word, allow_overwrite=True)

    def _hear(self) -> None:
        now = time.monotonic()
        for key, word in self._client.key_value_dir_get(ALIVE):
            host, (beat, name, state, code) = int(key.rsplit("/", 1)[1]), json.loads(word)
            self._names[host] = name
            if state == "done":
                self._heard.pop(host, None)
            elif state and host in self._heard:
                self.code = code
                self.trouble = (
                    f"host {host} ({name}) has {'left' if code == LEFT else f'stopped: {state}'}"
                )
            elif host in self._heard and self._heard[host][0] != beat:
                self._heard[host] = (beat, now)
        for host, (_, last) in self._heard.items():
            if now - last > self.silence_s and not self.trouble:
                self.trouble = (
                    f"host {host} ({self.where(host)}) has not been heard for "
                    f"{now - last:.0f} s; start all hosts again with the same command, the run "
                    "goes on after the last saved step"
                )

    def tell_and_linger(self, message: str, code: int) -> None:
        """Tells the others that this host stops, and stays until they can have heard it."""
        self._state, self._own_code = message, code
        try:
            self._say()
            time.sleep(LINGER_S if self._index == 0 else 0.0)
        except Exception:  # nobody is there to be told
            self._over.set()
        self.end()

    def end(self) -> None:
        """Says that this host is done, and listens no more."""
        self._over.set()
        with suppress(Exception):  # the store may be gone
            self._state = self._state or "done"
            self._say()
        with suppress(OSError):
            assert self._sentinel.stdin is not None
            self._sentinel.stdin.write(b"bye\n")
            self._sentinel.stdin.close()


def _own_name() -> str:
    return f"{socket.gethostname()}, process {os.getpid()}"


def _sentinel(message: str) -> "subprocess.Popen[bytes]":
    """A small process that says so where this one ends suddenly.

    The runtime aborts a process that loses the coordinator, before Python can say anything.
    """
    return subprocess.Popen(["sh", "-c", _SENTINEL, "sh", message], stdin=subprocess.PIPE)
