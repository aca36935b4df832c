"""How fast an endpoint is asked: as fast as it bears, within what was agreed.

Four brakes, each a small object: a window on calls in flight that grows while all is well and
shrinks when the server says it has too much; buckets for requests and tokens per minute; a breaker
that gives a failing server a rest; and pauses before retries, which depend on the class of the
failure. Everything belongs to one event loop.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from vlaa_jax.endpoint import EndpointError, Kind
from vlaa_jax.schema import UserError

T = TypeVar("T")

SHRINK = 0.85
"""What is left of the window after an overload."""
_GROW = 0.5
"""Calls that the window gains in the time that each call in it takes."""
_MAX_PAUSE_S = 60.0
_OVERLOADED: frozenset[Kind] = frozenset(("overload", "timeout"))
_SICK: frozenset[Kind] = frozenset(("connection", "server", "timeout", "refused"))
"""What counts against a server's health; an overload is only too much of a good thing."""
_RETRIES: Mapping[Kind, float | None] = {  # None: as many as the settings allow
    "connection": None,
    "server": None,
    "timeout": 1,
    "malformed": 1,
    "overload": float("inf"),  # until the deadline: it is we who are too fast
    "refused": 0,
}


class Window:
    """Calls in flight: additive increase, multiplicative decrease, never above ``cap``.

    Until the first overload the window doubles in the time of a call, as TCP begins.
    """

    def __init__(self, cap: int, start: int) -> None:
        self.cap = cap
        self.size = float(min(start, cap))
        self.in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._ticket = 0
        self._shrunk_at = 0  # calls with older tickets began before the window shrank
        self._probing = True

    async def enter(self) -> int:
        """Wait for a place; returns a ticket for ``leave``."""
        if self.in_flight >= int(self.size) or self._waiting:
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self._free()  # granted in the same moment
                raise
        else:
            self.in_flight += 1
        self._ticket += 1
        return self._ticket

    def leave(self, ticket: int, overloaded: bool | None = None) -> None:
        """Give the place back, and say whether the server had too much; None if nobody knows."""
        if overloaded is None:
            pass
        elif not overloaded:
            if self.in_flight >= int(self.size):  # a window that is not used up teaches nothing
                gain = 1.0 if self._probing else _GROW / self.size
                self.size = min(float(self.cap), self.size + gain)
        elif ticket > self._shrunk_at:  # one crowd, one lesson
            self.size = max(1.0, min(self.size, self.in_flight) * SHRINK)
            self._shrunk_at, self._probing = self._ticket, False
        self._free()

    def _free(self) -> None:
        self.in_flight -= 1
        while self._waiting and self.in_flight < int(self.size):
            place = self._waiting.popleft()
            if not place.done():
                self.in_flight += 1
                place.set_result(None)


class Bucket:
    """A rate per minute. Takers go into debt and wait it off, so they are served in order."""

    def __init__(self, per_minute: float, burst: float) -> None:
        self._per_s = per_minute / 60.0
        self._burst = max(burst, 1.0)
        self._level, self._at = self._burst, 0.0

    async def take(self, amount: float) -> None:
        """Wait until ``amount`` may be used."""
        if self._per_s:
            self.charge(amount)
            if self._level < 0:
                await asyncio.sleep(-self._level / self._per_s)

    def charge(self, amount: float) -> None:
        """Correct what was taken by what was really used; negative gives back."""
        now = asyncio.get_running_loop().time()
        self._level = min(self._burst, self._level + (now - self._at) * self._per_s) - amount
        self._at = now


class EndpointDown(UserError):
    """An endpoint fails on and on; the run stops, and goes on later by the same command."""


