"""Work handed to an event loop from threads ends when the loop does, whenever it was handed in."""

import asyncio
import socket
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from vlaa_jax.loop_thread import LoopThread
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.schema import ScoreRequest
from vlaa_jax.settings.rewards import RewardSettings


def test_work_after_the_end_is_refused():
    thread = LoopThread("test")
    thread.close()
    thread.close()
    with pytest.raises(CancelledError):
        thread.run(asyncio.sleep(0))


def test_work_handed_in_while_it_closes_is_cancelled():
    for _ in range(50):
        thread = LoopThread("test")
        turn = threading.Lock()
        ends = []

        def work(thread=thread, turn=turn, ends=ends):
            try:
                with turn:  # so that the next one comes when the one before was cancelled
                    thread.run(asyncio.sleep(600))
            except CancelledError:
                ends.append("cancelled")

        with ThreadPoolExecutor(4) as pool:
            for _ in range(4):
                pool.submit(work)
            thread.close()
        assert ends == ["cancelled"] * 4


def test_whoever_has_waited_longest_is_cancelled_first():
    """Thousands that wait for one queue are each searched for in it otherwise."""
    thread, ended = LoopThread("test"), []

    async def wait(number):
        try:
            await asyncio.sleep(600)
        finally:
            ended.append(number)

    for number in range(300):
        thread.submit(wait(number))
    thread.run(asyncio.sleep(0))  # all have begun
    thread.close()
    assert ended == list(range(300))


def test_scoring_ends_with_its_reward(silent_server):
    settings = RewardSettings(
        open_ended="score_endpoint",
        endpoint_url=silent_server,
        endpoint_images=False,
        endpoint_timeout_s=600.0,
        endpoint_retries=0,
        math_workers=1,
    )
    for _ in range(3):
        reward = MixedReward(settings)
        asked = threading.Event()

        def score(number, reward=reward, asked=asked):
            text = f"<think>a</think><answer>word {number}</answer>"
            asked.set()
            return reward.score([ScoreRequest("open_ended", "gold", text, question="q")])

        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(score, number) for number in range(4)]
            asked.wait()
            reward.close()
        # Cancelled, or its connection closed under it: either way it has ended and says so.
        assert all(job.result()[0].error.startswith("score_endpoint: ") for job in jobs)


@pytest.fixture
def silent_server():
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
