"""Loaders over Grain: seeded, host-sliced, decoded in threads, and exactly resumable.

The order of steps is: records -> (per source) seed, shuffle, repeat -> mix by weight -> places of
this host -> to iterator -> decode and process in threads -> batch. Grain turns into an iterator
once, behind the mix, so the number of thread pools does not grow with the number of sources.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grain
from PIL import Image

from vlaa_jax.data.sources.source import ImageOpener
from vlaa_jax.schema import Record, UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Order:
    """Which records come when, and which of them to this host."""

    seed: int = 0
    shuffle: bool = True
    epochs: int | None = None
    """How often every record comes; None goes on for ever. Every epoch has an order of its own."""
    source_weights: Mapping[str, float] | None = None
    """Relative share of each source, whatever the case its name is written in; None takes the
    records as one pool. Needs epochs=None."""
    places: tuple[int, ...] = ()
    """Of every `batch` elements this host gets those at these places; empty: all of them."""
    batch: int = 1

    def __post_init__(self) -> None:
        if self.places and not 0 <= min(self.places) <= max(self.places) < self.batch:
            raise ValueError(f"places {self.places} are not all in a batch of {self.batch}")
        if self.source_weights is not None and self.epochs is not None:
            raise ValueError("source_weights need epochs=None: a mixed stream has no epochs")
        folded = Counter(source.casefold() for source in self.source_weights or ())
        for source in (name for name, count in folded.items() if count > 1):
            raise ValueError(f"source_weights hold {source!r} twice")

    def weight(self, source: str) -> float:
        """Relative share of the records of a source; 0 if they do not come."""
        if self.source_weights is None:
            return 1.0
        folded = {name.casefold(): weight for name, weight in self.source_weights.items()}
        return folded.get(source.casefold(), 0.0)


def ordered(records: Sequence[Record], order: Order) -> grain.MapDataset:
    """The stream of records as this host sees it; random access, nothing decoded.

    Raises:
      UserError: there are no records, or a weight names a source that has none.
    """
    if len(records) == 0:
        raise UserError("there are no records to load; see the rejects for the reasons")
    if order.source_weights is None:
        stream = _component(records, order, order.seed)
    else:
        stream = _mixed(records, order, order.source_weights)
    if not order.places:
        return stream
    here = grain.MapDataset.range(len(stream) // order.batch * len(order.places))

    def at(index: int) -> Any:
        batch, place = divmod(index, len(order.places))
        return stream[batch * order.batch + order.places[place]]

    return here.map(at)


def _component(records: Sequence[Any], order: Order, seed: int) -> grain.MapDataset:
    stream = grain.MapDataset.source(records).seed(seed)
    if order.shuffle:
        stream = stream.shuffle()
    return stream.repeat(order.epochs)


def _mixed(
    records: Sequence[Record], order: Order, weights: Mapping[str, float]
) -> grain.MapDataset:
    by_source: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        by_source.setdefault(record.source.casefold(), []).append(index)
    positive = {source.casefold(): weight for source, weight in weights.items() if weight > 0}
    missing = sorted(set(positive) - set(by_source))
    if missing or not positive:
        have = ", ".join(sorted({record.source for record in records})) or "none"
        wanted = ", ".join(missing) or "any source with a positive weight"
        raise UserError(f"source_weights: no records of {wanted}; sources present: {have}")
    parts = [
        _component(by_source[name], order, order.seed + 1 + i).map(records.__getitem__)
        for i, name in enumerate(sorted(positive))
    ]
    return grain.MapDataset.mix(parts, [positive[name] for name in sorted(positive)])


def records_digest(records: Sequence[Record]) -> str:
    """SHA-256 (hex) of what records ask and pay, and of their order.

    A loader's state is a position in a stream that is a function of the records; it means something
    else with others. ``meta`` is left out: a build adds to it.
    """
    digest = hashlib.sha256()
    for r in records:
        told = (r.id, r.question, r.gt, r.verifier_type, r.answer, r.source, r.images, r.box_space)
        digest.update(json.dumps(told).encode() + b"\n")
    return digest.hexdigest()


class Loader(Generic[T]):
    """An iterator of batches with exact state.

    ``get_state`` / ``set_state`` are JSON-able, and say where in the stream of these records the
    loader stands (``records_digest``); ``iterator`` is the Grain iterator itself, for
    ``grain.checkpoint.CheckpointSave`` in an Orbax composite. ``close`` stops the threads.
    """

    def __init__(self, dataset: grain.IterDataset, pool: Executor | None = None) -> None:
        """Wrap a dataset; ``pool`` is shut down by ``close`` with Grain's own executors."""
        self.iterator: grain.DatasetIterator = iter(dataset)
        self._pool = pool

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        try:
            return next(self.iterator)
        except UserError as error:
            # Grain writes below the message that it left its own frames out.
            raise UserError(str(error).split("\n", 1)[0]) from error

    def get_state(self) -> dict[str, Any]:
        """Position behind the last batch that was handed out."""
        return json.loads(json.dumps(self.iterator.get_state()))

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go to a position; the next batch is the one that came after ``get_state``."""
        self.iterator.set_state(dict(state))

    def close(self) -> None:
        """Stop reading ahead and leave no thread behind."""
        executors = [*_executors(self.iterator), self._pool]
        self.iterator.close()
        for executor in filter(None, executors):  # Grain ends its threads, but does not wait
            executor.shutdown(wait=True)

    def __enter__(self) -> "Loader[T]":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def _executors(iterator: Any) -> Iterator[Executor]:
    executor = getattr(iterator, "_executor", None)
    if isinstance(executor, Executor):
        yield executor
    for parent in getattr(iterator, "_parents", ()):
        yield from _executors(parent)


def _pair(record: Record, images: tuple[Image.Image, ...]) -> Any:
    return record, images


def prompt_loader(
    records: Sequence[Record],
    images: ImageOpener,
    *,
    batch_size: int,
    order: Order | None = None,
    threads: int = 2,
    process: Callable[[Record, tuple[Image.Image, ...]], Any] = _pair,
) -> Loader[Any]:
    """Batches of prompts for GRPO or evaluation: lists of (Record, images) unless told otherwise.

    Args:
      records: a list of records, a RecordFile or BuiltRecords.
      images: from a record to its images (``Source.images``).
      batch_size: records per batch on this host; the last of finite epochs may be shorter.
      order: seed, shuffle, epochs, mixing, places of this host.
      threads: threads that decode; 0 decodes in the caller's thread. The output does not depend
        on it.
      process: called in the threads with record and images; its result takes the pair's place.

    Raises:
      UserError: at once when there are no records; while iterating when an image is missing,
        broken or outside the root.
    """
    stream = ordered(records, order or Order())
    decoded = stream.map(lambda record: process(record, images(record)))
    # At most two batches ahead: decoded images are large.
    ahead = max(threads, min(64, 2 * batch_size)) if threads > 0 else 0
    options = grain.ReadOptions(num_threads=max(threads, 0), prefetch_buffer_size=ahead)
    batches = decoded.to_iter_dataset(options).batch(batch_size, batch_fn=list)
    return Loader(batches)
