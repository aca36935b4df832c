"""Everything about settings, directory and records that can be wrong, before a model is touched.

No jax here: whoever mistyped a path hears of it in seconds, and before weights are opened.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from vlaa_jax import disk
from vlaa_jax.data.sources.source import Reject
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.foreign import local_path
from vlaa_jax.parallel import hosts
from vlaa_jax.policy.checked import (
    PromptCheck,
    RecordCheck,
    RowCheck,
    Usable,
    headless,
    load_checked,
)
from vlaa_jax.policy.reading import Reading
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.schema import Record, UserError
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.settings.rewards import RewardSettings
from vlaa_jax.settings.sft import SftSettings
from vlaa_jax.settings.shared import DataSettings
from vlaa_jax.train.claim import Claim, check_files

Settings = GrpoSettings | SftSettings


class Files(NamedTuple):
    """Files of records, and the folder of images; None where there is none."""

    train: Path
    images: Path | None
    heldout: Path | None
    validation: Path | None = None


@dataclass(frozen=True)
class Opened:
    """A run whose directory is held and whose records were judged.

    Attributes:
        claim: of its directory.
        reading: the small files of its checkpoint.
        reward: scores answers, but for a reward head; None where nothing is scored.
        images: the image folder, if there is one.
        train: records to learn from.
        heldout: records whose questions are asked, if there are some.
        validation: records whose loss is watched, if there are some.
    """

    claim: Claim
    reading: Reading
    reward: MixedReward | None
    images: Path | None
    train: Usable
    heldout: Usable | None
    validation: Usable | None


@contextmanager
def opened(settings: Settings, workdir: Path, console: Console) -> Iterator[Opened]:
    """Holds the directory of a training run, and judges all its records.

    Args:
        settings: of the run.
        workdir: its directory, where embedded records are drawn, and refused ones are listed.
        console: where people read along.

    Raises:
        UserError: the directory, the checkpoint's small files or the records cannot be used.
    """
    check_files(settings.data)
    with ExitStack() as ends:
        claim = Claim(workdir, settings)
        ends.callback(claim.close)
        ends.enter_context(disk.refusals(workdir, claim.kept))
        reading = Reading.of(settings.model.checkpoint, settings.data)
        places = files(settings.data, workdir, answers=isinstance(settings, SftSettings))
        reward: MixedReward | None = None
        if places.heldout or isinstance(settings, GrpoSettings):
            reward = headless(settings.rewards, reading.config.family)
            ends.callback(reward.close)
            reward.start()
        records = _judged(settings, places, reading, reward, partial(_list, console, workdir))
        yield Opened(claim, reading, reward, places.images, *records)


def files(data: DataSettings, workdir: Path, *, answers: bool = False) -> Files:
    """Where records are; embedded ones are drawn first.

    Args:
        data: settings.
        workdir: embedded records are drawn in its folder ``data``.
        answers: those to learn answers from; behind them as many as are held out, to be watched.
    """
    if data.records != "embedded":
        others = (data.heldout, getattr(data, "validation", ""))
        held, watched = (local_path(path) if path else None for path in others)
        return Files(local_path(data.records), image_root(data), held, watched)
    train, held_out = data.embedded_train, data.embedded_heldout
    drawn = {"n_train": 1, "n_sft": train + held_out} if answers else {"n_train": train}
    write = partial(write_dataset, workdir / "data", n_heldout=held_out, **drawn)
    paths = hosts.after_writer(write, "the drawing of embedded records")
    return Files(paths.sft if answers else paths.grpo, paths.images, paths.heldout)


def image_root(data: DataSettings) -> Path | None:
    """Folder of the images; None where records bring their own."""
    return local_path(data.image_root) if data.image_root else None


def _judged(
    settings: Settings,
    places: Files,
    reading: Reading,
    reward: MixedReward | None,
    listed: Callable[[Path, Usable, Sequence[Reject]], None],
) -> tuple[Usable, Usable | None, Usable | None]:
    """Records to learn from, held-out ones, and those that are watched."""
    golds = reward.gold_problems if reward else None

    def usable(path: Path, check: RecordCheck) -> Usable:
        found, rejects = load_checked(path, places.images, check, gold_problems=golds)
        listed(path, found, rejects)
        return found

    prompts = PromptCheck(reading, settings.data, settings.rollout.max_new_tokens)
    heldout: Usable | None = None
    validation: Usable | None = None
    if isinstance(settings, SftSettings):
        rows, count = RowCheck(reading, settings.data), settings.data.embedded_train
        train = usable(places.train, rows)
        if places.validation:
            validation = usable(places.validation, rows)
        elif settings.data.records == "embedded":
            drawn = train
            train, validation = (Usable(p, drawn.images) for p in (drawn[:count], drawn[count:]))
    else:
        train = usable(places.train, prompts)
        refuse_unseen(train, places.images, settings.rewards)
    if places.heldout:
        heldout = usable(places.heldout, prompts)
        refuse_unseen(heldout, places.images, settings.rewards)
    return train, heldout, validation


def _list(
    console: Console, workdir: Path, path: Path, usable: Usable, rejects: Sequence[Reject]
) -> None:
    """Says how many records were left out, and writes down why."""
    if rejects and hosts.is_writer():
        listing = workdir / f"rejects-{path.stem}.txt"
        disk.write_text(listing, "".join(f"{reject}\n" for reject in rejects))
        console.print(
            f"{path}: {len(usable)} records, {len(rejects)} left out (reasons in {listing})"
        )


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
