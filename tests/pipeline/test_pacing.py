import asyncio
import time

import pytest

from vlaa_jax.endpoint import EndpointError
from vlaa_jax.pipeline.pacing import Breaker, Bucket, EndpointDown, Pace, Pacer, Window
from vlaa_jax.schema import UserError


def pacer(**pace):
    chosen = {"name": "m", "backoff_s": 0.001, "start_concurrency": 64, **pace}
    return Pacer(Pace(**chosen))


def replies(*outcomes):
    """A ``send`` that goes through outcomes: values, or kinds of failure; the last one stays."""
    left = list(outcomes)

    async def send(deadline):
        outcome = left.pop(0) if len(left) > 1 else left[0]
        send.tries += 1
        if isinstance(outcome, EndpointError):
            raise outcome
        return outcome

    send.tries = 0
    return send


def call(pacer_, send, tokens=1.0):
    return pacer_.call(send, tokens, lambda reply: tokens)


def error(kind, wait_s=None):
    return EndpointError(kind, "scripted", wait_s)


@pytest.mark.parametrize("kind", ["connection", "server", "overload", "timeout", "malformed"])
def test_what_may_pass_is_tried_again(kind):
    send = replies(error(kind), "fine")
    assert asyncio.run(call(pacer(), send)) == "fine"
    assert send.tries == 2


@pytest.mark.parametrize(
    ("kind", "tries"), [("refused", 1), ("malformed", 2), ("timeout", 2), ("server", 4)]
)
def test_what_stays_ends_after_the_tries_of_its_class(kind, tries):
    send = replies(error(kind))
    with pytest.raises(EndpointError):
        asyncio.run(call(pacer(retries=3, breaker_calls=100), send))
    assert send.tries == tries


def test_an_overloaded_server_is_asked_until_the_deadline():
    send = replies(error("overload"))
    began = time.monotonic()
    with pytest.raises(EndpointError, match="overload"):
        asyncio.run(call(pacer(retries=1, deadline_s=0.3), send))
    assert send.tries > 4
    assert time.monotonic() - began < 2.0


def test_retry_after_holds_back_everybody_who_asks_there():
    async def run():
        paced = pacer()
        first = asyncio.create_task(call(paced, replies(error("overload", 0.3), "a")))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        assert await call(paced, replies("b")) == "b"
        waited = time.monotonic() - began
        assert await first == "a"
        return waited

    assert asyncio.run(run()) >= 0.2


def test_the_deadline_of_a_call_begins_with_its_turn():
    async def slow(deadline):
        await asyncio.sleep(0.05)
        return deadline - asyncio.get_running_loop().time()

    async def run():
        paced = pacer(concurrency=1, deadline_s=0.2)
        return await asyncio.gather(*(call(paced, slow) for _ in range(8)))

    assert min(asyncio.run(run())) > 0.05  # the last one waits 0.35 s for its turn


async def crowd(allowed, calls, cap=64, latency=0.004):
    """Calls against a server that refuses more than ``allowed`` at once; what it saw."""
    paced, seen, running = pacer(concurrency=cap, start_concurrency=4, deadline_s=60.0), [], 0

    async def send(deadline):
        nonlocal running
        running += 1
        try:
            seen.append(running)
            if running > allowed:
                raise error("overload")
            await asyncio.sleep(latency)
        finally:
            running -= 1

    await asyncio.gather(*(call(paced, send) for _ in range(calls)))
    return seen, paced.window.size


# A small window grows by a large part of itself, so it is refused more often.
@pytest.mark.parametrize(("allowed", "refused"), [(4, 0.2), (16, 0.05), (40, 0.05)])
def test_the_window_settles_at_what_the_server_allows(allowed, refused):
    seen, size = asyncio.run(crowd(allowed, 100 * allowed))
    late = seen[len(seen) // 2 : -64]
    assert 0.8 * allowed <= size <= 1.2 * allowed + 1
    assert sum(count > allowed for count in late) < refused * len(late)


def test_the_window_fills_its_cap_where_nothing_is_refused():
    _, size = asyncio.run(crowd(10**9, 800))
    assert size == 64


def test_a_window_is_left_by_whoever_is_cancelled_while_waiting():
    async def run():
        window = Window(1, 1)
        ticket = await window.enter()
        waiting = [asyncio.create_task(window.enter()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        window.leave(ticket)
        await asyncio.sleep(0)
        window.leave(await waiting[1])
        window.leave(await waiting[2])
        return window.in_flight

    assert asyncio.run(run()) == 0


def test_requests_per_minute_are_kept():
    async def run():
        paced = pacer(requests_per_minute=1200.0)  # one in 50 ms
        began = time.monotonic()
        await asyncio.gather(*(call(paced, replies("a")) for _ in range(11)))
        return time.monotonic() - began

    assert asyncio.run(run()) >= 0.48


def test_tokens_per_minute_are_charged_as_they_were_used():
    async def run():
        bucket = Bucket(60_000.0, 100.0)  # 1,000 in a second
        await bucket.take(100.0)
        bucket.charge(200.0)  # the reply was longer than estimated
        began = time.monotonic()
        await bucket.take(100.0)
        return time.monotonic() - began

    assert asyncio.run(run()) >= 0.28


def test_a_failing_endpoint_gets_a_rest_then_one_call_tries():
    async def run():
        breaker = Breaker("m", calls=4, rest_s=0.1)
        for _ in range(4):
            breaker.note(error("server"))
        began = time.monotonic()
        waiting = [asyncio.create_task(breaker.ready()) for _ in range(5)]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert time.monotonic() - began >= 0.09
        await asyncio.sleep(0.02)
        assert sum(task.done() for task in waiting) == 1  # the others wait for its word
        breaker.note(None, done.pop().result())
        return await asyncio.gather(*waiting)

    assert asyncio.run(run()).count(True) == 1


def test_a_trying_call_that_ends_without_a_word_about_the_server_lets_another_try():
    async def run():
        paced = pacer(breaker_calls=2, rest_s=0.01, retries=0)

        async def fails(deadline):
            raise error("server")

        async def no_image(deadline):
            raise UserError("the image is not there")

        for _ in range(2):
            with pytest.raises(EndpointError):
                await paced.call(fails, 1.0, lambda _: 1.0)
        first = asyncio.create_task(paced.call(no_image, 1.0, lambda _: 1.0))
        cancelled = asyncio.create_task(paced.call(replies("b"), 1.0, lambda _: 1.0))
        last = asyncio.create_task(paced.call(replies("c"), 1.0, lambda _: 1.0))
        with pytest.raises(UserError, match="not there"):
            await first
        cancelled.cancel()
        return await asyncio.wait_for(last, 2.0)

    assert asyncio.run(run()) == "c"


def test_an_endpoint_that_stays_down_stops_everybody():
    async def run():
        breaker = Breaker("m at http://x", calls=2, rest_s=0.01, rests=2)
        for _ in range(2):
            breaker.note(error("connection"))
        for _ in range(2):
            breaker.note(error("connection"), await breaker.ready())
        await breaker.ready()

    with pytest.raises(EndpointDown, match=r"m at http://x keeps failing.*scripted"):
        asyncio.run(run())


def test_overload_is_no_illness():
    breaker = None

    async def run():
        nonlocal breaker
        breaker = Breaker("m", calls=3)
        for _ in range(10):
            breaker.note(error("overload"))
        return await breaker.ready()

    assert asyncio.run(run()) is False
