import os

import pytest

from vlaa_jax.rewards.math import parser_problems
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.rewards.pool import KillablePool
from vlaa_jax.schema import ScoreRequest, UserError

LINE = r"^golds could not be checked: [^\n]*; run the command again$"


@pytest.fixture
def log(monkeypatch, tmp_path):
    monkeypatch.setenv("GOLD_TASKS_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def problems_of(pool, golds):
    return parser_problems(pool, [(gold, {"gold": gold, "answer": gold}) for gold in golds])


def make_pool(task="gold_tasks:check", **settings):
    return KillablePool(task, **{"workers": 2, "timeout_s": 1.0, "patience": 1.0, **settings})


def test_a_gold_that_fails_once_is_good(log):
    golds = ["s+1", "y+1", "w+1", "z+1"]  # the first hangs once, the third ends its worker once
    with make_pool() as pool:
        assert problems_of(pool, golds) == [None] * 4
    asked = log.read_text().split()
    assert asked[-2:] == ["s+1", "w+1"]  # alone, after the others
    assert sorted(asked) == sorted([*golds, "s+1", "w+1"])


def test_a_gold_that_fails_twice_is_bad(log):
    with make_pool() as pool:
        problems = problems_of(pool, ["h+1", "y+1", "x+1", "m+1"])
    assert problems == [
        "gold 'h+1': timed out after 1 s",
        None,
        "gold 'x+1': the worker died",
        "gold 'm+1': MemoryError: ",
    ]


def test_a_process_that_cannot_be_had_says_nothing_about_a_gold(log, scarce_processes):
    with make_pool(workers=1) as pool:
        (lost,) = pool.map([{"gold": "x"}])  # so that the next one needs a process
        assert lost.error == "the worker died"
        with pytest.raises(UserError, match=LINE) as caught:
            problems_of(pool, ["y+1"])
    assert os.strerror(11) in str(caught.value)


def test_a_pool_that_breaks_says_nothing_about_golds(log):
    with make_pool(workers=1) as pool, pytest.raises(UserError, match=LINE):
        problems_of(pool, ["n+1", "y+1"])


def test_a_parser_that_cannot_be_imported_says_nothing_about_golds():
    with (
        make_pool("no_such_module:check") as pool,
        pytest.raises(UserError, match=LINE) as caught,
    ):
        problems_of(pool, ["y+1"])
    assert "no_such_module" in str(caught.value)


def test_a_closed_reward_checks_no_golds():
    requests = [ScoreRequest("digit", "many", ""), ScoreRequest("math", "y+1", "")]
    reward = MixedReward()
    reward.close()
    with pytest.raises(UserError, match="golds could not be checked: the pool is closed"):
        reward.gold_problems(requests)
