"""Hours of a study's training commands on a topology that need not be at hand, by the planner."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlaa_jax.schema import UserError
from vlaa_jax.settings.study import StudySettings
from vlaa_jax.study.grid import Step


@dataclass(frozen=True)
class Hours:
    """Of one command: seconds of a step, hours of all where its length is known, and whether it
    fits the devices."""

    step_s: float
    run_h: float
    fits: bool


def estimates(grid: Sequence[Step], settings: StudySettings) -> dict[str, Hours]:
    """By name of the step. Commands that differ in seed or starting point alone are planned once.

    Raises:
        UserError: the planner refuses a command.
    """
    planned: dict[tuple[str, ...], Hours] = {}
    found = {}
    for step in grid:
        if not step.evaluation:
            words = tuple(_plan_words(step, settings))
            if words not in planned:
                planned[words] = _planned(words)
            found[step.name] = planned[words]
    return found


def lines(found: dict[str, Hours], settings: StudySettings) -> Iterator[str]:
    """A line for each command, and the sum of those whose length is known."""
    for name, hours in found.items():
        length = f"{hours.run_h:.1f} h" if hours.run_h else "length unknown until data is read"
        fits = "" if hours.fits else ", DOES NOT FIT"
        yield f"{name}: {hours.step_s:.1f} s a step, {length}{fits}"
    total = sum(hours.run_h for hours in found.values())
    price = f", {total * settings.run.hour_usd:,.0f} USD" if settings.run.hour_usd else ""
    unknown = sum(not hours.run_h for hours in found.values())
    rest = f", and {unknown} commands of unknown length" if unknown else ""
    yield f"{settings.run.topology}, by formulas: {total:.1f} h of training{price}{rest}"


def _plan_words(step: Step, settings: StudySettings) -> Iterator[str]:
    """The planner's command: any starting point is as large as the model itself."""
    yield from (step.words[0], "-m", "vlaa_jax.plan")
    for word in step.words[3:]:
        if word.startswith("--config.model.checkpoint="):
            yield f"--config.model.checkpoint={settings.models[step.cell.model]}"
        elif not word.startswith(("--workdir=", "--config.seed=")):
            yield word
    yield from ("--quick", f"--topology={settings.run.topology}")


def _planned(words: tuple[str, ...]) -> Hours:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        done = subprocess.run(
            [*words, f"--json={file}"],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        if not file.exists():
            said = (done.stderr.strip().splitlines() or ["no words"])[-1]
            raise UserError(f"run.topology: the planner says: {said.removeprefix('vlaa_jax: ')}")
        plan = json.loads(file.read_text(encoding="utf-8"))
    return Hours(float(plan["step_s"]), float(plan["run_h"]), bool(plan["fits"]))
