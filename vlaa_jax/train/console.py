"""What a run says on the terminal."""

from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from vlaa_jax.schema import VERIFIER_TYPES


def heldout_table(kept: Mapping[str, Mapping[str, float]]) -> Table:
    """Held-out rewards beside the best constant answers, and benchmarks, before and after."""
    table = Table(title="held-out reward")
    for column in ("verifier", "constant answer", "before", "after", "change"):
        table.add_column(column, justify="left" if column == "verifier" else "right")
    before, after = kept.get("before", {}), kept.get("after", {})
    constant = kept.get("constant", {})
    names = {key.removeprefix("heldout/") for key in after if key.startswith("heldout/")}
    kinds = sorted(names & set(VERIFIER_TYPES))
    for part in (kinds, sorted(names & {"mean"}), sorted(names - {*kinds, "mean"})):
        for name in part:
            old, new = before.get(f"heldout/{name}", float("nan")), after[f"heldout/{name}"]
            bar = f"{constant[name]:.3f}" if name in constant else ""
            table.add_row(name, bar, f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}")
        table.add_section()
    for key in sorted(key for key in after if key.startswith("benchmark/")):
        if key.endswith("_unknown_frac") and not after[key]:
            continue
        old, new = before.get(key, float("nan")), after[key]
        table.add_row(key, "", f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}")
    return table


def header(
    workdir: Path,
    name: str,
    trained: int,
    parameters: int,
    records: Mapping[str, int],
    mesh: Mapping[str, int],
) -> str:
    """What is about to run: where, on which model, how much of it trains, on what, cut how.

    Args:
        workdir: the run directory.
        name: the checkpoint.
        trained: parameters that train.
        parameters: all of them.
        records: their number by verifier type, or under one name.
        mesh: sizes of the axes.
    """
    counts = ", ".join(f"{n} {kind}" for kind, n in sorted(records.items()))
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.items())
    return (
        f"run        {workdir}\n"
        f"model      {name}: {parameters / 1e6:,.1f} M parameters, {trained / 1e6:,.1f} M train\n"
        f"records    {counts}\n"
        f"mesh       {axes}"
    )


def minutes(seconds: float) -> str:
    """``3m05s``."""
    whole, rest = divmod(round(seconds), 60)
    return f"{whole}m{rest:02d}s"
