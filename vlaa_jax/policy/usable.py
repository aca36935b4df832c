"""Which records can be used, and the loaders over them."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

from vlaa_jax.data.judging.golds import GoldProblems, bad_golds
from vlaa_jax.data.loaders.loader import Loader
from vlaa_jax.data.loaders.order import Order, ordered
from vlaa_jax.data.loaders.prompts import prompt_loader
from vlaa_jax.data.progress import progress
from vlaa_jax.data.records.reject import Reject
from vlaa_jax.data.samples.measure import Unfit
from vlaa_jax.data.sources.built import BuiltRecords
from vlaa_jax.data.sources.opener import ImageOpener, image_sizes, opener
from vlaa_jax.data.sources.record_file import RecordFile, iter_indexed
from vlaa_jax.parallel import hosts
from vlaa_jax.policy.pretrained import Pretrained
from vlaa_jax.policy.prompts import Encoder, Prompt
from vlaa_jax.policy.spread import Deal, Reader, SpreadLoader, complete
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.schema import Record, UserError
from vlaa_jax.settings import by_source
from vlaa_jax.settings.shared import PromptSettings

_AT_ONCE = 256
_MANY = 2000
"""Records whose check takes long enough to say how far it has come."""


GoldCheck = Callable[[Sequence[Record], Sequence[tuple[int, int] | None]], list[str | None]]
"""What is wrong with each record's gold, given the size of its first image."""


class RecordCheck(Protocol):
    """What decides whether a record can be used, without touching pixels."""

    @property
    def pretrained(self) -> Pretrained:
        """Whose image processor resizes the images."""

    @property
    def data(self) -> PromptSettings:
        """Which records are wanted, and what to do with bad ones."""

    def check(self, record: Record, sizes: Sequence[tuple[int, int]]) -> None:
        """Raises ``Unfit`` for a record that cannot be used."""


class Usable(list[Record]):
    """Records that can be trained on, and where their images are."""

    def __init__(self, records: Iterable[Record], images: ImageOpener) -> None:
        super().__init__(records)
        self.images = images


@dataclass(frozen=True)
class _Source:
    """A records file or a build, before its records are looked at one by one."""

    records: Iterable[tuple[int, Record]]
    count: int
    images: ImageOpener
    reject: Callable[[int, str, str, str], Reject]
    """Position, field, reason, id."""
    golds_checked: bool


def load_checked(
    path: Path,
    image_root: Path,
    encoder: RecordCheck,
    *,
    kind: str = "grpo",
    gold_problems: GoldProblems | None = None,
) -> "tuple[Usable, list[Reject]]":
    """Reads records and sorts out, before the first step, what cannot be used.

    Golds are put to their verifier, headers of images are read, and prompts are measured. A build
    knows its images, and its golds where they were checked when it was made; boxes in resized
    pixels are looked at again, as the pixel limits may be others now.

    Args:
        path: records file, or folder of a finished build.
        image_root: folder the image paths are relative to; a build brings its own images.
        encoder: its settings say whether to stop at the first bad record or to skip it.
        kind: "grpo", or "sft" for records with answers, whose golds nobody asks for.
        gold_problems: ``MixedReward.gold_problems``; None asks one made for the purpose.

    Returns:
        Usable records, and the rejects with their reasons.

    Raises:
        UserError: a record is bad and data.bad_records is "stop", or none is left.
    """
    rejects: list[Reject] = []
    data = encoder.data

    def refuse(reject: Reject) -> None:
        if data.bad_records == "stop":
            raise UserError(f"{reject} (data.bad_records=skip leaves such records out)")
        rejects.append(reject)

    source = (
        _open_build(path, data, kind)
        if path.is_dir()
        else _open_file(path, image_root, data, kind, refuse)
    )
    wanted = data.verifier_types
    usable: list[Record] = []
    with ExitStack() as stack:
        golds: GoldCheck = _no_golds
        if kind == "grpo":
            if gold_problems is None:
                gold_problems = stack.enter_context(MixedReward()).gold_problems
            golds = partial(
                bad_golds,
                gold_problems=gold_problems,
                resized=encoder.pretrained.processor.resized,
                only_resized=source.golds_checked,
            )
        pool = stack.enter_context(ThreadPoolExecutor(max(data.workers, 1)))
        found = progress(source.records, source.count, f"check {path}", source.count > _MANY)
        numbered = (pair for pair in found if not wanted or pair[1].verifier_type in wanted)
        while batch := list(islice(numbered, _AT_ONCE)):
            records = [record for _, record in batch]
            problems = _problems(records, source.images, encoder, golds, pool)
            for (index, record), problem in zip(batch, problems, strict=True):
                if problem is None:
                    usable.append(record)
                else:
                    refuse(source.reject(index, *problem, record.id))
    if not usable:
        kinds = f" of the types {', '.join(wanted)}" if wanted else ""
        first = f"; the first problem: {rejects[0]}" if rejects else ""
        raise UserError(f"{path}: no usable record{kinds} is left{first}")
    return Usable(usable, source.images), sorted(rejects, key=lambda reject: reject.index)


