"""Signals at awkward times: after the work is done, and where an exception cannot get out."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
START = """
    import atexit, os, signal, threading, time
    from vlaa_jax.main import interruptible

    def term():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)  # where a signal is taken
"""


def run(script):
    code = textwrap.dedent(START) + textwrap.dedent(script)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100
    )


@pytest.mark.parametrize(
    "last",
    [
        "atexit.register(term)",
        "threading.Thread(target=lambda: (threading.main_thread().join(0.5), term())).start()",
        "kept = type('Last', (), {'__del__': lambda self, term=term: term()})()",
    ],
    ids=["at exit", "while threads end", "in a finalizer"],
)
def test_a_signal_after_the_work_says_nothing_and_fails_nothing(last):
    done = run(f"{last}\nwith interruptible():\n    pass\nprint('done')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_an_interrupt_that_a_finalizer_swallows_comes_again():
    done = run("""
        class Slow:
            def __del__(self):
                term()

        try:
            with interruptible():
                Slow()
                time.sleep(50)
                print("slept on")
        except KeyboardInterrupt:
            print("left")
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")


def test_an_interrupt_comes_behind_what_must_not_be_divided():
    """Of two, the first; and those that come later are heard at once again."""
    done = run("""
        from vlaa_jax.parallel.hosts import undivided

        with interruptible():
            for turn in range(2):
                try:
                    with undivided():
                        term()
                        term()
                        print("whole", end=" ")
                    print("slept on")
                except KeyboardInterrupt:
                    print("left", end=" ")
            try:
                term()
                print("slept on")
            except KeyboardInterrupt:
                print("left")
            with undivided():
                print("nothing came")
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "whole left whole left left\nnothing came\n"
