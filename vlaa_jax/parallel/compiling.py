"""What is being compiled and for how long, told while it goes on.

A program of a large model takes minutes to compile, and nothing else happens meanwhile. Whoever
waits hears of it; XLA's own alarm after two minutes, which reads like an error, is kept out by
``main``.
"""

import threading
import time
from collections.abc import Callable

import jax

_COMPILE = "/jax/core/compile/backend_compile_duration"
PARTS = {
    "prefill": "prompts for sampling",
    "burst_": "sampling",
    "score": "log-probabilities",
    "gradients": "gradients",
    "accumulate": "gradients",
    "_apply": "the optimizer's update",
    "init": "the optimizer's state",
}
"""Parts of a run by the names of their programs; others are called by their own."""
FIRST_S, LARGEST_S = 10.0, 60.0
"""Seconds between two words about it, at the beginning and at most."""


class Compilations:
    """Counts and times the programs this process compiles or takes from the persistent cache.

    Args:
        say: told, now and then, what is being compiled; None keeps silent.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self.count, self.seconds = 0, 0.0
        self._now: dict[int, tuple[str, float]] = {}
        self._end = threading.Event()
        jax.monitoring.register_scalar_listener(self._begins)
        jax.monitoring.register_event_duration_secs_listener(self._ended)
        self._thread = threading.Thread(target=self._tell, args=(say,), daemon=True)
        if say is not None:
            self._thread.start()

    def _begins(self, event: str, value: float, **more: str | int) -> None:
        if event == _COMPILE:
            name = str(more.get("fun_name", ""))
            self._now[threading.get_ident()] = (name, time.monotonic())

    def _ended(self, event: str, duration_secs: float, **more: str | int) -> None:
        if event == _COMPILE:
            self._now.pop(threading.get_ident(), None)
            self.count, self.seconds = self.count + 1, self.seconds + duration_secs

    def so_far(self) -> float:
        """Seconds of compiling, that which goes on included."""
        now = time.monotonic()
        return self.seconds + sum(now - since for _, since in list(self._now.values()))

    def _tell(self, say: Callable[[str], None]) -> None:
        told, begun = 0.0, self.count
        while not self._end.wait(1.0):
            now, seconds = time.monotonic(), self.so_far()
            running = [(name, now - since) for name, since in list(self._now.values())]
            due = seconds - told >= min(LARGEST_S, max(FIRST_S, told / 2))
            if running and running[0][1] > 1 and due:
                name, this = running[0]
                more = f"{self.count - begun} programs before it, " if self.count > begun else ""
                say(f"compiling: {part(name)}, {this:.0f} s so far ({more}{seconds:.0f} s in all)")
                told = seconds

    def close(self) -> None:
        """Stops listening."""
        self._end.set()
        jax.monitoring.unregister_scalar_listener(self._begins)
        jax.monitoring.unregister_event_duration_listener(self._ended)


def part(program: str) -> str:
    """What a program belongs to, from its name as jax gives it (``jit(prefill)``, ``jit_x``)."""
    name = program.removeprefix("jit").strip("()").removeprefix("_")
    return PARTS.get(name) or PARTS.get(f"_{name}") or f"the program {name or 'without a name'}"