def _no_golds(
    records: Sequence[Record], sizes: Sequence[tuple[int, int] | None]
) -> list[str | None]:
    return [None] * len(records)


def _open_file(
    path: Path,
    image_root: Path,
    data: PromptSettings,
    kind: str,
    refuse: Callable[[Reject], None],
) -> _Source:
    spaces = by_source.box_spaces(data.box_space)
    file = RecordFile(path, kind=kind, box_space=spaces)
    return _Source(iter_indexed(file, refuse), len(file), opener(image_root), file.reject, False)


def _open_build(path: Path, data: PromptSettings, kind: str) -> _Source:
    built = BuiltRecords(path)
    settings = built.manifest["settings"]
    if settings["kind"] != kind:
        raise UserError(f"{path}: is a build of kind {settings['kind']!r}, {kind!r} is needed")
    spaces = by_source.box_spaces(data.box_space)
    if data.box_space and spaces != settings["box_space"]:
        raise UserError(
            f"data.box_space: {path} was built with {settings['box_space']!r}; leave it empty, or "
            "build again with --box-space"
        )

    def reject(index: int, field: str, reason: str, record_id: str) -> Reject:
        return Reject(str(path), index, None, record_id, field, reason)

    checked = bool(built.manifest["golds_checked"])
    return _Source(enumerate(built), len(built), built.images, reject, checked)


def _problems(
    records: Sequence[Record],
    images: ImageOpener,
    encoder: RecordCheck,
    golds_of: GoldCheck,
    pool: ThreadPoolExecutor,
) -> list[tuple[str, str] | None]:
    """Field and reason why each record cannot be used, or None."""
    sizes = list(pool.map(partial(_sizes, images), records))
    first = [found[0] if found and not isinstance(found, str) else None for found in sizes]
    golds = golds_of(records, first)

    def problem(
        record: Record, gold: str | None, found: list[tuple[int, int]] | str
    ) -> tuple[str, str] | None:
        if gold is not None:
            return "gt", gold
        if isinstance(found, str):
            return "image", found
        try:
            encoder.check(record, found)
        except Unfit as unfit:
            return unfit.field, unfit.reason
        return None

    return list(pool.map(problem, records, golds, sizes))


def _sizes(images: ImageOpener, record: Record) -> list[tuple[int, int]] | str:
    """(width, height) of each image of a record, or why one cannot be used."""
    try:
        return image_sizes(images, record)
    except UserError as error:
        return str(error).removeprefix(f"record {record.id!r}: ")


def training_loader(
    records: Sequence[Record],
    image_root: Path,
    encoder: Encoder,
    *,
    batch: int,
    seed: int,
    deal: Deal | None = None,
) -> Loader[list[Prompt]]:
    """Endless shuffled batches of prompts with exact state.

    Args:
        records: as ``load_checked`` gives them.
        image_root: where the images are of records that do not say so themselves.
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
        _images_of(records, image_root),
        batch_size=len(places) or batch,
        order=replace(order, places=places, batch=batch) if spread else order,
        threads=encoder.data.workers,
        process=encoder,
    )
    return SpreadLoader(loader, ordered(records, order), spread, batch) if spread else loader


def _images_of(records: Sequence[Record], image_root: Path) -> Path | ImageOpener:
    return records.images if isinstance(records, Usable) else image_root


def heldout_prompts(
    records: Sequence[Record], image_root: Path, encoder: Encoder, deal: Deal | None = None
) -> list[Prompt]:
    """All prompts of a held-out set, in file order; see ``spread`` for several hosts."""
    spread = deal if hosts.count() > 1 else None
    held = spread.held(len(records)) if spread else list(range(len(records)))
    mine: list[Prompt] = []
    if held:
        with prompt_loader(
            [records[place] for place in held],
            _images_of(records, image_root),
            batch_size=32,
            order=Order(shuffle=False, epochs=1),
            threads=encoder.data.workers,
            process=encoder,
        ) as loader:
            mine = [prompt for batch in loader for prompt in batch]
    if spread is None:
        return mine
    return complete(records, dict(zip(held, mine, strict=True)), spread.owner_P(len(records)))


def reader(records: Sequence[Record], image_root: Path, encoder: Encoder) -> Reader:
    """Reads prompts of these records that are only known in outline."""
    return Reader(opener(_images_of(records, image_root)), encoder)
