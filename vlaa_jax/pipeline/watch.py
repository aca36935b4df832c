"""What people see while it runs: a live table on a terminal, a line now and then elsewhere."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Mapping

from rich.console import Console
from rich.live import Live
from rich.table import Table

from vlaa_jax.pipeline.client import Client
from vlaa_jax.pipeline.contract import Ask, CallFailed, Step
from vlaa_jax.pipeline.sample import Drop, Outcome, Sample

_LINE_EVERY_S = 30.0
_RATE_OVER_S = 30.0


class Watch:
    """Counts what steps do and shows it."""

    def __init__(self, total: int, console: Console) -> None:
        self.total, self._console = total, console
        self.done = 0
        self.kept: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.dropped: dict[str, Counter[str]] = {}
        self._began = time.monotonic()
        self._marks: deque[tuple[float, Counter[str], int]] = deque()

    def watched(self, steps: Mapping[str, Step]) -> dict[str, Step]:
        """The steps, counted."""
        return {name: self._watched(name, step) for name, step in steps.items()}

    def _watched(self, name: str, step: Step) -> Step:
        async def counted(sample: Sample, ask: Ask) -> Sample | Drop:
            try:
                result = await step(sample, ask)
            except CallFailed:
                self.failed[name] += 1
                raise
            if isinstance(result, Drop):
                self.dropped.setdefault(name, Counter())[result.reason] += 1
            else:
                self.kept[name] += 1
            return result

        return counted

    def note(self, outcome: Outcome) -> None:
        """Count a sample that is through."""
        self.done += 1

    async def show(self, client: Client, names: Mapping[str, str]) -> None:
        """Show the table until cancelled.

        Args:
            client: whose calls and spending are shown.
            names: model of each step.
        """
        if not self._console.is_terminal:
            while True:
                await asyncio.sleep(_LINE_EVERY_S)
                self._console.print(self.line(client), highlight=False)
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(self.table(client, names), refresh=True)
                await asyncio.sleep(0.5)

    def line(self, client: Client) -> str:
        """How far it is, in one line."""
        _, left = self._rates(client)
        calls = sum(client.calls.values())
        told = f"{self.done:,} of {self.total:,} samples  {calls:,} calls"
        return f"{told}  ${client.budget.spent:,.2f}  left {left}"

    def table(self, client: Client, names: Mapping[str, str]) -> Table:
        """A row per step."""
        rates, left = self._rates(client)
        table = Table(
            *(
                "step",
                "done",
                "kept",
                "dropped, by reason",
                "failed",
                "calls/s",
                "cost",
                "in flight",
            ),
            caption=f"{self.done:,} of {self.total:,}  ${client.budget.spent:,.2f}  left {left}",
        )
        windows = client.windows()
        for name, model in names.items():
            reasons = self.dropped.get(name, Counter())
            done = self.kept[name] + self.failed[name] + sum(reasons.values())
            told = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(3))
            flying, size, cap = windows[model]
            row = (f"{done:,}", f"{self.kept[name]:,}", told, f"{self.failed[name]:,}")
            pace = (f"{rates[name]:.1f}", f"${client.costs[name]:,.2f}")
            table.add_row(name, *row, *pace, f"{flying}/{size:.0f}/{cap}")
        return table

    def _rates(self, client: Client) -> tuple[dict[str, float], str]:
        """Calls per second of each step lately, and the time left."""
        now = time.monotonic()
        self._marks.append((now, Counter(client.calls), self.done))
        while len(self._marks) > 2 and self._marks[1][0] < now - _RATE_OVER_S:
            self._marks.popleft()
        then, calls, done = self._marks[0]
        passed = max(now - then, 1e-9)
        rates = {name: (client.calls[name] - calls[name]) / passed for name in client.steps}
        per_s = (self.done - done) / passed
        if not per_s:
            return rates, "unknown"
        left = int((self.total - self.done) / per_s)
        return rates, f"{left // 3600}h{left // 60 % 60:02d}m{left % 60:02d}s"
