"""The curves of a run as one PNG, where matplotlib is installed (the extra ``plots``)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vlaa_jax import disk

FILE = "curves.png"
PANELS: Sequence[tuple[str, tuple[str, ...]]] = (
    ("reward, training", ("reward/",)),
    ("reward, held out", ("heldout/",)),
    ("loss", ("train/loss", "validation/loss")),
    ("KL to the reference", ("policy/kl",)),
    ("entropy, nats", ("policy/entropy",)),
    ("completion length, tokens", ("rollout/length_mean",)),
    ("gradient norm", ("train/grad_norm",)),
    ("learning rate", ("train/lr",)),
)
"""Title of each panel, and the metrics it shows: whole names, or what they begin with."""
_NO_REWARD = ("_frac", "pass_at_n")


def write_plot(workdir: Path, rows: Sequence[Mapping[str, float]]) -> Path | None:
    """Writes WORKDIR/curves.png from the lines of metrics.jsonl.

    Returns:
        The path, or None where matplotlib is missing or nothing was measured.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    panels = [(title, names) for title, wanted in PANELS if (names := _shown(rows, wanted))]
    if not panels:
        return None
    across = min(len(panels), 4)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(4.2 * across, 3 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).reshape(-1)
    for axes, (title, names) in zip(grid, panels, strict=False):
        for name in names:
            points = [(row["step"] + 1, row[name]) for row in rows if name in row]
            steps, values = zip(*points, strict=True)
            axes.plot(
                steps, values, linewidth=1, marker="." if len(points) < 20 else "", label=name
            )
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        if len(names) > 1:
            axes.legend(fontsize=6)
    for axes in grid[len(panels) :]:
        axes.remove()
    with disk.writing(workdir / FILE, "wb") as file:
        figure.savefig(file, dpi=110, format="png")
    return workdir / FILE


def _shown(rows: Sequence[Mapping[str, float]], wanted: Sequence[str]) -> list[str]:
    known = sorted({name for row in rows for name in row if not name.endswith(_NO_REWARD)})
    return [
        name
        for name in known
        if any(name == one or (one.endswith("/") and name.startswith(one)) for one in wanted)
    ]