class Breaker:
    """Lets nobody through for a while when most of the latest calls failed.

    After the rest a single call tries; if it succeeds all go on, otherwise the rest doubles. When
    as many rests as allowed were in vain, it is over.
    """

    def __init__(self, name: str, calls: int, rest_s: float = 5.0, rests: int = 3) -> None:
        self._name, self._rest_s, self._allowed = name, rest_s, rests
        self._latest: deque[bool] = deque(maxlen=calls)
        self._changed = asyncio.Event()
        self._rests = 0  # taken in a row; 0 while calls go through
        self._until = 0.0
        self._probing = False
        self._error: EndpointError | None = None

    async def ready(self) -> bool:
        """Return when a call may be made; True: it is the one that tries, alone.

        Raises:
            EndpointDown: it was tried often enough.
        """
        while self._rests:
            if self._rests > self._allowed:
                raise EndpointDown(f"{self._name} keeps failing; the last time: {self._error}")
            if not self._probing:
                self._probing = True
                try:
                    await asyncio.sleep(self._until - asyncio.get_running_loop().time())
                except asyncio.CancelledError:
                    self.give_up(True)
                    raise
                return True
            await self._changed.wait()
        return False

    def note(self, error: EndpointError | None, probe: bool = False) -> None:
        """Tell how a call went; ``probe`` is what ``ready`` returned for it."""
        healthy = error is None or error.kind not in _SICK
        self._latest.append(healthy)
        if not healthy:
            self._error = error
            if probe or (not self._rests and self._mostly_failing()):
                self._rests += 1
                pause = self._rest_s * 2 ** (self._rests - 1)
                self._until = asyncio.get_running_loop().time() + pause
                self._change()
        elif self._rests:
            self._rests = 0
            self._latest.clear()
            self._change()

    def give_up(self, probe: bool) -> None:
        """Tell that a call ended without a word about the server: another one is to try."""
        if probe:
            self._change()

    def _mostly_failing(self) -> bool:
        return len(self._latest) == self._latest.maxlen and 2 * sum(self._latest) < len(
            self._latest
        )

    def _change(self) -> None:
        self._probing = False
        self._changed.set()
        self._changed = asyncio.Event()


@dataclass(frozen=True)
class Pace:
    """What a Pacer is to keep to; units as in ``settings.pipeline.ServedModel``."""

    name: str
    """The endpoint in messages."""
    concurrency: int = 32
    start_concurrency: int = 8
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    timeout_s: float = 120.0
    deadline_s: float = 1800.0
    retries: int = 5
    backoff_s: float = 0.5
    breaker_calls: int = 20
    rest_s: float = 5.0


class Pacer:
    """Makes the calls to one endpoint under all four brakes."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.window = Window(pace.concurrency, pace.start_concurrency)
        self._requests = Bucket(pace.requests_per_minute, 1.0)
        self._tokens = Bucket(pace.tokens_per_minute, pace.tokens_per_minute / 10.0)
        self._breaker = Breaker(pace.name, pace.breaker_calls, pace.rest_s)
        self._not_before = 0.0

    async def call(
        self,
        send: Callable[[float], Awaitable[T]],
        tokens: float,
        used: Callable[[T], float],
    ) -> T:
        """One call with its retries.

        Args:
            send: makes one try and gives up at the time it is handed (the event loop's clock).
            tokens: estimate of what the call uses.
            used: tokens that a reply has really used.

        Raises:
            EndpointError: no usable reply, and no further try is worth it.
            EndpointDown: the endpoint fails for everybody.
        """
        tries = 0
        deadline = float("inf")
        loop = asyncio.get_running_loop()

        async def one_try() -> T:
            nonlocal deadline
            await self._requests.take(1.0)
            await self._tokens.take(tokens)
            ticket = await self._turn()
            if deadline == float("inf"):  # waiting for a turn is not the server's fault
                deadline = loop.time() + self.pace.deadline_s
            overloaded = None
            try:
                reply = await send(min(deadline, loop.time() + self.pace.timeout_s))
                overloaded = False
            except EndpointError as error:
                overloaded = True if error.kind in _OVERLOADED else None
                raise
            finally:
                self.window.leave(ticket, overloaded)
            return reply

        while True:
            probe = await self._breaker.ready()
            try:
                reply = await one_try()
            except EndpointError as error:
                failure = error
            except BaseException:
                self._breaker.give_up(probe)
                raise
            else:
                self._breaker.note(None, probe)
                self._tokens.charge(used(reply) - tokens)
                return reply
            self._breaker.note(failure, probe)
            pause = self._pause(failure, tries)
            if pause is None or loop.time() + pause >= deadline:
                raise failure
            await asyncio.sleep(pause)
            tries += 1

    async def _turn(self) -> int:
        """A place in the window, at a time when the server did not ask for silence."""
        loop = asyncio.get_running_loop()
        while True:
            ticket = await self.window.enter()
            if (wait := self._not_before - loop.time()) <= 0:
                return ticket
            self.window.leave(ticket)
            await asyncio.sleep(wait * random.uniform(1.0, 1.1))

    def _pause(self, error: EndpointError, tries: int) -> float | None:
        """Seconds until the next try; None: there is none."""
        allowed = _RETRIES[error.kind]
        if tries >= (self.pace.retries if allowed is None else allowed):
            return None
        asked = error.retry_after_s or 0.0
        if asked and error.kind == "overload":  # meant for all who ask with this key
            held = min(asked, self.pace.deadline_s)  # nobody waits longer than was agreed
            self._not_before = max(self._not_before, asyncio.get_running_loop().time() + held)
        pause = min(_MAX_PAUSE_S, self.pace.backoff_s * 2.0 ** min(tries, 20))
        return max(asked, pause * random.uniform(0.5, 1.0))
