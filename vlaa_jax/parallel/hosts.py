"""What the hosts of a run say to each other: small values, agreement, and who is gone.

Every host is one process of plain multi-controller JAX and runs the same program on its own part of
the data. Whatever decides which program comes next is said here to all of them first. Words go
through the key-value store of ``jax.distributed``; arrays go over the devices' own network. With
one process nothing here waits, talks or copies.
"""

import json
import math
import os
import signal
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from vlaa_jax.parallel.watch import LEFT, Watch
from vlaa_jax.schema import UserError

T = TypeVar("T")

SLICE_S = 1.0
"""Longest wait in one call that cannot be interrupted."""
PIECE = 2**20
"""Bytes of one entry of the store."""


class HostLost(UserError):
    """Another host has stopped, or is not heard any more."""


class HostLeft(HostLost):
    """Another host was told to go and has gone; what takes all hosts, such as saving, is over."""


class Leave(KeyboardInterrupt):
    """All hosts have agreed to save and leave here."""


@dataclass
class _Link:
    """This process's place among the hosts; replaced by `join`."""

    client: Any = None
    index: int = 0
    count: int = 1
    wait_s: float = 0.0
    watch: Watch | None = None
    talks: int = 0
    wanted: str = ""
    said: threading.Lock = field(default_factory=threading.Lock)


_link = _Link()


def join(client: Any, index: int, count: int, *, silence_s: float, wait_s: float) -> None:
    """Takes part in the talk of the hosts, which ``jax.distributed`` has connected.

    Args:
        client: of the coordination service.
        index: of this host.
        count: hosts of the run.
        silence_s: seconds after which a host that is not heard counts as lost.
        wait_s: longest wait for a host that is alive but does not come to a meeting point.
    """
    global _link
    _link = _Link(client, index, count, wait_s)
    _link.watch = Watch(client, index, count, silence_s, stop)
    _link.watch.start()


def count() -> int:
    """Hosts of the run."""
    return _link.count


def index() -> int:
    """This host's number."""
    return _link.index


def is_writer() -> bool:
    """Whether this host writes the files of the run."""
    return _link.index == 0


def gather(value: Any, what: str = "", *, apart: bool = False) -> list[Any]:
    """A small value of every host, in their order; all hosts must come to the same call.

    Args:
        value: as JSON takes it; it comes back as JSON gives it, this host's own too.
        what: what is being waited for, for the message when somebody does not come.
        apart: the hosts have worked apart, so one that is alive comes as late as it will.

    Raises:
        HostLost: names the host that has stopped, is gone or does not come.
    """
    if _link.count == 1:
        return [value]
    talk, _link.talks = _link.talks, _link.talks + 1
    name = f"vlaa_jax/talk/{talk}"
    longest_s = math.inf if apart else _link.wait_s
    _put(f"{name}/{_link.index}", value)
    if is_writer():
        every = [value, *(_get(f"{name}/{k}", k, what, longest_s) for k in range(1, _link.count))]
        _put(f"{name}/all", every)
    every = _get(f"{name}/all", 0, what, longest_s)
    if talk:  # whoever is here has read all of the talk before
        for key in (_link.index, *(["all"] if is_writer() else [])):
            _link.client.key_value_delete(f"vlaa_jax/talk/{talk - 1}/{key}")
    return every


def meet(what: str, *, apart: bool = False) -> None:
    """Waits for all hosts; see `gather`."""
    gather(None, what, apart=apart)


def any_of(value: bool, what: str = "") -> bool:
    """Whether it holds on some host."""
    return any(gather(bool(value), what))


def total(values: Sequence[float], what: str = "") -> list[float]:
    """Sums over the hosts, each in the hosts' order."""
    if _link.count == 1:
        return list(values)
    return [sum(column) for column in zip(*gather(list(values), what), strict=True)]


def from_writer(function: Callable[[], T], what: str) -> T:
    """What a function returns on the writing host; it runs nowhere else.

    Raises:
        UserError: what it raised there, on every host alike.
    """
    if _link.count == 1:
        return function()
    told: Any = None
    error: UserError | None = None
    if is_writer():
        try:
            told = [True, function()]
        except UserError as refused:
            told, error = [False, str(refused)], refused
    sound, result = gather(told, what)[0]
    if not sound:
        raise error or UserError(result)
    return result


def after_writer(function: Callable[[], T], what: str) -> T:
    """Runs on the writing host first, and then on the others, who find what it has written."""
    if not is_writer():
        meet(what)
    result = function()
    if is_writer():
        meet(what)
    return result


def want_to_leave(reason: str) -> None:
    """Has all hosts leave at their next `checkpoint_leave`; may be called from a signal handler."""
    _link.wanted = _link.wanted or reason


def leave_if_wanted(when: str) -> None:
    """A point at which the run may be left: all hosts come here, and all leave or none.

    Raises:
        Leave: a host was told to go, by a signal or a maintenance notice.
    """
    told = gather(_link.wanted, when)
    reasons = [f"host {k}: {said}" if count() > 1 else said for k, said in enumerate(told) if said]
    if reasons:
        raise Leave(f"{'; '.join(reasons)}; leaving {when}")


