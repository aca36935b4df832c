"""Where a supervised run's rows come from, and the questions its answers are watched by."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from vlaa_jax.data.loaders.loader import Loader
from vlaa_jax.data.rows.batches import RowBatch
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.foreign import local_path
from vlaa_jax.parallel import hosts
from vlaa_jax.policy.heldout import Heldout
from vlaa_jax.policy.pretrained import Pretrained
from vlaa_jax.policy.prompts import Collator, Encoder, Prompt
from vlaa_jax.policy.reward_head import mixed_reward
from vlaa_jax.policy.rows import RowCheck, RowSource
from vlaa_jax.policy.sampler import Sampler
from vlaa_jax.policy.scoring import CompletionScorer
from vlaa_jax.policy.spread import Deal
from vlaa_jax.policy.usable import Usable, heldout_prompts, load_checked, reader
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.schema import Record
from vlaa_jax.settings.sft import SftSettings
from vlaa_jax.train.checkpoint import Progress
from vlaa_jax.train.grpo_data import image_root, refuse_unseen
from vlaa_jax.train.rundir import RunDir
from vlaa_jax.train.validation import Measure, Validation


class Questions(NamedTuple):
    """Attributes: held-out records that can be used, and what scores their answers."""

    records: Usable
    reward: MixedReward


@dataclass(frozen=True)
class RowData:
    """Attributes: records to learn and their rows, rows to watch, held-out questions, images."""

    records: list[Record]
    train: RowSource
    validation: RowSource | None
    heldout: Questions | None
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


def open_data(settings: SftSettings, pretrained: Pretrained, mesh: Mesh, rundir: RunDir) -> RowData:
    """Reads, checks and plans all records; what is left out is listed in the run directory.

    Raises:
        UserError: a file or a record cannot be used, or rows do not fit the mesh.
    """
    data = settings.data

    def usable(path: Path, images: Path | None) -> Usable:
        found, rejects = load_checked(path, images, RowCheck(pretrained, data))
        rundir.list_rejects(path, len(found), rejects)
        return found

    def rows(records: Usable) -> RowSource:
        return RowSource(records, records.images, pretrained, data, mesh, seed=settings.seed)

    images, held = image_root(data), local_path(data.heldout) if data.heldout else None
    watched: Usable | None = None
    if data.records == "embedded":
        count = data.embedded_train
        write = partial(
            write_dataset,
            rundir.path / "data",
            n_train=1,
            n_heldout=data.embedded_heldout,
            n_sft=count + data.embedded_heldout,
        )
        paths = hosts.after_writer(write, "the drawing of embedded records")
        images, held = paths.images, paths.heldout
        every = usable(paths.sft, images)
        train, watched = (Usable(part, every.images) for part in (every[:count], every[count:]))
    else:
        train = usable(local_path(data.records), images)
        if data.validation:
            watched = usable(local_path(data.validation), images)
    questions = _questions(settings, pretrained, held, images, mesh, rundir) if held else None
    return RowData(train, rows(train), rows(watched) if watched else None, questions, images)


def _questions(
    settings: SftSettings,
    pretrained: Pretrained,
    path: Path,
    images: Path | None,
    mesh: Mesh,
    rundir: RunDir,
) -> Questions:
    model = settings.model
    reward = rundir.closes(mixed_reward(settings.rewards, mesh, model.dtype, model.checkpoint))
    reward.start()
    encoder = Encoder(pretrained, settings.data, settings.rollout.max_new_tokens)
    golds = reward.gold_problems
    held, rejects = load_checked(path, images, encoder, gold_problems=golds)
    rundir.list_rejects(path, len(held), rejects)
    refuse_unseen(held, images, settings.rewards)
    return Questions(held, reward)


def open_validation(
    settings: SftSettings,
    pretrained: Pretrained,
    data: RowData,
    mesh: Mesh,
    rundir: RunDir,
    benchmarks: Measure | None,
) -> Validation:
    """Held-out questions, sampled and scored as GRPO does; nothing where there are none."""
    if data.heldout is None:
        return Validation(None, rundir, data.images, benchmarks=benchmarks)
    held, reward = data.heldout
    limit = settings.rollout.max_new_tokens
    encoder = Encoder(pretrained, settings.data, limit)
    deal = Deal(mesh, settings.rollout.at_once)
    prompts: list[Prompt] = heldout_prompts(held, data.images, encoder, deal)
    chat, processor = pretrained.chat, pretrained.processor
    sampler = Sampler(
        pretrained,
        Collator(pretrained, settings.data, mesh, reader(held, data.images, encoder)),
        settings.rollout,
        mesh,
        seed=settings.seed,
        completions=settings.run.eval_completions,
    )
    scorer = CompletionScorer(reward, chat, processor, data.images, limit)
    heldout = Heldout(prompts, sampler, scorer, deal, seed=settings.seed)
    return Validation(heldout, rundir, data.images, benchmarks=benchmarks)
