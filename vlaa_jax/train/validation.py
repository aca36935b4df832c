"""Held-out rewards and benchmarks in a run: when, under which name, and what was answered."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from vlaa_jax import disk
from vlaa_jax.foreign import read_object
from vlaa_jax.parallel import hosts
from vlaa_jax.policy.heldout import Heldout
from vlaa_jax.policy.pretrained import Pretrained
from vlaa_jax.schema import UserError
from vlaa_jax.train.console import heldout_table
from vlaa_jax.train.rundir import RunDir
from vlaa_jax.train.samples import samples

Measure = Callable[[Mapping[str, Any]], dict[str, float]]
"""From parameters to metrics."""
Benchmarks = Callable[[Pretrained, Mesh], Measure]
"""What ``main`` hands to a trainer: made with its checkpoint and its mesh."""


class Validation:
    """Samples held-out records now and then; without records it does nothing.

    Args:
        heldout: samples and scores them; None without records.
        rundir: where the results go.
        images: image folder of the records, for the samples that are shown; None without one.
        benchmarks: further metrics of the same parameters, where there are some.
    """

    def __init__(
        self,
        heldout: Heldout | None,
        rundir: RunDir,
        images: Path | None,
        benchmarks: Measure | None = None,
    ) -> None:
        self._heldout, self._rundir, self._images = heldout, rundir, images
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
                self._rundir.show(step, samples(groups, self._images))
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
            self._rundir.rollouts.flush()  # what is kept here is not sampled again
            path = self._rundir.path / "heldout.json"
            disk.write_json(path, kept)
            if name == "after" and self._heldout is not None and "constant" not in kept:
                kept["constant"] = self._heldout.constant_scores()
                disk.write_json(path, kept)
        return kept[name]

    def _kept(self) -> dict[str, Any]:
        path = self._rundir.path / "heldout.json"
        try:
            kept = read_object(path, finite=False)
        except FileNotFoundError:
            return {}
        if not all(isinstance(part, dict) and _numbers(part) for part in kept.values()):
            raise UserError(f"{path} holds no held-out results; remove it to measure them again")
        return kept

    def summary(self) -> None:
        """Prints held-out rewards per verifier before and after, where there are some."""
        kept = self._kept() if hosts.is_writer() else {}
        if kept:
            self._rundir.console.print(heldout_table(kept))


def _numbers(part: Mapping[str, Any]) -> bool:
    return all(isinstance(value, int | float) for value in part.values())
