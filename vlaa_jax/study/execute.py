"""Runs the commands of a study one after the other; what fails is said, and the others go on."""

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from vlaa_jax import disk
from vlaa_jax.study.grid import Step

DONE, FAILED, SKIPPED = "done", "failed", "skipped"
LOG, STATE = "command.log", "command.json"
_END_S = 120


def execute(
    found: Sequence[Step], threads: int, console: Console
) -> tuple[dict[str, str], dict[str, str]]:
    """Runs what is not done yet.

    A command is done when it ended well with the same words; one that was cut off goes on in its
    own run directory.

    Args:
        found: the steps, each behind the one it needs.
        threads: of a command's linear algebra; 0: as many as the libraries take.
        console: where people read along.

    Returns:
        What became of each step, and why those failed that did.
    """
    became: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for number, step in enumerate(found, 1):
        head = f"{number}/{len(found)}  {step.name}"
        if step.needs and became.get(step.needs, DONE) != DONE:
            became[step.name] = SKIPPED
            reasons[step.name] = f"{step.needs} did not end well"
        elif _is_done(step):
            became[step.name] = DONE
            continue
        else:
            console.print(head, highlight=False)
            became[step.name], reason = _run(step, threads)
            reasons |= {step.name: reason} if reason else {}
        if step.name in reasons:
            said = f"{head}: {became[step.name]}, {reasons[step.name]}"
            console.print(said, highlight=False, soft_wrap=True)
    return became, reasons


def state_of(step: Step) -> dict[str, object]:
    """What is written of a step that ended; empty where it never did."""
    try:
        found = json.loads((step.workdir / STATE).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _is_done(step: Step) -> bool:
    state = state_of(step)
    return state.get("state") == DONE and state.get("words") == list(step.words[1:])


def _run(step: Step, threads: int) -> tuple[str, str]:
    """DONE or FAILED, and the reason of the latter: the command's last words."""
    step.workdir.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with (step.workdir / LOG).open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            step.words, stdout=log, stderr=subprocess.STDOUT, env=_environment(threads)
        )
        try:
            code = process.wait()
        except BaseException:
            process.terminate()  # it saves what it has, as after Ctrl-C
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise
    became, reason = (DONE, "") if code == 0 else (FAILED, _last_words(step.workdir / LOG, code))
    state = {
        "state": became,
        "reason": reason,
        "seconds": round(time.monotonic() - began, 1),
        "words": list(step.words[1:]),
    }
    disk.write_json(step.workdir / STATE, state)
    return became, reason


def _environment(threads: int) -> Mapping[str, str]:
    if not threads:
        return os.environ
    flags = os.environ.get("XLA_FLAGS", "")
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    one = f"{flags} --xla_cpu_multi_thread_eigen=false".strip() if threads == 1 else flags
    return {**os.environ, **dict.fromkeys(names, str(threads)), "XLA_FLAGS": one}


def _last_words(log: Path, code: int) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    said = lines[-1].removeprefix("vlaa_jax: ")[:300] if lines else "no words"
    return f"exit status {code}: {said} (all of it in {log})"
