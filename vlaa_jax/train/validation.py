"""Held-out rewards and benchmarks in a run: when, under which name, and what was answered."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh

from vlaa_jax.parallel import hosts
from vlaa_jax.policy.heldout import Heldout
from vlaa_jax.policy.pretrained import Pretrained
from vlaa_jax.train.console import heldout_table
from vlaa_jax.train.rundir import RunDir, save_json

Measure = Callable[[Mapping[str, Any]], dict[str, float]]
"""From parameters to metrics."""
Benchmarks = Callable[[Pretrained, Mesh], Measure]
"""What ``main`` hands to a trainer: made with its checkpoint and its mesh."""


class Validation:
    """Samples held-out records now and then; without records it does nothing.

    Args:
        heldout: samples and scores them; None without records.
        rundir: where the results go.
        drawn: the records are drawn by code, so constant answers are worth comparing.
        benchmarks: further metrics of the same parameters, where there are some.
    """

    def __init__(
        self,
        heldout: Heldout | None,
        rundir: RunDir,
        *,
        drawn: bool,
        benchmarks: Measure | None = None,
    ) -> None:
        self._heldout, self._rundir, self._drawn = heldout, rundir, drawn
        self._benchmarks = benchmarks
        self._last: tuple[int, dict[str, float]] | None = None

    def __call__(self, params: Mapping[str, Any], step: int) -> dict[str, float]:
        """Held-out rewards after `step` steps, the answers recorded; empty without records.

        A mean that no earlier evaluation reached makes the step's checkpoint the best one.
        """
        if self._last is None or self._last[0] != step:
            metrics: dict[str, float] = {}
            if self._heldout is not None:
                metrics, groups = self._heldout(params)
                self._rundir.rollouts.write_heldout(step, groups)
                self._rundir.scored(step, metrics["heldout/mean"])
            if self._benchmarks is not None:
                metrics |= self._benchmarks(params)
            self._last = (step, metrics)
        return self._last[1]

    def measure(self, params: Mapping[str, Any], name: str) -> dict[str, float]:
        """Held-out rewards under a name, kept in heldout.json so that a resumed run has them."""
        if self._heldout is None and self._benchmarks is None:
            return {}
        kept = hosts.from_writer(self._kept, "the held-out results")
        if name == "after" or name not in kept:
            kept[name] = self(params, self._rundir.progress.step)
        if hosts.is_writer():
            path = self._rundir.path / "heldout.json"
            save_json(path, kept)
            heldout = self._heldout if self._drawn else None
            if name == "after" and heldout is not None and "constant" not in kept:
                kept["constant"] = heldout.constant_scores()
                save_json(path, kept)
        return kept[name]

    def _kept(self) -> dict[str, Any]:
        path = self._rundir.path / "heldout.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def summary(self) -> None:
        """Prints held-out rewards per verifier before and after, where there are some."""
        kept = self._kept() if hosts.is_writer() else {}
        if kept:
            self._rundir.console.print(heldout_table(kept))
