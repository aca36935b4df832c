"""Commands one after the other: real processes that fail, are skipped, killed and resumed."""

import json
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from rich.console import Console

from vlaa_jax.study.execute import DONE, FAILED, SKIPPED, STATE, execute
from vlaa_jax.study.grid import Cell, Step

QUIET = Console(quiet=True)
APPEND = "import sys; open(sys.argv[1] + '/ran', 'a').write('x')"


def step(root, name, code=APPEND, needs=""):
    return Step(
        name, Cell("m", 0, name), (sys.executable, "-c", code, str(root / name)), root / name, needs
    )


def test_a_failing_command_says_why_and_stops_only_what_needs_it(tmp_path):
    grid = [
        step(tmp_path, "bad", "import sys; print('step 1'); sys.exit('vlaa_jax: no such file')"),
        step(tmp_path, "after-bad", needs="bad"),
        step(tmp_path, "good"),
        step(tmp_path, "after-good", needs="good"),
    ]
    became, reasons = execute(grid, 0, QUIET)
    assert list(became.values()) == [FAILED, SKIPPED, DONE, DONE]
    assert reasons["bad"].startswith("exit status 1: no such file")
    assert reasons["after-bad"] == "bad did not end well"
    assert set(reasons) == {"bad", "after-bad"}
    assert not (tmp_path / "after-bad").exists()


def test_what_is_done_is_not_done_again_unless_it_is_another_command(tmp_path):
    grid = [step(tmp_path, "a"), step(tmp_path, "b")]
    execute(grid, 0, QUIET)
    other = step(tmp_path, "b", APPEND.replace("'x'", "'y'"))
    assert execute([grid[0], other], 0, QUIET)[0] == {"a": DONE, "b": DONE}
    assert (tmp_path / "a" / "ran").read_text() == "x"
    assert (tmp_path / "b" / "ran").read_text() == "xy"
    assert json.loads((tmp_path / "a" / STATE).read_text())["state"] == DONE


def test_a_failed_command_is_tried_again(tmp_path):
    code = "import os, sys; p = sys.argv[1] + '/ok'; e = os.path.exists(p); open(p, 'w')"
    code = f"{code}; sys.exit(not e)"
    grid = [step(tmp_path, "a", code)]
    assert execute(grid, 0, QUIET)[0] == {"a": FAILED}
    assert execute(grid, 0, QUIET)[0] == {"a": DONE}


def test_threads_are_passed_on(tmp_path):
    code = "import os, sys; sys.exit(os.environ['OMP_NUM_THREADS'] != '1')"
    assert execute([step(tmp_path, "a", code)], 1, QUIET)[0] == {"a": DONE}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_study_that_is_stopped_goes_on_with_the_command_that_was_cut_off(tmp_path, number):
    """The child is told to end before a study ends; killed hard, a study starts it anew."""
    child = f"{APPEND}; import time; time.sleep(float(sys.argv[2]))"
    script = textwrap.dedent(f"""
        import signal, sys
        from pathlib import Path
        from rich.console import Console
        from vlaa_jax.study.execute import execute
        from vlaa_jax.study.grid import Cell, Step
        signal.signal(signal.SIGINT, signal.default_int_handler)
        root = Path({str(tmp_path)!r})
        def step(name, seconds):
            words = (sys.executable, "-c", {child!r}, str(root / name), seconds)
            return Step(name, Cell("m", 0, name), words, root / name, "")
        seconds = "0" if (root / "quick").exists() else "30"
        execute([step("first", "0"), step("second", seconds)], 0, Console(quiet=True))
    """)
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 120
    while not (tmp_path / "second" / "ran").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) != 0
    (tmp_path / "quick").touch()
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 0
    assert (tmp_path / "first" / "ran").read_text() == "x"
    assert (tmp_path / "second" / "ran").read_text() == "xx"
