"""A histogram of perplexities as a PNG, where matplotlib is installed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vlaa_jax import disk


def write_histogram(
    path: Path, series: Mapping[str, Sequence[float]], cuts: Mapping[int, float]
) -> Path | None:
    """Writes the distribution of each series over a logarithmic axis.

    Args:
        path: PNG to write.
        series: positive values by name.
        cuts: marks on the axis of values, by how many lie above.

    Returns:
        The path, or None where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    every = np.concatenate([np.asarray(values) for values in series.values()])
    low, high = float(every.min()), float(every.max())
    edges = np.geomspace(low, max(high, low * 1.001), 61)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in series.items():
        axes.hist(values, edges.tolist(), alpha=0.6, label=name)
    for number, cut in cuts.items():
        axes.axvline(cut, color="black", linewidth=0.8)
        axes.annotate(
            f"top {number:,}", (cut, 0.97), xycoords=("data", "axes fraction"), fontsize=8
        )
    axes.set(xscale="log", xlabel="perplexity of the answer", ylabel="records")
    axes.legend(fontsize=8)
    with disk.writing(path, "wb") as file:
        figure.savefig(file, dpi=110, format="png")
    return path
