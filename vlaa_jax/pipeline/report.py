"""The tables of a finished run: counts in the paper's form, rejects by reason, costs by step."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vlaa_jax import disk
from vlaa_jax.pipeline.estimate import StepEstimate
from vlaa_jax.pipeline.ledger import StepCost
from vlaa_jax.pipeline.sources import SOURCES
from vlaa_jax.pipeline.split import Tally

COUNTS, SUMMARY = "counts.md", "summary.json"
_HEAD = ("source", "original", "after pipeline", "SFT", "RL", "aha-SFT", "failed")


def counts_rows(originals: Mapping[str, int], tally: Tally) -> list[list[str]]:
    """A row per source and their total: ours, and the paper's in brackets (Table 1)."""
    rows = []
    columns = (originals, tally.kept, tally.sft, tally.rl, tally.aha_sft, tally.failed)
    for name in originals:
        published = (*SOURCES[name].published, None, None)
        pairs = zip((column.get(name, 0) for column in columns), published, strict=True)
        rows.append([SOURCES[name].title, *(_cell(count, paper) for count, paper in pairs)])
    papers = zip(*(SOURCES[name].published for name in originals), strict=True)
    sums = (*(sum(count or 0 for count in column) or None for column in papers), None, None)
    totals = zip((sum(column.values()) for column in columns), sums, strict=True)
    return [*rows, ["total", *(_cell(count, paper) for count, paper in totals)]]


def _cell(count: int, paper: int | None) -> str:
    return f"{count:,}" if paper is None else f"{count:,} ({paper:,})"


def write_report(
    workdir: Path,
    originals: Mapping[str, int],
    tally: Tally,
    costs: Mapping[str, StepCost],
    stopped: str,
    pending: int,
) -> None:
    """Write ``counts.md`` and ``summary.json``."""
    parts = [
        "# Counts\n\nOurs (the paper's).\n",
        _markdown(_HEAD, counts_rows(originals, tally)),
        "\n# Left out\n",
        _markdown(("step", "reason", "samples"), _reasons(tally)),
        "\n# Costs\n",
        _markdown(("step", *StepCost.__dataclass_fields__), _cost_rows(costs)),
    ]
    if stopped:
        parts.append(f"\nStopped before the end, {pending:,} samples are left: {stopped}\n")
    disk.write_text(workdir / COUNTS, "\n".join(parts))
    summary = {
        "originals": dict(originals),
        **{name: dict(getattr(tally, name)) for name in ("kept", "sft", "aha_sft", "rl", "failed")},
        "dropped": [[*key, count] for key, count in sorted(tally.dropped.items())],
        "costs": {step: asdict(cost) for step, cost in costs.items()},
        "stopped": stopped,
        "pending": pending,
    }
    disk.write_json(workdir / SUMMARY, summary)


def show_report(
    console: Console, originals: Mapping[str, int], tally: Tally, costs: Mapping[str, StepCost]
) -> None:
    """The same on the console."""
    for title, head, rows in (
        ("counts, the paper's in brackets", _HEAD, counts_rows(originals, tally)),
        ("left out", ("step", "reason", "samples"), _reasons(tally)),
        ("costs", ("step", *StepCost.__dataclass_fields__), _cost_rows(costs)),
    ):
        table = Table(*head, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def show_estimate(console: Console, expected: Mapping[str, StepEstimate]) -> None:
    """What a dry run expects."""
    table = Table(
        *("step", "calls", "prompt tokens", "completion tokens", "cost", "reckoned from"),
        title="still to be asked",
    )
    for step, one in expected.items():
        counts = (one.calls, one.prompt_tokens, one.completion_tokens)
        basis = "recorded replies" if one.measured else "settings"
        table.add_row(step, *(f"{count:,.0f}" for count in counts), f"${one.cost:,.2f}", basis)
    table.add_row("total", "", "", "", f"${sum(one.cost for one in expected.values()):,.2f}", "")
    console.print(table)


def _reasons(tally: Tally) -> list[list[str]]:
    counts: Counter[tuple[str, str]] = Counter()
    for (_, step, reason), count in tally.dropped.items():
        counts[step, reason] += count
    return [[step, reason, f"{count:,}"] for (step, reason), count in counts.most_common()]


def _cost_rows(costs: Mapping[str, StepCost]) -> list[list[str]]:
    rows = [
        [step, *(f"{value:,}" for value in list(asdict(cost).values())[:-1]), f"${cost.cost:,.4f}"]
        for step, cost in costs.items()
    ]
    return [*rows, ["total", "", "", "", "", f"${sum(c.cost for c in costs.values()):,.4f}"]]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)
