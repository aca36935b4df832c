"""The pipeline as a task: from sources to the files that SFT and GRPO train on.

The same command goes on where it was interrupted: collected samples are kept, every recorded reply
is used again, and only what was never answered is asked.
"""

import asyncio
import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich.console import Console

from vlaa_jax import disk
from vlaa_jax.pipeline import embedded
from vlaa_jax.pipeline.client import Client, check_models
from vlaa_jax.pipeline.collect import Collected, collect, iter_samples, known, rejected
from vlaa_jax.pipeline.estimate import StepEstimate, estimate
from vlaa_jax.pipeline.ledger import Ledger, StepCost
from vlaa_jax.pipeline.local_server import LocalServer
from vlaa_jax.pipeline.outcomes import FILE as OUTCOMES
from vlaa_jax.pipeline.outcomes import Outcomes
from vlaa_jax.pipeline.preview import PAGE, spread, write_preview
from vlaa_jax.pipeline.report import show_estimate, show_report, write_report
from vlaa_jax.pipeline.runner import run_samples
from vlaa_jax.pipeline.sample import Outcome, Sample
from vlaa_jax.pipeline.scoring import RewardScorer
from vlaa_jax.pipeline.scripted_models import ScriptedModels
from vlaa_jax.pipeline.split import Tally, split
from vlaa_jax.pipeline.steps import make_steps
from vlaa_jax.pipeline.watch import Watch
from vlaa_jax.schema import Summary, UserError
from vlaa_jax.settings.by_source import source_counts
from vlaa_jax.settings.pipeline import PipelineSettings, ServedModel

LEDGER, SHARDS, IMAGES, LOCK = "ledger.sqlite", "ledger.d", "images", "lock"
CONFIG = "config.json"
EMBEDDED = "embedded"


@dataclass(frozen=True)
class PipelineSummary(Summary):
    """What a run has come to."""

    samples: int = 0
    pending: int = 0
    """Samples that no step has decided on."""
    tally: Tally = field(default_factory=Tally)
    originals: dict[str, int] = field(default_factory=dict)
    costs: dict[str, StepCost] = field(default_factory=dict)
    stopped: str = ""
    """Why it ended before all samples were through; empty where it did not."""
    estimates: dict[str, StepEstimate] = field(default_factory=dict)
    """What a dry run expects per step."""


