"""Which records come when: seed, shuffle, mix by weight, slice by host."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain

from vlaa_jax.schema import Record, UserError


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
    host_index: int = 0
    host_count: int = 1
    places: tuple[int, ...] = ()
    """Of every `batch` elements this host gets those at these places; empty: all of them."""
    batch: int = 1

    def __post_init__(self) -> None:
        if self.places and not 0 <= min(self.places) <= max(self.places) < self.batch:
            raise ValueError(f"places {self.places} are not all in a batch of {self.batch}")
        if not 0 <= self.host_index < self.host_count:
            raise ValueError(f"host_index {self.host_index} of {self.host_count} hosts")
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

    With H hosts, host h gets elements h, h + H, h + 2H, ... of one common stream, so the hosts'
    batches of a step are together the batch that a single host would see.

    Raises:
      UserError: there are no records, or a weight names a source that has none.
    """
    if len(records) == 0:
        raise UserError("there are no records to load; see the rejects for the reasons")
    if order.source_weights is None:
        stream = _component(records, order, order.seed)
    else:
        stream = _mixed(records, order, order.source_weights)
    if order.places:
        return _Places(stream, order.places, order.batch)
    return stream[order.host_index :: order.host_count]


class _Places(grain.MapDataset):
    """The elements at some places of every batch."""

    def __init__(self, stream: grain.MapDataset, places: tuple[int, ...], batch: int) -> None:
        super().__init__(stream)
        self._stream, self._places, self._batch = stream, places, batch

    def __len__(self) -> int:
        return len(self._stream) // self._batch * len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, place = divmod(index, len(self._places))
        return self._stream[batch * self._batch + self._places[place]]


def _component(records: Sequence[Record], order: Order, seed: int) -> grain.MapDataset:
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
    names = sorted(positive)
    parts = [
        _component(_Subset(records, by_source[name]), order, order.seed + 1 + i)
        for i, name in enumerate(names)
    ]
    return grain.MapDataset.mix(parts, [positive[name] for name in names])


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


class _Subset(Sequence[Record]):
    """Some records of a sequence, without copying them."""

    def __init__(self, records: Sequence[Record], indices: list[int]) -> None:
        self._records, self._indices = records, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        return self._records[self._indices[index]]
