"""What a run says on the terminal."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

from jax.sharding import Mesh
from rich.table import Table

from vlaa_jax.schema import VERIFIER_TYPES

WRITTEN = (
    ("config.json", "the settings", ""),
    ("metrics.jsonl", "the numbers of every step", "tail -n 1 {run}/metrics.jsonl"),
    ("heldout.json", "held-out rewards before and after", "cat {run}/heldout.json"),
    ("rollouts", "what was sampled, and what for it was paid", "{report} --serve"),
    ("heldout", "answers to held-out records", "{report} --serve"),
    ("report.html", "all of it on one page, for a browser", "{report} writes it anew"),
    ("curves.png", "curves over the steps", ""),
    ("tensorboard", "the same numbers, and samples", "tensorboard --logdir {run}/tensorboard"),
    ("wandb", "the same numbers", "wandb sync {run}/wandb/latest-run, of an offline run"),
    ("checkpoints", "the trained weights", "python -m converters jax-to-hf {run} OUT_DIR"),
    ("hf", "tokenizer and configuration, for export", ""),
    ("data", "the drawn records and images", ""),
    ("rejects-*.txt", "records that were left out, and why", "cat {run}/rejects-*.txt"),
)
"""What may lie in a run directory: name, what it is, the command that shows or uses it."""


def written(run: Path) -> Iterator[str]:
    """A line for everything in a run directory that a person may want."""
    report = f"python -m vlaa_jax.report {run}"
    for pattern, what, command in WRITTEN:
        names = sorted(p.name for p in run.iterdir() if fnmatch(p.name, pattern))
        for name in names:
            mark = "/" if (run / name).is_dir() else ""
            line = f"  {name + mark:<15} {what:<43} {command.format(run=run, report=report)}"
            yield line.rstrip()


def heldout_table(kept: Mapping[str, Mapping[str, float]]) -> Table:
    """Held-out rewards beside the best constant answers, and benchmarks, before and after."""
    table = Table(title="held-out reward, unshaped")
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
    mesh: Mesh,
) -> str:
    """What is about to run: where, on which model, how much of it trains, on what, cut how.

    Args:
        workdir: the run directory.
        name: the checkpoint.
        trained: parameters that train.
        parameters: all of them.
        records: their number by verifier type, or under one name.
        mesh: the devices.
    """
    counts = ", ".join(f"{n:,} {kind}" for kind, n in sorted(records.items()))
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    devices = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    share = (
        "all" if trained == parameters else f"{trained / 1e6:,.2f} M ({trained / parameters:.1%})"
    )
    return (
        f"run        {workdir}\n"
        f"model      {name}: {parameters / 1e6:,.2f} M parameters, {share} train\n"
        f"records    {sum(records.values()):,}: {counts}\n"
        f"devices    {devices}, mesh {axes}"
    )


def minutes(seconds: float) -> str:
    """``3m05s``."""
    whole, rest = divmod(round(seconds), 60)
    return f"{whole}m{rest:02d}s"
