"""Where a GRPO run's prompts come from: training and held-out records."""

from dataclasses import dataclass
from pathlib import Path

from vlaa_jax.data.loaders.loader import Loader
from vlaa_jax.policy.prompts import Encoder, Prompt
from vlaa_jax.policy.spread import Deal, Reader
from vlaa_jax.policy.usable import heldout_prompts, training_loader
from vlaa_jax.schema import Record
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.train.checkpoint import Progress
from vlaa_jax.train.opening import Opened
from vlaa_jax.train.rundir import RunDir


@dataclass(frozen=True)
class PromptData:
    """Where prompts come from.

    Attributes:
        records: the usable ones.
        loader: of the prompts of a step.
        heldout: held-out prompts.
        images: the image folder, if there is one.
        read: reads prompts of the loader that are known in outline.
        read_heldout: the same of held-out ones.
    """

    records: list[Record]
    loader: Loader[list[Prompt]]
    heldout: list[Prompt]
    images: Path | None
    read: Reader
    read_heldout: Reader

    def resume(self, progress: Progress) -> Progress:
        """Goes to a position, and has it remember the records it is a position in.

        Raises:
            UserError: it is a position in other records.
        """
        progress = progress.with_records(self.records)
        if progress.loader:
            self.loader.set_state(progress.loader)
        return progress


def open_data(
    settings: GrpoSettings, found: Opened, encoder: Encoder, rundir: RunDir, deal: Deal
) -> PromptData:
    """Begins to read the records of a run.

    Args:
        settings: of the run.
        found: its records.
        encoder: makes prompts of them.
        rundir: stops reading when it is closed.
        deal: which of them each host loads.
    """
    train = found.train
    held = train if found.heldout is None else found.heldout
    prompts = [] if held is train else heldout_prompts(held, encoder, deal)
    loader = training_loader(
        train, encoder, batch=settings.rollout.prompts, seed=settings.seed, deal=deal
    )
    readers = (Reader(part.images, encoder) for part in (train, held))
    return PromptData(train, rundir.closes(loader), prompts, found.images, *readers)
