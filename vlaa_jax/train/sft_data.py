"""Where a supervised run's rows come from, and the questions its answers are watched by."""

from dataclasses import dataclass
from pathlib import Path

from jax.sharding import Mesh

from vlaa_jax.data.loaders.loader import Loader
from vlaa_jax.data.rows.batches import RowBatch
from vlaa_jax.policy.checked import Usable
from vlaa_jax.policy.heldout import Heldout
from vlaa_jax.policy.pretrained import Pretrained
from vlaa_jax.policy.prompts import Collator, Encoder, Prompt
from vlaa_jax.policy.reward_head import with_head
from vlaa_jax.policy.rows import RowSource
from vlaa_jax.policy.sampler import Sampler
from vlaa_jax.policy.scoring import CompletionScorer
from vlaa_jax.policy.spread import Deal, Reader
from vlaa_jax.policy.usable import heldout_prompts
from vlaa_jax.schema import Record
from vlaa_jax.settings.sft import SftSettings
from vlaa_jax.train.checkpoint import Progress
from vlaa_jax.train.opening import Opened
from vlaa_jax.train.rundir import RunDir
from vlaa_jax.train.validation import Measure, Validation


@dataclass(frozen=True)
class RowData:
    """Attributes: records to learn and their rows, rows to watch, and the image folder."""

    records: list[Record]
    train: RowSource
    validation: RowSource | None
    images: Path | None

    def resume(self, progress: Progress, loader: Loader[RowBatch]) -> Progress:
        """Goes to a position, and has it remember the records it is a position in.

        Raises:
            UserError: it is a position in other records.
        """
        progress = progress.with_records(self.records)
        if progress.loader:
            loader.set_state(progress.loader)
        return progress


def open_data(settings: SftSettings, found: Opened, pretrained: Pretrained, mesh: Mesh) -> RowData:
    """Plans the rows of a run.

    Raises:
        UserError: rows do not fit the mesh.
    """

    def rows(records: Usable) -> RowSource:
        return RowSource(
            records, records.images, pretrained, settings.data, mesh, seed=settings.seed
        )

    watched = rows(found.validation) if found.validation else None
    return RowData(found.train, rows(found.train), watched, found.images)


def open_validation(
    settings: SftSettings,
    pretrained: Pretrained,
    found: Opened,
    mesh: Mesh,
    rundir: RunDir,
    benchmarks: Measure | None,
) -> Validation:
    """Held-out questions, sampled and scored as GRPO does; nothing where there are none."""
    held, images, reward = found.heldout, found.images, found.reward
    if held is None or reward is None:
        return Validation(None, rundir, images, benchmarks=benchmarks)
    reward = rundir.closes(with_head(reward, settings.rewards, mesh, settings.model.dtype))
    reward.start()
    encoder = Encoder(pretrained, settings.data)
    deal = Deal(mesh, settings.rollout.at_once)
    prompts: list[Prompt] = heldout_prompts(held, encoder, deal)
    limit = settings.rollout.max_new_tokens
    chat, processor = pretrained.chat, pretrained.processor
    sampler = Sampler(
        pretrained,
        Collator(pretrained, settings.data, mesh, Reader(held.images, encoder)),
        settings.rollout,
        mesh,
        seed=settings.seed,
        completions=settings.run.eval_completions,
    )
    scorer = CompletionScorer(reward, chat, processor, images, limit)
    heldout = Heldout(prompts, sampler, scorer, deal, seed=settings.seed)
    return Validation(heldout, rundir, images, benchmarks=benchmarks)
