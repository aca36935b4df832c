"""A plan in words: a table of programs, what is assumed, and the verdict."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from vlaa_jax.plan.chips import GIB, Chip
from vlaa_jax.plan.plan import Plan
from vlaa_jax.settings.sft import SftSettings

GOAL_SENT = 2**16
"""Collectives that send less in one turn are left out of the table."""


def print_plan(plan: Plan, settings: Any, console: Console) -> None:
    """The table and the verdict of a plan."""
    source = "compiled" if plan.compiled else "by formulas, nothing compiled"
    cut = plan.cut
    title = (
        f"{cut.devices} x {plan.chip.name}, mesh {cut.data} x {cut.fsdp} x {cut.tensor}, "
        f"{plan.attention} attention ({source})"
    )
    table = Table(title=title)
    for column in ("program", "runs a step", "GiB a device", "s a step", "limit"):
        table.add_column(column, justify="left" if column in ("program", "limit") else "right")
    for row in plan.rows:
        seconds = f"{row.runs * row.time.total:.1f}"
        table.add_row(row.name, str(row.runs), f"{row.bytes / GIB:.2f}", seconds, row.time.limit)
    console.print(table)
    for row in plan.rows:
        if row.error:
            console.print(f"{row.name}: does not compile: {row.error}", markup=False)
        for kind, sent in sorted(row.moved.items()):
            if sent >= GOAL_SENT:
                console.print(f"{row.name}: {kind}: {sent / 2**20:.1f} MiB a device", markup=False)
        for words, crossed in row.crossing[:3] if row.time.limit == "memory" else ():
            share = 100 * crossed / row.work.hbm
            console.print(f"{row.name}: {share:.0f} % of its memory traffic: {words}", markup=False)
    for line in (*assumptions(plan.chip, settings), *verdict(plan, settings)):
        console.print(line, highlight=False, soft_wrap=True)


def assumptions(chip: Chip, settings: Any) -> list[str]:
    """What the times rest on."""
    longest = f"every prompt and completion at its longest ({settings.rollout.max_new_tokens} new)"
    if isinstance(settings, SftSettings):
        longest = "every row full, with an image for every 1,024 tokens"
    return [
        f"assumed: {chip.peak / 1e12:.0f} TFLOP/s, {chip.hbm / 1e12:.2f} TB/s of memory, "
        f"{chip.link / 1e9:.0f} GB/s of collectives a device, one after the other; {longest}; "
        "no time for the host and the rewards"
    ]


def verdict(plan: Plan, settings: Any) -> list[str]:
    """Fits or not, seconds of a step, hours and cost of the run."""
    step = f"{settings.rollout.prompts} x {settings.rollout.completions}"
    if isinstance(settings, SftSettings):
        step = f"{settings.data.rows} rows of {settings.data.tokens_per_row} tokens"
    hours = plan.seconds * settings.run.steps / 3600
    cost = hours * plan.cut.devices * plan.chip.price
    room = f"{plan.peak / GIB:.2f} of {plan.chip.memory / GIB:.2f} GiB"
    lines = [
        f"{'fits' if plan.fits else 'does not fit'}: {room} a device",
        f"a step of {step}: {plan.seconds:.0f} s, limited by {plan.limit}; update at "
        f"{100 * plan.utilisation('gradients'):.0f} % of the peak (useful products)",
    ]
    if settings.run.steps:  # 0: an epoch, however long it is
        lines.append(
            f"{settings.run.steps} steps: {hours:.1f} h, about {cost:,.0f} USD at "
            f"{plan.chip.price:.2f} a device-hour (list price, on demand)"
        )
    return lines


def as_json(plan: Plan, settings: Any, topology: str, seconds: float) -> dict[str, Any]:
    """The figures of a plan, for a file."""
    return {
        "task": settings.task,
        "model": settings.model.checkpoint,
        "topology": topology,
        "mesh": list(plan.cut),
        "attention": plan.attention,
        "at_once": _at_once(settings),
        "compiled": plan.compiled,
        "fits": plan.fits,
        "peak_gib": round(plan.peak / GIB, 2),
        "memory_gib": round(plan.chip.memory / GIB, 2),
        "plan_s": round(seconds, 1),
        "step_s": round(plan.seconds, 1),
        "run_h": round(plan.seconds * settings.run.steps / 3600, 2),
        "limit": plan.limit,
        "update_mfu": round(plan.utilisation("gradients"), 3),
        "programs": {row.name: _row(row) for row in plan.rows},
    }


def _at_once(settings: Any) -> dict[str, int]:
    """Sizes of batches."""
    if isinstance(settings, SftSettings):
        return {"rows": settings.data.rows, "micro_rows": settings.data.rows_at_once}
    rollout = settings.rollout
    return {
        "batch_prompts": rollout.batch_prompts or rollout.prompts,
        "prefill_prompts": rollout.at_once,
        "micro_prompts": settings.micro_prompts,
        "rollout_tensor": rollout.tensor or settings.mesh.tensor,
    }


def _row(row: Any) -> dict[str, Any]:
    return {
        "runs": row.runs,
        "gib": round(row.bytes / GIB, 2),
        "argument_bytes": row.arguments,
        "compile_s": round(row.compiled, 1),
        "known": row.known,
        "hbm_gb": round(row.work.hbm / 1e9, 4),
        "seconds": [round(seconds, 4) for seconds in row.time],
        "crossing_gb": {words: round(crossed / 1e9, 2) for words, crossed in row.crossing},
        "sent_mib": {kind: round(sent / 2**20, 4) for kind, sent in row.moved.items()},
        **({"error": row.error} if row.error else {}),
    }


def print_ranking(found: Sequence[tuple[Any, Plan]], console: Console) -> None:
    """The best candidates of a search."""
    table = Table(title="ranked by formulas")
    for column in ("mesh", "batch", "prefill", "micro", "GiB a device", "s a step", "limit"):
        table.add_column(column)
    for own, plan in found[:10]:
        cut = plan.cut
        table.add_row(
            f"{cut.data} x {cut.fsdp} x {cut.tensor}",
            str(own.rollout.batch_prompts),
            str(own.rollout.at_once),
            str(own.micro_prompts),
            f"{plan.peak / GIB:.2f}",
            f"{plan.seconds:.0f}",
            plan.limit,
        )
    console.print(table)