def leave_alone(when: str) -> None:
    """As `leave_if_wanted` for work that hosts do apart: nobody is waited for.

    Raises:
        Leave: this host was told to go.
        HostLost: another host has ended; `HostLeft` where that was told to go.
    """
    if _link.count > 1 and _link.wanted:
        raise Leave(f"host {_link.index}: {_link.wanted}; leaving {when}")
    if _link.watch is not None:
        _look(_link.watch)


def _look(watch: Watch) -> None:
    """Goes where another host has ended."""
    if watch.trouble:
        raise (HostLeft if watch.code == LEFT else HostLost)(watch.trouble)


def _put(key: str, value: Any) -> None:
    data = zlib.compress(json.dumps(value).encode(), 1)
    pieces = [data[at : at + PIECE] for at in range(0, len(data), PIECE)] or [b""]
    for number, piece in reversed(list(enumerate(pieces))):
        head = len(pieces).to_bytes(4, "big") if number == 0 else b""
        _link.client.key_value_set_bytes(f"{key}/{number}", head + piece)


def _get(key: str, host: int, what: str, longest_s: float) -> Any:
    first = _wait(f"{key}/0", host, what, longest_s)
    number, data = int.from_bytes(first[:4], "big"), [first[4:]]
    data += [_wait(f"{key}/{k}", host, what, longest_s) for k in range(1, number)]
    return json.loads(zlib.decompress(b"".join(data)))


def _wait(key: str, host: int, what: str, longest_s: float) -> bytes:
    """An entry of the store, as soon as it is there."""
    assert _link.watch is not None
    until = time.monotonic() + longest_s
    while True:
        if longest_s == math.inf:
            leave_alone(f"on the way to {what}")
        _look(_link.watch)
        try:
            return _link.client.blocking_key_value_get_bytes(key, int(SLICE_S * 1000))
        except Exception as error:
            if "DEADLINE_EXCEEDED" not in str(error) and "NOT_FOUND" not in str(error):
                reason = f"host 0, which coordinates, cannot be reached ({_short(error)})"
                raise HostLost(reason) from error
        if time.monotonic() > until:
            raise HostLost(
                f"host {host} ({_link.watch.where(host)}) is alive but has not come to "
                f"{what or 'the meeting point'} in {longest_s:.0f} s (--host_wait_s)"
            )


def verdict(patience_s: float) -> str:
    """Which host is lost, if one is; waits for the watch to notice after a failed collective."""
    until = time.monotonic() + patience_s
    while _link.watch is not None and time.monotonic() < until:
        if _link.watch.trouble:
            return _link.watch.trouble
        time.sleep(0.1)
    return ""


def silence_s() -> float:
    """Seconds after which a host that is not heard counts as lost."""
    return _link.watch.silence_s if _link.watch else 0.0


def stop(message: str, code: int = 1) -> NoReturn:
    """Ends this process at once with one line, whatever its threads wait for; tells the others.

    An ordinary exit would wait for hosts that are gone.
    """
    if not _link.said.acquire(blocking=False):
        time.sleep(60)  # the other thread is ending this process
    sys.stdout.flush()
    print(f"vlaa_jax: {message}", file=sys.stderr, flush=True)
    if _link.watch is not None:
        _link.watch.tell_and_linger(message, code)
    os._exit(code)


@contextmanager
def ending_together() -> Iterator[None]:
    """What a process of several does in the end: nobody is left waiting for one that is gone.

    A signal asks all hosts to leave where they agree to; a second Ctrl-C ends this one. With one
    process this does nothing.
    """
    if _link.count == 1:
        yield
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _on_signal)
    try:
        yield
        meet("the end of the run")
    except (Leave, HostLeft) as reason:
        stop(f"interrupted ({reason}); the same command goes on after the last saved step", LEFT)
    except KeyboardInterrupt:
        stop(
            "interrupted at once; the same command goes on after the last saved step, if any", LEFT
        )
    except UserError as error:
        stop(str(error))
    except Exception as error:
        # Where a host is gone, a collective operation fails here, in words of its own.
        lost = verdict(silence_s() + 5) if _of_runtime(error) else ""
        if not lost:
            traceback.print_exc()
        stop(lost or f"{type(error).__name__}: {_short(error)}")
    assert _link.watch is not None
    _link.watch.end()


@contextmanager
def undivided() -> Iterator[None]:
    """Signals that come inside are heard behind it.

    A write in the background that is cut while it is handed over goes on with what it has, beside
    the one that takes its place.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are heard elsewhere
        return
    heard: list[int] = []
    known = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in known:
        signal.signal(number, lambda number, _: heard.append(number))
    try:
        yield
    finally:
        for number, handler in known.items():
            signal.signal(number, handler)
    for first in heard[:1]:
        signal.raise_signal(first)


def _on_signal(number: int, _: Any) -> None:
    if _link.wanted and number == signal.SIGINT:
        raise KeyboardInterrupt
    want_to_leave(signal.Signals(number).name)


def _of_runtime(error: BaseException) -> bool:
    return "Runtime" in type(error).__name__ or isinstance(error, ValueError | OSError)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
