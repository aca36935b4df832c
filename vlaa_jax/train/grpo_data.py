"""Where a GRPO run's prompts come from: training and held-out records, checked before weights."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vlaa_jax.data.loaders.loader import Loader
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.foreign import local_path
from vlaa_jax.parallel import hosts
from vlaa_jax.policy.prompts import Encoder, Prompt
from vlaa_jax.policy.spread import Deal, Reader
from vlaa_jax.policy.usable import heldout_prompts, load_checked, training_loader
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.schema import Record, UserError
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.settings.rewards import RewardSettings
from vlaa_jax.settings.shared import DataSettings
from vlaa_jax.train.checkpoint import Progress
from vlaa_jax.train.rundir import RunDir


def refuse_unseen(records: list[Record], images: Path | None, rewards: RewardSettings) -> None:
    """Scorers look at image files, which records that bring their images do not have.

    Raises:
        UserError: there are records whose scorer would not see their images.
    """
    remote = rewards.open_ended in ("score_endpoint", "chat_judge") and rewards.endpoint_images
    looks = remote or rewards.open_ended == "reward_head"
    if images is None and looks and any(r.verifier_type == "open_ended" for r in records):
        raise UserError(
            f"rewards.open_ended={rewards.open_ended} looks at image files, and these records hold "
            "their images themselves: write them out with `python -m vlaa_jax.data convert` and "
            "give data.image_root, or (but for reward_head) set rewards.endpoint_images=False"
        )


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
    settings: GrpoSettings, encoder: Encoder, reward: MixedReward, rundir: RunDir, deal: Deal
) -> PromptData:
    """Reads and checks all records; what is left out is listed in the run directory.

    Raises:
        UserError: a file or a record cannot be used, see ``load_checked`` and ``refuse_unseen``.
    """
    train, images, held_out = files(settings.data, rundir.path)
    golds = reward.gold_problems
    records, rejects = load_checked(train, images, encoder, gold_problems=golds)
    rundir.list_rejects(train, len(records), rejects)
    refuse_unseen(records, images, settings.rewards)
    prompts: list[Prompt] = []
    held = records
    if held_out is not None:
        held, rejects = load_checked(held_out, images, encoder, gold_problems=golds)
        rundir.list_rejects(held_out, len(held), rejects)
        prompts = heldout_prompts(held, encoder, deal)
    loader = training_loader(
        records, encoder, batch=settings.rollout.prompts, seed=settings.seed, deal=deal
    )
    readers = (Reader(part.images, encoder) for part in (records, held))
    return PromptData(records, rundir.closes(loader), prompts, images, *readers)


def image_root(data: DataSettings) -> Path | None:
    """Folder of the images; None where records bring their own."""
    return local_path(data.image_root) if data.image_root else None


def files(data: DataSettings, workdir: Path) -> tuple[Path, Path | None, Path | None]:
    """Training records, image folder and held-out records; embedded ones are drawn first."""
    if data.records != "embedded":
        return (
            local_path(data.records),
            image_root(data),
            local_path(data.heldout) if data.heldout else None,
        )
    write = partial(
        write_dataset,
        workdir / "data",
        n_train=data.embedded_train,
        n_heldout=data.embedded_heldout,
    )
    paths = hosts.after_writer(write, "the drawing of embedded records")
    return paths.grpo, paths.images, paths.heldout
