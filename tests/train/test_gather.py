"""Dynamic sampling: what is drawn again, when it stops, and what is kept."""

import threading
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest

from vlaa_jax.rollout.engine import Rollout
from vlaa_jax.schema import Score, UserError
from vlaa_jax.train import gather
from vlaa_jax.train.gather import Gatherer, Pending, Share, scoring_threads
from vlaa_jax.train.metrics import StepClock

G, T = 2, 3


def pending(round_, raw_PG):
    """Groups of a round whose scores are ready; prompts are called by round and place."""
    raw = np.array(raw_PG, float)
    shape = (*raw.shape, T)
    rollout = Rollout(
        np.full(shape, round_, np.int32),
        np.zeros(shape, np.float32),
        np.ones(shape, bool),
        np.full(raw.shape, T),
        np.zeros(raw.shape, bool),
    )
    names = [f"{round_}.{p}" for p in range(len(raw))]
    shares = []
    # In two shares, the later prompts first: they are told in the order they finish.
    for places in ([*range(1, len(raw))], [0]):
        job = Future()
        job.set_result(
            [
                Score(v, "digit", None, {"raw": v, "format": 1.0}, "down" if v != v else None)
                for p in places
                for v in raw[p]
            ]
        )
        shares.append(Share(places, [[names[p]] * G for p in places], job))
    return Pending(names, rollout, shares)


class Scripted(Gatherer):
    """Draws scripted rounds."""

    def sample(self, params, step, round_, clock):
        self.threads.append(round_)
        return pending(round_, self.loader[round_])


def gatherer(cap, rounds, drawn, max_failed_frac=0.5):
    settings = SimpleNamespace(
        algo=SimpleNamespace(dynamic_sampling=cap),
        rewards=SimpleNamespace(max_failed_frac=max_failed_frac),
    )
    return Scripted(settings, rounds, None, None, None, drawn)


def refilled(cap, rounds):
    """What comes of scripted rounds, and which rounds were drawn."""
    drawn = []
    own = gatherer(cap, rounds, drawn)
    first = own.wait(pending(0, rounds[0]), 7)
    return own.refill({}, 7, first, StepClock()), drawn


DEAD, LIVE = [1, 1], [0, 1]


def test_scores_come_back_in_the_order_of_the_prompts():
    groups = pending(0, [[0, 1], [2, 3], [4, 5]]).wait(0.5, 1)
    assert groups.raw_PG.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert [texts[0] for texts in groups.texts] == groups.prompts == ["0.0", "0.1", "0.2"]


def test_without_it_every_group_stays():
    gathered, drawn = refilled(0, [[DEAD, LIVE]])
    assert drawn == []
    assert gathered.groups.prompts == ["0.0", "0.1"]
    assert (gathered.constant_frac, gathered.rounds) == (0.5, 1)


def test_useful_groups_come_first_and_drawing_stops_when_there_are_enough():
    rounds = [[DEAD, LIVE, DEAD], [LIVE, DEAD, DEAD], [DEAD, LIVE, LIVE], [LIVE] * 3]
    gathered, drawn = refilled(5, rounds)
    assert drawn == [1, 2]
    assert gathered.groups.prompts == ["0.1", "1.0", "2.1"]
    assert gathered.groups.raw_PG.tolist() == [LIVE] * 3
    assert gathered.rounds == 3
    assert len(gathered.scores) == 9 * G
    assert gathered.sampled_tokens == 9 * G * T
    assert gathered.constant_frac == pytest.approx(5 / 9)


def test_at_the_cap_the_rest_is_filled_with_what_there_is():
    gathered, drawn = refilled(2, [[DEAD, DEAD], [DEAD, LIVE], [DEAD, DEAD]])
    assert drawn == [1, 2]
    assert gathered.groups.prompts == ["1.1", "0.0"]


def test_failed_scores_make_no_group_useful_and_too_many_stop_the_run():
    nan = float("nan")
    gathered, _ = refilled(1, [[[nan, 1], LIVE, LIVE], [LIVE, LIVE, LIVE]])
    assert gathered.groups.prompts == ["0.1", "0.2", "1.0"]
    with pytest.raises(UserError, match="step 7"):
        pending(0, [[nan, nan], [nan, 1]]).wait(0.5, 7)


def test_an_interrupt_does_not_wait_for_what_is_queued():
    done, release = [], threading.Event()

    def job(number):
        release.wait(120)
        done.append(number)

    with pytest.raises(KeyboardInterrupt), scoring_threads() as pool:
        jobs = [pool.submit(job, number) for number in range(20)]
        raise KeyboardInterrupt
    assert not done
    release.set()
    assert sum(future.cancelled() for future in jobs) >= 20 - gather.SCORING_THREADS


def test_without_an_interrupt_everything_is_finished():
    with scoring_threads() as pool:
        jobs = [pool.submit(pow, 2, number) for number in range(20)]
    assert [future.result() for future in jobs] == [2**number for number in range(20)]
