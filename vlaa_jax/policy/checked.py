"""Which records can be used: judged before the first step, by what reads them. No jax here."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from vlaa_jax.data.judging.judge import Findings, GoldProblems, Judge, Limits, examine
from vlaa_jax.data.progress import progress
from vlaa_jax.data.sources.source import ImageOpener, Reject, Source
from vlaa_jax.data.sources.table import open_source
from vlaa_jax.policy.reading import Reading
from vlaa_jax.rewards.iou import native_box_space
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.schema import Record, UserError
from vlaa_jax.settings import by_source
from vlaa_jax.settings.rewards import NATIVE, RewardSettings
from vlaa_jax.settings.sft import RowSettings
from vlaa_jax.settings.shared import PromptSettings

HEAD = "reward_head"
"""The open-ended scorer that lives on the trainer's devices."""
_MANY = 2000
"""Records whose check takes long enough to say how far it has come."""


class RecordCheck(Protocol):
    """What a task asks of its records."""

    @property
    def data(self) -> PromptSettings:
        """Which records are wanted, and what to do with bad ones."""

    def judge(self, gold_problems: GoldProblems | None) -> Judge:
        """Who decides whether a record can be used."""


@dataclass(frozen=True)
class PromptCheck:
    """Refuses what encoding a prompt would refuse, and golds that their verifier cannot score.

    Attributes:
        reading: tokenizer, image processor, and how many positions the model has.
        data: limits of a prompt.
        new_tokens: of the longest answer; the model has to have room for it, too.
    """

    reading: Reading
    data: PromptSettings
    new_tokens: int = 0

    def __post_init__(self) -> None:
        _ = self.limit  # refuses answers that are too long

    @property
    def limit(self) -> tuple[int, str]:
        """Most tokens of a prompt, and what says so."""
        most = self.data.max_prompt_tokens
        return self.reading.room(most, "data.max_prompt_tokens", self.new_tokens)

    def judge(self, gold_problems: GoldProblems | None) -> Judge:
        """Measures records without their answers."""
        limits = Limits(
            *self.limit,
            self.data.vision_rows_per_bin,
            self.reading.window_units,
        )
        return Judge(gold_problems, self.reading.preprocessor(self.data), limits)


@dataclass(frozen=True)
class RowCheck:
    """Refuses, without touching pixels, what no row can hold."""

    reading: Reading
    data: RowSettings

    def judge(self, gold_problems: GoldProblems | None) -> Judge:
        """Measures records with their answers; nobody asks for their golds."""
        limits = Limits(*self.reading.room(self.data.tokens_per_row, "data.tokens_per_row"))
        return Judge(None, self.reading.preprocessor(self.data), limits, "sft")


def headless(settings: RewardSettings, family: str) -> MixedReward:
    """The mixed reward without a reward head, which needs devices: it judges golds alike.

    Args:
        settings: of the reward.
        family: of the model whose answers are scored; it says what "native" boxes are.

    Raises:
        UserError: the settings name something that cannot be made from them.
    """
    if settings.answer_box_space == NATIVE:
        settings = replace(settings, answer_box_space=native_box_space(family))
    if settings.open_ended == HEAD:
        settings = replace(settings, open_ended="none")
    return MixedReward(settings)


class Usable(list[Record]):
    """Records that can be trained on, with their lengths, and where their images are."""

    def __init__(self, records: Iterable[Record], images: ImageOpener) -> None:
        super().__init__(records)
        self.images = images


def load_checked(
    path: Path,
    image_root: Path | None,
    check: RecordCheck,
    *,
    gold_problems: GoldProblems | None = None,
) -> "tuple[Usable, list[Reject]]":
    """Reads records and sorts out, before the first step, what cannot be used.

    Golds are put to their verifier, headers of images are read, and prompts are measured; `data
    check` asks the same judge. What a build or a TFDS data set settled is not asked again.

    Args:
        path: any source of records.
        image_root: folder the image paths are relative to, where the source has none of its own.
        check: its judge decides; its settings say whether to stop at bad records or to skip them.
        gold_problems: ``MixedReward.gold_problems``; None asks one made for the purpose.

    Returns:
        Usable records, and the rejects with their reasons.

    Raises:
        UserError: records are bad and data.bad_records is "stop", or none is left.
    """
    data, found, rejects = check.data, Findings(), []
    usable: list[Record] = []
    with ExitStack() as stack:
        judge = check.judge(gold_problems)
        if judge.kind != "sft" and gold_problems is None:
            own = stack.enter_context(MixedReward())
            judge = replace(judge, gold_problems=own.gold_problems)
        source = _open(path, image_root, data, judge.kind)
        wanted = data.verifier_types
        examined = examine(
            source,
            judge,
            whole=False,
            workers=data.workers,
            wanted=lambda record: not wanted or record.verifier_type in wanted,
        )
        many = len(source) > _MANY
        for one in progress(examined, len(source), f"check {path}", many):
            if one.rejects:
                found.add(one.rejects[0])
                rejects.append(one.rejects[0])
            elif one.record is not None:
                usable.append(one.record)
    if rejects and data.bad_records == "stop":
        raise UserError(f"{found.first()} (data.bad_records=skip leaves such records out)")
    if not usable:
        kinds = f" of the types {', '.join(wanted)}" if wanted else ""
        first = f"; the first problem: {rejects[0]}" if rejects else ""
        raise UserError(f"{path}: no usable record{kinds} is left{first}")
    return Usable(usable, source.images), rejects


def _open(path: Path, image_root: Path | None, data: PromptSettings, kind: str | None) -> Source:
    spaces = by_source.box_spaces(data.box_space) if data.box_space else None
    columns = by_source.columns(data.columns)
    return open_source(path, image_root, kind=kind, box_space=spaces, columns=columns)
