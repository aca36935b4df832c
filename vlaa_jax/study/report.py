"""The report of a study: CSV, PNG, and one page that stands alone."""

import base64
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2

from vlaa_jax import disk
from vlaa_jax.settings.study import StudySettings
from vlaa_jax.study.analysis import MEAN, Arm, Controls, Value
from vlaa_jax.study.paper import COLUMNS, PaperArm, paper_arm
from vlaa_jax.study.plots import write_plots
from vlaa_jax.study.read import CUES

_PAGE = Path(__file__).parent / "report.html.jinja"
_TITLES = ("MathVista", "MathVision", "MathVerse", "DynaMath", "WeMath", "LogicVista")


def write_report(
    arms: Sequence[Arm], reasons: Mapping[str, str], settings: StudySettings, workdir: Path
) -> None:
    """Writes values.csv, controls.csv, cues.csv, report.json, PNGs and report.html."""
    _write_csv(workdir / "values.csv", list(value_rows(arms)))
    _write_csv(workdir / "controls.csv", list(control_rows(arms)))
    _write_csv(workdir / "cues.csv", list(cue_rows(arms)))
    plots = write_plots(arms, workdir)
    disk.write_json(workdir / "report.json", [_plain(arm) for arm in arms])
    disk.write_text(workdir / "report.html", page(arms, plots, reasons, settings))


def page(
    arms: Sequence[Arm],
    plots: Sequence[Path],
    reasons: Mapping[str, str],
    settings: StudySettings,
) -> str:
    """The HTML page; images are inside it."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_PAGE.read_text(encoding="utf-8"))
    images = [
        (path.stem.replace("_", " "), base64.b64encode(path.read_bytes()).decode())
        for path in plots
    ]
    return template.render(
        settings=settings,
        arms=arms,
        tables=[(key, *_table(arms, key)) for key in settings.evaluations],
        controls=list(control_rows(arms)),
        cues=list(cue_rows(arms)) if any(arm.rollouts for arm in arms) else [],
        paper=list(paper_rows(arms)),
        images=images,
        reasons=reasons,
    )


def _table(arms: Sequence[Arm], key: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one evaluation."""
    columns = dict.fromkeys(c for arm in arms for k, c in arm.values if k == key)
    rows = []
    for arm in arms:
        cells = [_cell(arm.values.get((key, column))) for column in columns]
        rows.append([arm.model, arm.name, str(len(arm.seeds)), *cells])
    return ["model", "arm", "seeds", *columns], rows


def _cell(value: Value | None) -> str:
    if value is None:
        return "–"
    several = len(value.per_seed) > 1
    span = f" [{value.mean.low:.1f}, {value.mean.high:.1f}]" if several else ""
    text = f"{value.mean.value:.1f}{span}"
    if value.difference is not None:
        text += f"; {value.difference.value:+.1f} (p {value.difference.p_value:.2g})"
    return text


def value_rows(arms: Sequence[Arm]) -> Iterator[list[Any]]:
    """A header, and a row for each arm, evaluation and column."""
    yield [
        *("model", "arm", "evaluation", "column", "seeds", "value", "low", "high"),
        *("difference", "difference_low", "difference_high", "p_questions", "p_seeds"),
        *("relative_percent", "paper"),
    ]
    for arm in arms:
        paper = paper_arm(arm.model, arm.name)
        for (key, column), value in arm.values.items():
            gap, seeds = value.difference, value.over_seeds
            yield [
                *(arm.model, arm.name, key, column, len(value.per_seed)),
                *(value.mean.value, value.mean.low, value.mean.high),
                *((gap.value, gap.low, gap.high, gap.p_value) if gap else ("",) * 4),
                seeds.p_value if seeds else "",
                "" if value.relative is None else value.relative,
                _paper_cell(paper, column),
            ]


def _paper_cell(paper: PaperArm | None, column: str) -> float | str:
    if paper is None or column not in (*COLUMNS, MEAN):
        return ""
    return paper.average if column == MEAN else paper.cells[COLUMNS.index(column)]


def control_rows(arms: Sequence[Arm]) -> Iterator[list[Any]]:
    """A header, and a row for each arm and evaluation."""
    names = [name for name in Controls.__dataclass_fields__ if name != "pass_at"]
    powers = sorted({k for arm in arms for one in arm.controls.values() for k in one.pass_at})
    yield ["model", "arm", "evaluation", *names, *(f"pass@{k}" for k in powers)]
    for arm in arms:
        for key, one in arm.controls.items():
            values = [getattr(one, name) for name in names]
            passes = [one.pass_at.get(k) for k in powers]
            yield [arm.model, arm.name, key, *(_shown(v) for v in (*values, *passes))]


def _shown(value: Any) -> Any:
    return "" if value is None else round(value, 2)


def cue_rows(arms: Sequence[Arm]) -> Iterator[list[Any]]:
    """A header, and for each arm that explored, how many of its outputs held each cue."""
    yield ["model", "arm", "outputs", *CUES]
    for arm in arms:
        if arm.rollouts:
            yield [arm.model, arm.name, arm.rollouts, *(arm.cues[cue] for cue in CUES)]


def paper_rows(arms: Sequence[Arm]) -> Iterator[list[str]]:
    """The paper's arms and ours of the same model and name, benchmark by benchmark."""
    for arm in arms:
        paper = paper_arm(arm.model, arm.name)
        if paper is None:
            continue
        for key in dict.fromkeys(k for k, c in arm.values if c in COLUMNS):
            ours = [arm.values.get((key, column)) for column in COLUMNS]
            known = [f"{v.mean.value:.1f}" if v else "–" for v in ours]
            yield [arm.model, arm.name, f"ours, {key}", *known]
        yield [arm.model, arm.name, f"paper, {paper.source}", *map(str, paper.cells)]


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with disk.writing(path, newline="") as file:
        csv.writer(file).writerows(rows)


def _plain(arm: Arm) -> dict[str, Any]:
    values = {"/".join(key): asdict(value) for key, value in arm.values.items()}
    controls = {key: asdict(one) for key, one in arm.controls.items()}
    return {
        **{"model": arm.model, "arm": arm.name, "seeds": arm.seeds},
        **{"values": values, "controls": controls, "curves": dict(arm.curves)},
        **{"cues": dict(arm.cues), "rollouts": arm.rollouts},
    }
