"""The pictures of a study, where matplotlib is installed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlaa_jax import disk
from vlaa_jax.study.analysis import MEAN, Arm
from vlaa_jax.study.read import PAPER_CUES

_CURVES = {"reward/mean": "training reward", "rollout/length_mean": "tokens of an output"}


def write_plots(arms: Sequence[Arm], workdir: Path) -> list[Path]:
    """Writes accuracy, reward and length curves, and counts of cues; none without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    written = []
    for key in dict.fromkeys(key for arm in arms for key, _ in arm.values):
        figure = Figure(figsize=(9, 4), layout="constrained")
        _bars(figure.subplots(), arms, key)
        written.append(_save(figure, workdir / f"{key}.png"))
    if any(name in arm.curves for arm in arms for name in _CURVES):
        figure = Figure(figsize=(9, 4), layout="constrained")
        for axes, (name, title) in zip(figure.subplots(1, 2), _CURVES.items(), strict=True):
            _curves(axes, arms, name, title)
        written.append(_save(figure, workdir / "curves.png"))
    if any(arm.rollouts for arm in arms):
        figure = Figure(figsize=(9, 3.5), layout="constrained")
        _cues(figure.subplots(), [arm for arm in arms if arm.rollouts])
        written.append(_save(figure, workdir / "aha_expressions.png"))
    return written


def _save(figure: Any, path: Path) -> Path:
    with disk.writing(path, "wb") as file:
        figure.savefig(file, dpi=100, format="png")
    return path


def _label(arm: Arm, arms: Sequence[Arm]) -> str:
    return arm.name if len({one.model for one in arms}) == 1 else f"{arm.model} {arm.name}"


def _bars(axes: Any, arms: Sequence[Arm], key: str) -> None:
    found = dict.fromkeys(c for arm in arms for k, c in arm.values if k == key)
    columns = [column for column in found if column != MEAN] + [MEAN]
    width = 0.8 / len(arms)
    for number, arm in enumerate(arms):
        values = [arm.values.get((key, column)) for column in columns]
        places = [i + number * width for i, v in enumerate(values) if v]
        means = [v.mean for v in values if v]
        heights = [mean.value for mean in means]
        spans = [[m.value - m.low for m in means], [m.high - m.value for m in means]]
        errors = spans if len(arm.seeds) > 1 else None
        axes.bar(places, heights, width, yerr=errors, capsize=2, label=_label(arm, arms))
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(columns))], columns)
    axes.set(ylabel="percent", title=f"{key}: mean over seeds, 95 % interval")
    axes.legend(fontsize=8)


def _curves(axes: Any, arms: Sequence[Arm], name: str, title: str) -> None:
    for number, arm in enumerate(arm for arm in arms if name in arm.curves):
        for place, curve in enumerate(arm.curves[name]):
            label = None if place else _label(arm, arms)
            axes.plot(curve, color=f"C{number}", alpha=0.7, label=label)
    axes.set(xlabel="step", title=title)
    if axes.lines:
        axes.legend(fontsize=8)


def _cues(axes: Any, arms: Sequence[Arm]) -> None:
    width = 0.8 / len(PAPER_CUES)
    for number, cue in enumerate(PAPER_CUES):
        shares = [100 * arm.cues[cue] / arm.rollouts for arm in arms]
        axes.bar([i + number * width for i in range(len(arms))], shares, width, label=cue)
    axes.set_xticks([i + 0.3 for i in range(len(arms))], [_label(arm, arms) for arm in arms])
    axes.set(ylabel="percent of outputs", title="aha expressions during training")
    axes.legend(fontsize=8)
