"""The task: the grid, its commands one after the other, and the report on what there is."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from vlaa_jax import disk
from vlaa_jax.schema import Summary, UserError
from vlaa_jax.settings.study import EMBEDDED, StudySettings
from vlaa_jax.study.analysis import analyse
from vlaa_jax.study.drawn import write_drawn
from vlaa_jax.study.estimate import estimates, lines
from vlaa_jax.study.execute import DONE, execute, state_of
from vlaa_jax.study.grid import Step, data_folder, steps, table
from vlaa_jax.study.read import read_cells
from vlaa_jax.study.report import write_report
from vlaa_jax.train.claim import check_settings, lock, plain


def run(settings: StudySettings, workdir: Path, console: Console) -> Summary:
    """Runs a study in a directory, from wherever that stands to the report.

    Raises:
        UserError: the directory holds another study, or no arm came to an end.
    """
    workdir = workdir.absolute()
    grid = steps(settings, workdir)
    if settings.run.dry_run:
        for line in table(grid):
            console.print(line, highlight=False, soft_wrap=True)
        if settings.run.topology:
            for line in lines(estimates(grid, settings), settings):
                console.print(line, highlight=False, soft_wrap=True)
        console.print(f"{len(grid)} commands")
        return Summary(workdir, {"commands": float(len(grid))})
    if settings.data != EMBEDDED and not data_folder(settings, workdir).is_dir():
        raise UserError(f"data: {settings.data!r} is no folder")
    release = lock(workdir)
    try:
        check_settings(workdir, settings)
        disk.write_json(workdir / "config.json", plain(settings))
        if settings.data == EMBEDDED:
            write_drawn(workdir / "data")
        try:
            became, reasons = execute(grid, settings.run.threads, console)
        except KeyboardInterrupt:
            became = {step.name: str(state_of(step).get("state", "")) for step in grid}
            waiting = {name: "not run yet" for name, state in became.items() if state != DONE}
            _report(grid, became, waiting, settings, workdir, console)
            raise
        return _report(grid, became, reasons, settings, workdir, console)
    finally:
        release()


def _report(
    grid: Sequence[Step],
    became: Mapping[str, str],
    reasons: Mapping[str, str],
    settings: StudySettings,
    workdir: Path,
    console: Console,
) -> Summary:
    """Writes the report on what is done so far."""
    ended = sum(state == DONE for state in became.values())
    figures = {"commands": float(len(grid)), "done": float(ended)}
    cells = read_cells(grid, became)
    if cells:
        write_report(analyse(cells, settings), reasons, settings, workdir)
        console.print(f"{ended} of {len(grid)} commands done; report: {workdir / 'report.html'}")
    elif reasons:
        first = next(iter(reasons.values()))
        raise UserError(f"no arm was evaluated; the first reason: {first}")
    return Summary(workdir, figures)
