"""Figures of a server for Prometheus."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


@dataclass(frozen=True)
class Live:
    """Figures that are looked up when they are asked for."""

    in_hand: Callable[[], float]
    waiting: Callable[[], float]
    growing: Callable[[], float]
    compiled: Callable[[], float]


class Metrics:
    """Counters of one server.

    Args:
        live: what it has in hand.
    """

    def __init__(self, live: Live) -> None:
        self._registry = CollectorRegistry()
        with_: Any = {"registry": self._registry, "namespace": "vlaa"}
        self.requests = Counter("requests", "Chat requests by status", ["status"], **with_)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts", **with_)
        self.completion_tokens = Counter("completion_tokens", "Tokens of completions", **with_)
        self.images = Counter("images", "Images of prompts", **with_)
        self.first_s = Histogram(
            "first_token_seconds", "Until the first tokens", buckets=_SECONDS, **with_
        )
        self.whole_s = Histogram("request_seconds", "Whole requests", buckets=_SECONDS, **with_)
        for name, said, figure in (
            ("requests_in_hand", "Requests being read, waiting or decoded", live.in_hand),
            ("requests_waiting", "Requests waiting for a place", live.waiting),
            ("completions_growing", "Completions being decoded", live.growing),
            ("programs_compiled", "Programs compiled", live.compiled),
        ):
            Gauge(name, said, **with_).set_function(figure)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)