def run(settings: PipelineSettings, workdir: Path, console: Console) -> PipelineSummary:
    """Run all steps, or what the settings ask for instead.

    Args:
        settings: checked settings.
        workdir: run directory; made where it is missing.
        console: where people read along.

    Raises:
        UserError: something the user can mend; what was recorded until then stays.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        return _run(settings, workdir, console)
    except OSError as error:  # a full disk, most likely
        where = error.filename or workdir
        raise UserError(f"{where}: {error.strerror or error}; the same command goes on") from error


def _run(settings: PipelineSettings, workdir: Path, console: Console) -> PipelineSummary:
    with ExitStack() as stack:
        stack.enter_context(_alone(workdir))
        known(source_counts, settings.split, "rl_caps")  # now, not when all is paid
        _write_config(settings, workdir / CONFIG)
        settings = _with_embedded(settings, workdir, stack)
        if not settings.run.dry_run:
            check_models(settings.models())  # collecting may take long
        collected = collect(settings.collect, workdir, workdir / IMAGES)
        ledger = stack.enter_context(closing(Ledger(workdir / LEDGER)))
        ledger.absorb(workdir / SHARDS)  # of a run on many workers that did not come to its end
        scorer = stack.enter_context(closing(RewardScorer()))
        job = _Job(settings, workdir, console, collected, ledger, scorer)
        if settings.run.dry_run:
            return job.dry_run()
        if settings.run.preview:
            return job.preview()
        return job.all_steps()


@dataclass(frozen=True)
class _Job:
    """A run whose directory is open."""

    settings: PipelineSettings
    workdir: Path
    console: Console
    collected: Collected
    ledger: Ledger
    scorer: RewardScorer

    def all_steps(self) -> PipelineSummary:
        """Every sample through all steps, and the files."""
        with closing(Outcomes(self.workdir / OUTCOMES, self.collected.count)) as outcomes:
            if self.settings.run.runner == "beam":
                stopped = self._on_beam(outcomes)
            else:
                samples = iter_samples(self.collected.samples)
                stopped = asyncio.run(self._ask(samples, self.collected.count, outcomes))
            tally = split(outcomes, self.settings.split, self.workdir, self.scorer.gold_problems)
            tally.dropped.update(rejected(self.collected.rejects))
            summary = self._summary(tally, outcomes.pending(), stopped)
        told = (summary.originals, tally, summary.costs)
        write_report(self.workdir, *told, stopped, summary.pending)
        show_report(self.console, *told)
        if stopped:
            left = f"{summary.pending:,} samples are left for the same command"
            self.console.print(f"stopped: {stopped} ({left})", markup=False)
        return summary

    def preview(self) -> PipelineSummary:
        """A few samples through all steps, and a page about them."""
        wanted, total = self.settings.run.preview, self.collected.count
        samples = spread(iter_samples(self.collected.samples), total, wanted)
        with closing(Outcomes(self.workdir / f"preview_{OUTCOMES}", total)) as outcomes:
            stopped = asyncio.run(self._ask(samples, min(wanted, total), outcomes))
            note = f"of {total:,} collected; the full run will not ask for these answers again"
            page = self.workdir / PAGE
            write_preview(outcomes, self.workdir / IMAGES, page, stopped or note)
            self.console.print(f"preview  {page}", soft_wrap=True)
            return self._summary(Tally(), outcomes.pending(), stopped)

    def dry_run(self) -> PipelineSummary:
        """A table of what would be asked."""
        steps = make_steps(self.settings, self.scorer)
        samples = iter_samples(self.collected.samples)
        work = estimate(samples, steps, self.ledger, self.settings)
        expected = asyncio.run(work)
        show_estimate(self.console, expected)
        return replace(self._summary(Tally(), self.collected.count, "dry run"), estimates=expected)

    async def _ask(
        self, samples: Iterator[tuple[int, Sample]], total: int, outcomes: Outcomes
    ) -> str:
        settings = self.settings
        watch = Watch(total, self.console)

        def on_outcome(outcome: Outcome) -> None:
            outcomes.add(outcome)
            watch.note(outcome)

        client = Client(
            settings.models(),
            self.workdir / IMAGES,
            self.ledger,
            run=settings.run,
        )
        names = {step: model.model for step, model in settings.models().items()}
        async with client:
            shown = asyncio.create_task(watch.show(client, names))
            try:
                return await run_samples(
                    samples,
                    watch.watched(make_steps(settings, self.scorer)),
                    client.ask,
                    in_flight=settings.in_flight,
                    max_failed=settings.run.max_failed,
                    on_outcome=on_outcome,
                )
            finally:
                shown.cancel()
                await asyncio.gather(shown, return_exceptions=True)

    def _on_beam(self, outcomes: Outcomes) -> str:
        from vlaa_jax.pipeline.beam import Places, run_on_beam

        root = self.workdir.absolute()
        samples = self.collected.samples.absolute()
        shards = root / SHARDS if self.settings.run.beam_options else None
        outcomes_at = root / "beam" / "outcomes"
        places = Places(samples, root / LEDGER, root / IMAGES, outcomes_at, shards)
        for folder in (outcomes_at.parent, root / SHARDS):
            folder.mkdir(exist_ok=True)
        positions = {sample.id: position for position, sample in iter_samples(samples)}
        for outcome in run_on_beam(self.settings, places):
            outcomes.add(replace(outcome, position=positions[outcome.sample.id]))
        self.ledger.absorb(root / SHARDS)
        return "samples were left over; see the workers' logs" if outcomes.pending() else ""

    def _summary(self, tally: Tally, pending: int, stopped: str) -> PipelineSummary:
        costs = self.ledger.costs()
        figures = {
            "samples": self.collected.count,
            "pending": pending,
            "kept": sum(tally.kept.values()),
            "cost": sum(cost.cost for cost in costs.values()),
        }
        found = (self.collected.count, pending, tally, self.collected.originals, costs, stopped)
        return PipelineSummary(self.workdir, figures, *found)


def _write_config(settings: PipelineSettings, path: Path) -> None:
    """Note the settings of the latest run; a key is not among them, only the name of its place."""
    disk.write_json(path, asdict(settings))


def _with_embedded(settings: PipelineSettings, workdir: Path, stack: ExitStack) -> PipelineSettings:
    """Settings whose embedded sources are written and whose scripted models are served."""
    models = settings.models()
    wanted = [name for name, model in models.items() if model.url == EMBEDDED]
    if settings.collect.sources != EMBEDDED:
        if wanted:
            raise UserError(f"{wanted[0]}.model.url: embedded models know embedded sources only")
        return settings
    drawn = embedded.draw(settings.collect.embedded, settings.collect.seed)
    sources = embedded.write_sources(workdir / "sources", drawn)
    settings = replace(settings, collect=replace(settings.collect, sources=sources))
    if wanted:
        server = LocalServer(ScriptedModels(drawn))
        stack.callback(server.close)
        for name in wanted:
            settings = _with_url(settings, name, server.url)
    return settings


def _with_url(settings: PipelineSettings, step: str, url: str) -> PipelineSettings:
    group = "split" if step == "difficulty" else step
    old = getattr(settings, group)
    model: ServedModel = replace(old.model, url=url)
    return replace(settings, **{group: replace(old, model=model)})


@contextmanager
def _alone(workdir: Path) -> Iterator[None]:
    """Hold the work directory; two runs in one would pay twice."""
    with (workdir / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{workdir}: another run is at work in it") from None
        yield
