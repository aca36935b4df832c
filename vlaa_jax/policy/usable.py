"""Which records can be used, and the loaders over them."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from vlaa_jax.data.judging.findings import Findings
from vlaa_jax.data.judging.judge import GoldProblems, Judge, examine
from vlaa_jax.data.loaders.loader import Loader
from vlaa_jax.data.loaders.order import Order, ordered
from vlaa_jax.data.loaders.prompts import prompt_loader
from vlaa_jax.data.progress import progress
from vlaa_jax.data.records.reject import Reject
from vlaa_jax.data.sources.source import ImageOpener, Source
from vlaa_jax.data.sources.table import open_source
from vlaa_jax.parallel import hosts
from vlaa_jax.policy.prompts import Encoder, Prompt
from vlaa_jax.policy.spread import Deal, SpreadLoader, complete
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.schema import Record, UserError
from vlaa_jax.settings import by_source
from vlaa_jax.settings.shared import PromptSettings

_MANY = 2000
"""Records whose check takes long enough to say how far it has come."""


class RecordCheck(Protocol):
    """What a task asks of its records."""

    @property
    def data(self) -> PromptSettings:
        """Which records are wanted, and what to do with bad ones."""

    def judge(self, gold_problems: GoldProblems | None) -> Judge:
        """Who decides whether a record can be used."""


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


def training_loader(
    records: Usable, encoder: Encoder, *, batch: int, seed: int, deal: Deal | None = None
) -> Loader[list[Prompt]]:
    """Endless shuffled batches of prompts with exact state.

    Args:
        records: as ``load_checked`` gives them.
        encoder: its settings hold the mix of sources and the number of threads.
        batch: prompts of a step over all hosts.
        seed: of the order.
        deal: which of them each host loads; needed where there are several.

    Raises:
        UserError: a weighted source has no records.
    """
    spread = deal if hosts.count() > 1 else None
    order = Order(seed=seed, source_weights=by_source.source_weights(encoder.data.source_weights))
    places = tuple(spread.held(batch)) if spread else ()
    loader = prompt_loader(
        records,
        records.images,
        batch_size=len(places) or batch,
        order=replace(order, places=places, batch=batch) if spread else order,
        threads=encoder.data.workers,
        process=encoder,
    )
    return SpreadLoader(loader, ordered(records, order), spread, batch) if spread else loader


def heldout_prompts(records: Usable, encoder: Encoder, deal: Deal | None = None) -> list[Prompt]:
    """All prompts of a held-out set, in file order; see ``spread`` for several hosts."""
    spread = deal if hosts.count() > 1 else None
    held = spread.held(len(records)) if spread else list(range(len(records)))
    mine: list[Prompt] = []
    if held:
        with prompt_loader(
            [records[place] for place in held],
            records.images,
            batch_size=32,
            order=Order(shuffle=False, epochs=1),
            threads=encoder.data.workers,
            process=encoder,
        ) as loader:
            mine = [prompt for batch in loader for prompt in batch]
    if spread is None:
        return mine
    return complete(records, dict(zip(held, mine, strict=True)), spread.owner_P(len(records)))
