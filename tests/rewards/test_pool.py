import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vlaa_jax.rewards.pool import KillablePool


@pytest.fixture
def make_pool():
    pools = []

    def make(**settings):
        pools.append(KillablePool("pool_tasks:misbehave", **settings))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def busy(pool):
    return [worker.process.pid for worker in list(pool.workers) if worker.done]


def test_order_is_kept_when_tasks_end_in_another(make_pool):
    pool = make_pool(workers=3)
    waits = [0.2, 0.0, 0.1, 0.0, 0.05]
    assert [o.value for o in pool.map([["sleep", w] for w in waits])] == waits


def test_values_of_any_json_kind_come_back(make_pool):
    pool = make_pool(workers=1)
    values = [None, True, 0, -1.5, "é\ud800\n", [1, [2]], {"a": {"b": None}}, "x" * 300_000]
    assert [o.value for o in pool.map([["echo", v] for v in values])] == values
    assert len(pool.map([["large", 3_000_000]])[0].value) == 3_000_000


@pytest.mark.parametrize("task", ["spin", "deaf", ["sleep", 60]])
def test_an_overrunning_task_is_killed_and_the_rest_go_on(make_pool, task):
    pool = make_pool(workers=2, timeout_s=0.5, patience=4)
    outcomes = pool.map([["echo", 1], task, ["echo", 2], task, ["echo", 3]])
    assert [o.value for o in outcomes] == [1, None, 2, None, 3]
    assert [o.timed_out for o in outcomes] == [False, True, False, True, False]
    assert outcomes[1].error == "timed out after 0.5 s"
    assert not any(o.pool_failed for o in outcomes)


def test_the_deadline_is_cpu_time_so_that_a_busy_host_fails_no_task(make_pool):
    pool = make_pool(workers=1, timeout_s=0.2)
    (pid,) = [outcome.value for outcome in pool.map(["pid"])]
    waiting = pool.submit(["sleep", 0.1])
    os.kill(pid, signal.SIGSTOP)  # as good as a host that gives it no time
    time.sleep(1.0)
    assert not waiting.done()
    os.kill(pid, signal.SIGCONT)
    assert waiting.result(timeout=10).value == 0.1
    strict = make_pool(workers=1, timeout_s=0.2, patience=1)
    assert strict.map([["sleep", 5]])[0].timed_out


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (["raise", "no good"], "ValueError: no good"),
        ("exit", "the worker died"),
        ("segfault", "the worker died"),
        (["hoard", 2**40], "MemoryError"),
        (["recurse", 1], "RecursionError"),
        ("unjsonable", "TypeError"),
    ],
)
def test_a_failing_task_is_an_error_of_its_own(make_pool, task, reason):
    pool = make_pool(workers=1)
    before, failed, after = pool.map([["echo", 1], task, ["echo", 2]])
    assert (before.value, after.value) == (1, 2)
    assert failed.value is None
    assert reason in failed.error


def test_memory_is_limited(make_pool):
    small = make_pool(workers=1, memory_mb=512)
    assert "MemoryError" in small.map([["hoard", 800 * 2**20]])[0].error
    roomy = make_pool(workers=1, memory_mb=4096)
    assert roomy.map([["hoard", 800 * 2**20]])[0].value == 800 * 2**20


def test_workers_are_reused_and_then_recycled(make_pool):
    pool = make_pool(workers=1, recycle_after=3)
    pids = [o.value for o in pool.map(["pid"] * 7)]
    assert [len(set(pids[:3])), len(set(pids[3:6])), len(set(pids))] == [1, 1, 3]


