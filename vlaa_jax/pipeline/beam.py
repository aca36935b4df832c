"""The same steps on Apache Beam, for work beyond one machine.

Each worker keeps a window of samples on an event loop of its own and hands outcomes on as they
come; what is left of a bundle is waited for at its end. No state and no timers, so any runner will
do. Bundles are retried whole, which costs nothing twice: every reply is in the ledger before its
outcome is emitted.
"""

import asyncio
import logging
import uuid
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlaa_jax.loop_thread import LoopThread
from vlaa_jax.pipeline.client import Client
from vlaa_jax.pipeline.ledger import Ledger
from vlaa_jax.pipeline.runner import through_steps
from vlaa_jax.pipeline.sample import Outcome, Sample
from vlaa_jax.pipeline.scoring import RewardScorer
from vlaa_jax.pipeline.steps import make_steps
from vlaa_jax.schema import UserError
from vlaa_jax.settings.build import build
from vlaa_jax.settings.pipeline import PipelineSettings

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.transforms.window import GlobalWindow
    from apache_beam.utils.windowed_value import WindowedValue
except ImportError as error:
    raise UserError(
        "run.runner=beam needs Apache Beam: pip install 'vlaa_jax[pipeline]'"
    ) from error

_LOCAL = "--runner=FnApiRunner"
"""In this process. The usual DirectRunner would look for a binary on the internet first."""


@dataclass(frozen=True)
class Places:
    """Where workers find things; on a file system that all of them see."""

    collected: Path
    ledger: Path
    """What is known when the work begins."""
    images: Path
    outcomes: Path
    """Prefix of the files that take outcomes."""
    shards: Path | None = None
    """Folder where each worker writes a ledger of its own; None: all write ``ledger``, which wants
    one machine."""


def run_on_beam(settings: PipelineSettings, places: Places) -> Iterator[Outcome]:
    """Run all collected samples through the steps; yields outcomes without positions, by id.

    Raises:
        UserError: the options name no runner that there is.
    """
    for old in places.outcomes.parent.glob(f"{places.outcomes.name}*"):
        old.unlink()
    options = PipelineOptions((settings.run.beam_options or _LOCAL).split())
    work = _StepsDoFn(asdict(settings), places)
    try:
        with beam.Pipeline(options=options) as pipeline:
            (
                pipeline
                | "samples" >> beam.io.ReadFromText(str(places.collected))
                | "small bundles" >> beam.Reshuffle()
                | "steps" >> beam.ParDo(work)
                | "outcomes" >> beam.io.WriteToText(str(places.outcomes), ".jsonl")
            )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"Apache Beam: {' '.join(str(error).split())[:500]}") from error
    for path in sorted(places.outcomes.parent.glob(f"{places.outcomes.name}*.jsonl")):
        with path.open("rb") as file:
            yield from map(Outcome.from_json, file)


class _StepsDoFn(beam.DoFn):  # type: ignore[misc]
    """A window of samples in flight between two calls of ``process``."""

    def __init__(self, settings: dict[str, Any], places: Places) -> None:
        self._settings, self._places = settings, places

    def setup(self) -> None:
        settings = build(PipelineSettings, self._settings, "config")
        self._window = settings.in_flight
        self._loop = LoopThread("beam-steps")
        self._scorer = RewardScorer()
        self._steps = make_steps(settings, self._scorer)
        self._client: Client = self._loop.run(self._connect(settings))
        self._pending: set[Future[Outcome]] = set()
        self._stopped = False

    async def _connect(self, settings: PipelineSettings) -> Client:
        places = self._places
        if places.shards is None:
            self._ledger = Ledger(places.ledger)
        else:
            self._ledger = Ledger(places.shards / f"{uuid.uuid4().hex}.sqlite", places.ledger)
        client = Client(
            settings.models(),
            self._places.images,
            self._ledger,
            run=settings.run,
        )
        return await client.__aenter__()

    def process(self, line: str) -> Iterator[str]:
        if not self._stopped:
            sample = Sample.from_json(line)
            work = through_steps(0, sample, self._steps, self._client.ask)
            self._pending.add(self._loop.submit(work))
        while len(self._pending) >= self._window:
            yield from self._ended()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        window = GlobalWindow()
        while self._pending:
            for line in self._ended():
                yield WindowedValue(line, window.max_timestamp(), [window])

    def _ended(self) -> Iterator[str]:
        """Outcomes of the samples that are through; waits for one at least."""
        done, self._pending = wait(self._pending, return_when=FIRST_COMPLETED)
        for future in done:
            try:
                yield future.result().to_json()
            except UserError as error:  # nothing more may be asked: it is left for the next run
                if not self._stopped:
                    logging.getLogger(__name__).error("nothing more is asked: %s", error)
                self._stopped = True

    def teardown(self) -> None:
        self._loop.run(self._client.__aexit__(None, None, None))
        self._loop.run(asyncio.to_thread(self._ledger.close))
        self._loop.close()
        self._scorer.close()
