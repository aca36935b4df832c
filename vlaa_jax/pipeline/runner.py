"""The steps on one machine: a sliding window of samples over one event loop.

A batch of calls waits for its slowest; here every sample goes on as soon as its own call is
answered, and a new one takes its place when it is through.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping

from vlaa_jax.pipeline.contract import Ask, CallFailed, Step
from vlaa_jax.pipeline.sample import Drop, Outcome, Sample
from vlaa_jax.schema import UserError


async def through_steps(
    position: int, sample: Sample, steps: Mapping[str, Step], ask: Ask
) -> Outcome:
    """One sample through all steps, or as far as it comes.

    Raises:
        UserError: nothing more may be asked.
    """
    for name, step in steps.items():
        try:
            result = await step(sample, ask)
        except CallFailed as error:
            return Outcome(position, "failed", sample, name, error.kind, str(error))
        if isinstance(result, Drop):
            return Outcome(position, "dropped", sample, name, result.reason, result.detail)
        sample = result
    return Outcome(position, "kept", sample)


async def run_samples(
    samples: Iterator[tuple[int, Sample]],
    steps: Mapping[str, Step],
    ask: Ask,
    *,
    in_flight: int,
    max_failed: int,
    on_outcome: Callable[[Outcome], None],
) -> str:
    """All samples through all steps.

    Args:
        samples: with their positions; taken one by one as places become free.
        steps: by name, in order.
        ask: answers requests.
        in_flight: samples on their way at once.
        max_failed: samples that may fail in a row before no more are taken.
        on_outcome: takes the outcomes in the order in which they come.

    Returns:
        Why it ended before the samples did; empty where it did not.
    """
    window = _SampleWindow(samples, max_failed, on_outcome)
    workers = [asyncio.create_task(window.work(steps, ask)) for _ in range(in_flight)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return window.stopped


class _SampleWindow:
    """What the workers of a run share."""

    def __init__(
        self,
        samples: Iterator[tuple[int, Sample]],
        max_failed: int,
        on_outcome: Callable[[Outcome], None],
    ) -> None:
        self._samples, self._max_failed, self._on_outcome = samples, max_failed, on_outcome
        self._failed_in_row = 0
        self.stopped = ""

    async def work(self, steps: Mapping[str, Step], ask: Ask) -> None:
        while not self.stopped and (entry := next(self._samples, None)) is not None:
            try:
                outcome = await through_steps(*entry, steps, ask)
            except UserError as error:  # those on their way go on as far as they may
                self.stopped = self.stopped or str(error)
                return
            self._failed_in_row = self._failed_in_row + 1 if outcome.state == "failed" else 0
            if self._failed_in_row >= self._max_failed and not self.stopped:
                reason = f"{self._failed_in_row} samples failed in a row, the last one in"
                self.stopped = f"{reason} {outcome.step}: {outcome.detail}"
            self._on_outcome(outcome)