def test_many_threads_share_one_pool(make_pool):
    pool = make_pool(workers=2, timeout_s=1.0)
    results = {}

    def use(name):
        items = [["echo", [name, i]] for i in range(40)]
        if name % 3 == 0:
            items.insert(20, "spin")
        results[name] = [o.value for o in pool.map(items)]

    threads = [threading.Thread(target=use, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, values in results.items():
        assert [v for v in values if v] == [[name, i] for i in range(40)]


def test_close_leaves_no_process_and_answers_the_waiting(make_pool):
    pool = make_pool(workers=2, timeout_s=60)
    futures = [pool.submit("deaf") for _ in range(4)]
    assert wait_until(lambda: len(busy(pool)) == 2)
    pids = busy(pool)
    pool.close()
    assert not any(map(is_alive, pids))
    assert [future.result(timeout=5).error for future in futures] == ["the pool is closed"] * 4
    late = pool.submit(["echo", 1])
    assert late.result(timeout=5).error == "the pool is closed"
    assert all(future.result().pool_failed for future in [*futures, late])
    pool.close()  # twice is once


def test_closing_an_unused_pool_starts_nothing(make_pool):
    pool = make_pool(workers=2)
    pool.close()
    assert pool.workers == set() and pool._loop is None


def test_a_task_that_cannot_be_imported_is_an_error_everywhere():
    with KillablePool("no_such_module:task") as pool:
        outcomes = pool.map([1, 2])
    assert all("no_such_module" in outcome.error for outcome in outcomes)
    assert all(outcome.pool_failed for outcome in outcomes)


def test_a_worker_that_was_killed_is_replaced(make_pool):
    pool = make_pool(workers=1)
    os.kill(pool.map(["pid"])[0].value, signal.SIGKILL)
    lost, found = pool.map([["echo", 1], ["echo", 2]])
    assert (lost.error, found.value) == ("the worker died", 2)


def test_a_process_that_cannot_be_had_is_an_error_of_one_task(make_pool, scarce_processes):
    pool = make_pool(workers=1)
    items = ["exit", ["echo", 1], ["echo", 2], "exit", ["echo", 3], ["echo", 4], ["echo", 5]]
    outcomes = [pool.map([item])[0] for item in items]
    # Starts at "exit", at 1 (fails), at 2, at 3 (fails) and at 4, whose worker answers 5 too.
    assert [o.value for o in outcomes] == [None, None, 2, None, None, 4, 5]
    assert [o.error and o.error.split(":")[0] for o in outcomes] == [
        "the worker died", "no process for the task", None,
        "the worker died", "no process for the task", None, None,
    ]  # fmt: skip
    assert [o.pool_failed for o in outcomes] == [False, True, False, False, True, False, False]


def test_where_processes_are_scarce_those_there_are_do_the_work(make_pool, scarce_processes):
    pool = make_pool(workers=4)
    values = list(range(40))
    assert [o.value for o in pool.map([["echo", value] for value in values])] == values


@pytest.mark.parametrize("settings", [{"workers": 0}, {"timeout_s": 0}, {"timeout_s": -1}])
def test_senseless_settings_are_refused(settings):
    with pytest.raises(ValueError, match="at least one worker"):
        KillablePool("pool_tasks:misbehave", **settings)


SCRIPT = """
import os, sys, threading, time
from vlaa_jax.rewards.pool import KillablePool
pool = KillablePool("pool_tasks:misbehave", workers=2, timeout_s=60)
futures = [pool.submit("deaf") for _ in range(3)]
while sum(worker.done for worker in list(pool.workers)) < 2:
    time.sleep(0.01)
print(*(worker.process.pid for worker in pool.workers), flush=True)
{ending}
"""

ENDINGS = {
    "falls off the end": "",
    "sys.exit": "sys.exit(3)",
    "uncaught error": "raise RuntimeError('boom')",
    "sys.exit in a thread of its own": "t = threading.Thread(target=sys.exit); t.start(); t.join()",
    "killed": "os.kill(os.getpid(), 9)",
    "os._exit": "os._exit(0)",
    "interrupted while waiting": "os.kill(os.getpid(), 2); futures[0].result()",
    "terminated while waiting": "os.kill(os.getpid(), 15); futures[0].result()",
    "killed with a fork that holds its sockets": (
        "pid = os.fork()\nif pid == 0:\n    time.sleep(8); os._exit(0)\nos.kill(os.getpid(), 9)"
    ),
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
def test_no_process_outlives_its_parent_however_that_ends(ending):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(ending=ending)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    pids = list(map(int, child.stdout.readline().split()))
    assert len(pids) == 2
    child.wait(timeout=30)
    assert wait_until(lambda: not any(map(is_alive, pids)))
    child.stdout.close()


def test_a_forked_copy_of_the_parent_does_not_end_its_pool(make_pool):
    pool = make_pool(workers=1)
    assert pool.map([["echo", 1]])[0].value == 1
    pid = os.fork()
    if pid == 0:
        pool.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert pool.map([["echo", 2]])[0].value == 2


def test_a_pool_that_nobody_uses_any_more_is_closed():
    pool = KillablePool("pool_tasks:misbehave", workers=1)
    told, workers = pool.submit(["sleep", 0.2]), pool.workers
    del pool  # what still runs holds it, and lets it go on its own event loop
    assert told.result(timeout=20).value == 0.2
    assert wait_until(lambda: not workers)


def test_nothing_but_json_crosses_the_pipe(make_pool):
    pool = make_pool(workers=1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        pool.submit(object())
    assert json.loads(json.dumps(pool.map([["echo", {"k": [1]}]])[0].value)) == {"k": [1]}
