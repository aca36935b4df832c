"""Packed rows for supervised training, through Grain.

Packing runs ahead on sizes alone; then the samples of one batch are decoded and encoded by a few
threads and laid out, while the batch before is being trained on. The state is where the stream
stands and which samples wait to be packed, so a restored loader gives bitwise the same batches.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import grain
from grain.experimental import ThreadPrefetchIterDataset

from vlaa_jax.data.batches import RowBatch, collate_rows
from vlaa_jax.data.buffers import Buffers
from vlaa_jax.data.chat import Chat
from vlaa_jax.data.encode import Encoded, encode_sft
from vlaa_jax.data.images import ImageProcessor
from vlaa_jax.data.loader import ImageOpener, Loader, Order, image_sizes, opener, ordered
from vlaa_jax.data.measure import Built, measure
from vlaa_jax.data.packing import PackBudget, PackedBatch, Packer, fit_budget
from vlaa_jax.data.planner import Grid
from vlaa_jax.schema import Record, UserError


class Sized(NamedTuple):
    """A record with its lengths."""

    record: Record
    n_tokens: int
    grids: tuple[Grid, ...]


@dataclass(frozen=True)
class Encoder:
    """Everything between a record and what the model reads."""

    images: ImageOpener
    chat: Chat
    processor: ImageProcessor
    system_prompt: str = ""

    def size(self, record: Record) -> Sized:
        """The lengths of a record: those of the build it comes from, or else measured.

        Measuring tokenises the text and reads the images' headers each time a record is packed; a
        build knows.
        """
        built = record.meta.get("built")
        sizes = image_sizes(self.images, record)
        if isinstance(built, Built):
            grids = tuple(self.processor.grid(*size) for size in sizes)
            return Sized(record, int(built["tokens"]), grids)
        found = measure(
            record,
            sizes,
            self.chat,
            self.processor,
            system_prompt=self.system_prompt,
            with_answer=True,
        )
        return Sized(record, found.tokens, found.grids)

    def encode(self, sized: Sized) -> Encoded:
        """The sample as arrays, its patches still pixels.

        Raises:
          UserError: an image cannot be used, or the lengths are not those it was packed by.
        """
        record = sized.record
        encoded = encode_sft(
            record,
            self.images(record),
            self.chat,
            self.processor,
            system_prompt=self.system_prompt,
            as_pixels=True,
        )
        if (encoded.length, encoded.grids) != (sized.n_tokens, sized.grids):
            raise UserError(
                f"record {record.id!r}: {encoded.length} tokens, but it was built with "
                f"{sized.n_tokens}; build again with this checkpoint, these pixel limits and this "
                "system prompt"
            )
        return encoded


def row_loader(
    records: Sequence[Record],
    images: str | os.PathLike[str] | ImageOpener,
    *,
    chat: Chat,
    processor: ImageProcessor,
    budget: PackBudget,
    order: Order | None = None,
    system_prompt: str = "",
    threads: int = 2,
    ahead: int = 2,
    transfer: Callable[[RowBatch], Any] | None = None,
) -> Loader[Any]:
    """Batches of packed rows of this host, all of the budget's shape.

    With several hosts, leave ``order.epochs`` None: packing may give hosts different numbers of
    batches in an epoch.

    Args:
      records: BuiltRecords, a RecordFile or a list; all with answers.
      images: image root, or a function from record to images (``BuiltRecords.images``).
      chat: tokenizer and template of the checkpoint.
      processor: image processor of the checkpoint.
      budget: shape of a batch, for example from ``row_budget``; ``n_shards`` counts the data shards
        of this host.
      order: seed, shuffle, epochs, mixing, host slice.
      system_prompt: empty for the template's own.
      threads: threads that decode and encode the samples of a batch; 0 takes the thread that packs.
      ahead: batches made ahead of the caller; 0 makes each when it is asked for.
      transfer: called with each batch in the background, e.g. to put it on the devices.

    Raises:
      UserError: no records; while iterating, a sample that fits no batch or an image that cannot
        be used.
    """
    encoder = Encoder(opener(images), chat, processor, system_prompt)
    stream = ordered(records, order or Order())
    pool = ThreadPoolExecutor(threads, "encode") if threads > 0 else None
    packed = _Packed(stream, encoder, budget, pool)
    dataset: grain.IterDataset = packed.map(_Collate(encoder, budget, transfer, Buffers()))
    if ahead > 0:
        dataset = ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=ahead)
    return Loader(dataset, (pool,) if pool is not None else ())


def row_budget(
    records: Sequence[Record],
    images: str | os.PathLike[str] | ImageOpener,
    *,
    chat: Chat,
    processor: ImageProcessor,
    tokens_per_row: int,
    rows_per_shard: int,
    n_shards: int = 1,
    window_units: int = 4,
    order: Order | None = None,
    system_prompt: str = "",
    sample: int = 512,
) -> PackBudget:
    """A budget whose vision part runs out together with the tokens, from the first records.

    All hosts must use the same budget: the records looked at do not depend on the host.
    """
    encoder = Encoder(opener(images), chat, processor, system_prompt)
    stream = ordered(records, replace(order or Order(), host_index=0, host_count=1))
    count = min(sample, len(records))
    sizes = [encoder.size(stream[i]) for i in range(count)]
    longest = max(sizes, key=lambda s: s.n_tokens)
    if longest.n_tokens > tokens_per_row:
        raise UserError(
            f"record {longest.record.id!r}: {longest.n_tokens} tokens are over tokens_per_row "
            f"{tokens_per_row}"
        )
    return fit_budget(
        [(s.n_tokens, s.grids) for s in sizes],
        tokens_per_row,
        rows_per_shard,
        n_shards,
        window_units,
    )


Job = Callable[[], Encoded]
"""Gives a sample, now or when a thread has finished it."""


@dataclass(frozen=True)
class _Collate:
    """Rows of samples to arrays."""

    encoder: Encoder
    budget: PackBudget
    transfer: Callable[[RowBatch], Any] | None
    buffers: Buffers

    def __call__(self, rows: list[list[Job]]) -> Any:
        batch = collate_rows(
            [[job() for job in row] for row in rows],
            self.budget.n_shards,
            pad_id=self.encoder.chat.pad_id,
            tokens_per_row=self.budget.tokens_per_row,
            window_units=self.budget.window_units,
            rows_per_bin=self.budget.rows_per_bin,
            bins_per_shard=self.budget.bins_per_shard,
            processor=self.encoder.processor,
            empty=self.buffers.empty,
        )
        return batch if self.transfer is None else self.transfer(batch)


class _Packed(grain.IterDataset):
    """Rows of samples, packed from a stream with random access."""

    def __init__(
        self,
        stream: grain.MapDataset,
        encoder: Encoder,
        budget: PackBudget,
        pool: Executor | None,
    ) -> None:
        super().__init__()
        self._make = partial(_PackedIterator, stream, encoder, budget, pool)

    def __iter__(self) -> grain.DatasetIterator:
        return self._make()


class _Ready(NamedTuple):
    """A packed batch whose samples are being encoded, and the state behind it."""

    rows: list[list[Job]]
    state: dict[str, Any]
    error: BaseException | None = None


class _PackedIterator(grain.DatasetIterator):
    """State: the position of the stream, and the positions that wait to be packed.

    With a pool it packs one batch ahead, so that threads encode the next batch while this one is
    being laid out; the state is always that behind the batch handed out last.
    """

    def __init__(
        self,
        stream: grain.MapDataset,
        encoder: Encoder,
        budget: PackBudget,
        pool: Executor | None,
    ) -> None:
        super().__init__()
        self._stream, self._encoder, self._budget = stream, encoder, budget
        self._pool = pool
        self._ready: deque[_Ready] = deque()
        self.set_state({"position": 0, "waiting": []})

    def get_state(self) -> dict[str, Any]:
        return {**self._state, "waiting": list(self._state["waiting"])}

    def set_state(self, state: dict[str, Any]) -> None:
        self._ready.clear()
        self._position = int(state["position"])
        self._packer: Packer[int] = Packer(replace(self._budget, lookahead=float("inf")))
        self._sized: dict[int, Sized] = {}
        for index in state["waiting"]:
            self._feed(int(index))
        self._packer.budget = self._budget
        self._rest: Iterator[PackedBatch[int]] | None = None
        self._state = self._packer_state()

    def __next__(self) -> list[list[Job]]:
        while len(self._ready) < (1 if self._pool is None else 2):
            if self._ready and self._ready[-1].error is not None:
                break
            self._ready.append(self._pack())
        batch = self._ready.popleft()
        if batch.error is not None:
            raise batch.error
        self._state = batch.state
        return batch.rows

    def _packer_state(self) -> dict[str, Any]:
        return {"position": self._position, "waiting": list(self._packer.waiting)}

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
        rows = [[self._job(self._sized.pop(index)) for index in row] for row in batch.rows]
        return _Ready(rows, self._packer_state())

    def _feed(self, index: int) -> PackedBatch[int] | None:
        sized = self._encoder.size(self._stream[index])
        self._sized[index] = sized
        try:
            return self._packer.add(index, sized.n_tokens, sized.grids)
        except UserError as error:
            reason = str(error).split(": ", 1)[-1]
            raise UserError(f"record {sized.record.id!r}: {reason}") from error

    def _job(self, sized: Sized) -> Job:
        if self._pool is None:
            return partial(self._encoder.encode, sized)
        return self._pool.submit(self._encoder.encode, sized).result
