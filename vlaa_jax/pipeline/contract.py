"""What steps are given and what they are: plain functions, whatever engine runs them."""

from collections.abc import Awaitable, Callable

from vlaa_jax.pipeline.ledger import Reply
from vlaa_jax.pipeline.request import Request
from vlaa_jax.pipeline.sample import Drop, Sample

Ask = Callable[[Request], Awaitable[Reply]]
"""The answer to a request, from the ledger or from the model; raises CallFailed."""

Step = Callable[[Sample, Ask], Awaitable[Sample | Drop]]

Scorer = Callable[[Sample, str], Awaitable[float]]
"""Reward of a completion for a sample, in [0, 1]; NaN where it cannot be scored."""


class CallFailed(Exception):
    """A call gave no usable answer: a state of its sample, never an answer."""

    def __init__(self, step: str, kind: str, message: str) -> None:
        super().__init__(message)
        self.step, self.kind = step, kind
