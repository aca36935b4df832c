"""The pipeline as a task: from sources to the files that SFT and GRPO train on.

The same command goes on where it was interrupted: collected samples are kept, every recorded reply
is used again, and only what was never answered is asked.
"""

import asyncio
import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from vlaa_jax.pipeline import embedded
from vlaa_jax.pipeline.client import Client
from vlaa_jax.pipeline.collect import collect, iter_samples
from vlaa_jax.pipeline.ledger import Ledger, StepCost
from vlaa_jax.pipeline.local_server import LocalServer
from vlaa_jax.pipeline.outcomes import FILE as OUTCOMES
from vlaa_jax.pipeline.outcomes import Outcomes
from vlaa_jax.pipeline.runner import run_samples
from vlaa_jax.pipeline.scoring import RewardScorer
from vlaa_jax.pipeline.scripted_models import ScriptedModels
from vlaa_jax.pipeline.settings import PipelineSettings, ServedModel
from vlaa_jax.pipeline.split import Tally, split
from vlaa_jax.pipeline.steps import make_steps
from vlaa_jax.schema import UserError

LEDGER, IMAGES, LOCK, CONFIG = "ledger.sqlite", "images", "lock", "config.json"
EMBEDDED = "embedded"


@dataclass(frozen=True)
class Summary:
    """What a run has come to."""

    samples: int
    pending: int
    """Samples that no step has decided on."""
    tally: Tally
    originals: dict[str, int]
    costs: dict[str, StepCost] = field(default_factory=dict)
    stopped: str = ""
    """Why it ended before all samples were through; empty where it did not."""


def run(settings: PipelineSettings, workdir: Path, console: Console | None = None) -> Summary:
    """Run all steps, or what the settings ask for instead.

    Args:
        settings: checked settings.
        workdir: run directory; made where it is missing.
        console: where people read along.

    Raises:
        UserError: something the user can mend; what was recorded until then stays.
    """
    console = console or Console()
    workdir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_alone(workdir))
        settings = _with_embedded(settings, workdir, stack)
        collected = collect(settings.collect, workdir, workdir / IMAGES)
        ledger = Ledger(workdir / LEDGER)
        stack.callback(ledger.close)
        scorer = RewardScorer()
        stack.callback(scorer.close)
        outcomes = Outcomes(workdir / OUTCOMES, collected.count)
        stack.callback(outcomes.close)
        steps = make_steps(settings, scorer)
        stopped = asyncio.run(_ask_all(settings, workdir, collected, ledger, steps, outcomes))
        tally = split(outcomes, settings.split, workdir, scorer.gold_problems)
        return Summary(
            collected.count,
            outcomes.pending(),
            tally,
            collected.originals,
            ledger.costs(),
            stopped,
        )


async def _ask_all(settings, workdir, collected, ledger, steps, outcomes):  # type: ignore
    models = settings.models()
    places = {(m.url, m.model): m.concurrency for m in models.values()}
    client = Client(
        models,
        workdir / IMAGES,
        ledger,
        max_cost=settings.run.max_cost,
        breaker_calls=settings.run.max_failed,
    )
    async with client:
        return await run_samples(
            iter_samples(collected.samples),
            steps,
            client.ask,
            in_flight=settings.run.in_flight or 2 * sum(places.values()),
            max_failed=settings.run.max_failed,
            on_outcome=outcomes.add,
        )


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
