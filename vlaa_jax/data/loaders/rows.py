"""Packed rows for supervised training, through Grain.

Packing runs ahead on sizes alone; then the samples of one batch are decoded and encoded by a few
threads and laid out, while the batch before is being trained on. The state is where the stream
stands and which samples wait to be packed, so a restored loader gives bitwise the same batches.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import grain
from grain.experimental import ThreadPrefetchIterDataset

from vlaa_jax.data.loaders.loader import Loader, Order, ordered
from vlaa_jax.data.rows.batches import RowBatch, collate_rows
from vlaa_jax.data.rows.packing import (
    PackBudget,
    PackedBatch,
    Packer,
    fit_budget,
    largest_samples,
    pack,
)
from vlaa_jax.data.samples.preprocessor import Encoded, Preprocessor
from vlaa_jax.data.sources.source import ImageOpener
from vlaa_jax.schema import Grid, Record, UserError

_AT_ONCE = 256
_TRIES = 8
_AHEAD = 2
"""Batches that are laid out before they are asked for."""


class Sized(NamedTuple):
    """A record with its lengths."""

    record: Record
    n_tokens: int
    grids: tuple[Grid, ...]


@dataclass(frozen=True)
class Samples:
    """Records with answers, and everything between them and what the model reads.

    Attributes:
      records: a source or a list; all with answers.
      images: from a record to its images (``Source.images``).
      preprocessor: of the checkpoint.
    """

    records: Sequence[Record]
    images: ImageOpener
    preprocessor: Preprocessor

    def size(self, record: Record) -> Sized:
        """The lengths of a record: those that it brings, or else measured now."""
        if (known := record.lengths) is not None:
            grids = tuple(self.preprocessor.processor.grid(*size) for size in known.image_sizes)
            return Sized(record, known.tokens, grids)
        sizes = [image.size for image in self.images(record)]
        found = self.preprocessor.measure(record, sizes, with_answer=True)
        return Sized(record, found.tokens, found.grids)

    def encode(self, sized: Sized) -> Encoded:
        """The sample as arrays.

        Raises:
          UserError: an image cannot be used, or the lengths are not those it was packed by.
        """
        record = sized.record
        images = self.images(record)
        encoded = self.preprocessor.encode(record, images, with_answer=True)
        if (encoded.length, encoded.grids) != (sized.n_tokens, sized.grids):
            raise UserError(
                f"record {record.id!r}: {encoded.length} tokens, but it was built with "
                f"{sized.n_tokens}; build again with this checkpoint, these pixel limits and this "
                "system prompt"
            )
        return encoded


def row_loader(
    samples: Samples,
    budget: PackBudget,
    *,
    order: Order | None = None,
    threads: int = 2,
    shards: Sequence[int] | None = None,
) -> Loader[RowBatch]:
    """Batches of packed rows, all of the budget's shape.

    Several hosts that name their `shards` pack the same stream, by sizes, and lay out only the rows
    of their own: together their batches are those of a single host, and the state is the same on
    all.

    Args:
      samples: the records.
      budget: shape of a batch, for example from ``row_budget``; ``n_shards`` counts the data shards
        that are packed for.
      order: seed, shuffle, epochs, mixing.
      threads: threads that decode and encode; 0 does everything in the caller's, when asked.
      shards: the data shards of this host, in order; None: all.

    Raises:
      UserError: no records; while iterating, a sample that fits no batch or an image that cannot
        be used.
    """
    stream = ordered(samples.records, order or Order())
    mine = tuple(range(budget.n_shards) if shards is None else shards)
    pool = ThreadPoolExecutor(threads, "encode") if threads > 0 else None
    dataset: grain.IterDataset = _Packed(stream, samples, budget, mine, pool)
    if pool is not None:
        dataset = ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=_AHEAD)
    return Loader(dataset, pool)


def row_budget(
    samples: Samples, shape: PackBudget, *, order: Order | None = None, sample: int = 512
) -> PackBudget:
    """A budget whose vision part runs out together with the tokens, and that every record fits.

    The proportions come from the first records of the stream; all records are then measured once,
    so that training never meets one that does not fit. All hosts must use the same budget: what is
    looked at does not depend on the host.

    Args:
      samples: the records.
      shape: what is known of the budget; its vision part is replaced.
      order: the one that training will use.
      sample: records of the stream that decide the proportions.

    Raises:
      UserError: names a record that is longer than a row, has more images than a budget can hold,
        or cannot be measured.
    """
    order = order or Order()
    stream = ordered(samples.records, order)
    first = [samples.size(stream[i]) for i in range(min(sample, len(samples.records)))]
    sizes = [(s.n_tokens, s.grids) for s in first]
    every = _distinct_sizes(samples, order, shape.tokens_per_row)
    sizes += largest_samples(every, shape.window_units)
    for _ in range(_TRIES):
        budget = fit_budget(sizes, shape)
        misfits = [grids for grids in every if budget.problem(0, grids)]
        if not misfits:
            return budget
        sizes.append((1, misfits[0]))
    raise UserError(
        f"record {every[misfits[0]]!r}: its {len(misfits[0])} images do not fit the vision "
        "budget; raise rows_per_shard or lower max_pixels"
    )


def count_batches(samples: Samples, budget: PackBudget, order: Order) -> int:
    """Batches that ``row_loader`` will give in finite epochs; packs sizes, decodes nothing."""
    stream = ordered(samples.records, order)
    sized = (samples.size(stream[i]) for i in range(len(stream)))
    return sum(1 for _ in pack(((0, s.n_tokens, s.grids) for s in sized), budget))


def _distinct_sizes(
    samples: Samples, order: Order, tokens_per_row: int
) -> dict[tuple[Grid, ...], str]:
    """The different images that a sample has, each with the id of the first record.

    Raises:
      UserError: a record is longer than a row.
    """
    found: dict[tuple[Grid, ...], str] = {}
    records = samples.records
    with ThreadPoolExecutor(2, "measure") as pool:
        for start in range(0, len(records), _AT_ONCE):
            part = [records[i] for i in range(start, min(start + _AT_ONCE, len(records)))]
            part = [r for r in part if order.weight(r.source) > 0]
            for sized in pool.map(samples.size, part):
                if sized.n_tokens > tokens_per_row:
                    raise UserError(
                        f"record {sized.record.id!r}: {sized.n_tokens} tokens are over "
                        f"tokens_per_row {tokens_per_row}"
                    )
                found.setdefault(sized.grids, sized.record.id)
    return found


_Fed = tuple[int, Sized]
"""A sample, with its position in the stream."""
Job = Callable[[], Encoded]
"""Gives a sample, now or when a thread has finished it."""


class _Packed(grain.IterDataset):
    """Packed batches of a stream with random access."""

    def __init__(self, *parts: Any) -> None:
        """``parts``: those of the iterator."""
        super().__init__()
        self._parts = parts

    def __iter__(self) -> grain.DatasetIterator:
        return _PackedIterator(*self._parts)


class _Ready(NamedTuple):
    """A packed batch whose samples are being encoded, and the state behind it."""

    rows: list[list[Job]]
    state: dict[str, Any]
    error: BaseException | None = None


class _PackedIterator(grain.DatasetIterator):
    """State: the position of the stream, and the positions that wait to be packed.

    With threads it packs one batch ahead, so that they encode the next one while this
    one is being laid out; the state is always that behind the batch handed out last.
    """

    def __init__(
        self,
        stream: grain.MapDataset,
        samples: Samples,
        budget: PackBudget,
        shards: tuple[int, ...],
        pool: Executor | None,
    ) -> None:
        super().__init__()
        self._stream, self._samples, self._budget = stream, samples, budget
        self._shards, self._pool = shards, pool
        own = replace(budget, n_shards=len(shards))
        self._layout = own.layout(samples.preprocessor.chat.pad_id)
        self._ready: deque[_Ready] = deque()
        self.set_state({"position": 0, "waiting": []})

    def get_state(self) -> dict[str, Any]:
        return {**self._state, "waiting": list(self._state["waiting"])}

    def set_state(self, state: dict[str, Any]) -> None:
        self._ready.clear()
        self._position = int(state["position"])
        self._packer: Packer[_Fed] = Packer(replace(self._budget, lookahead=float("inf")))
        for index in state["waiting"]:
            self._feed(int(index))
        self._packer.budget = self._budget
        self._rest: Iterator[PackedBatch[_Fed]] | None = None
        self._state = self._packer_state()

    def __next__(self) -> RowBatch:
        while len(self._ready) < (1 if self._pool is None else 2):
            if self._ready and self._ready[-1].error is not None:
                break
            self._ready.append(self._pack())
        batch = self._ready.popleft()
        if batch.error is not None:
            raise batch.error
        self._state = batch.state
        rows = [[job() for job in row] for row in batch.rows]
        return collate_rows(rows, self._layout, tokens_per_row=self._budget.tokens_per_row)

    def _packer_state(self) -> dict[str, Any]:
        waiting = [index for index, _ in self._packer.waiting]
        return {"position": self._position, "waiting": waiting}

    def _pack(self) -> _Ready:
        """The next batch; an error comes in its turn, behind the batches before it."""
        try:
            batch = None
            while batch is None:
                if self._position >= len(self._stream):
                    self._rest = self._rest or self._packer.flush()
                    batch = next(self._rest)
                else:
                    batch = self._feed(self._position)
                    self._position += 1
        except (UserError, StopIteration) as error:
            return _Ready([], {}, error)
        part = self._budget.rows_per_shard
        rows = [
            [self._job(sized) for _, sized in row]
            for shard in self._shards
            for row in batch.rows[shard * part : (shard + 1) * part]
        ]
        return _Ready(rows, self._packer_state())

    def _feed(self, index: int) -> PackedBatch[_Fed] | None:
        sized = self._samples.size(self._stream[index])
        name = f"record {sized.record.id!r}"
        return self._packer.add((index, sized), sized.n_tokens, sized.grids, name)

    def _job(self, sized: Sized) -> Job:
        if self._pool is None:
            return partial(self._samples.encode, sized)
        return self._pool.submit(self._samples.encode, sized).result
