"""Prompts that are spread over hosts: loaded whole where the data shard is, known elsewhere.

Every host knows of every prompt what plans are made of: the record, its length and its image grids.
Tokens and patches are only where they go onto devices. A prompt that a later plan puts elsewhere
(a step deals its prompts anew, a group was replaced) is read again there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from vlaa_jax.data.loaders.loader import Loader
from vlaa_jax.data.samples.preprocessor import Encoded
from vlaa_jax.data.sources.source import ImageOpener
from vlaa_jax.parallel import hosts
from vlaa_jax.parallel.local import local_shards, owners
from vlaa_jax.parallel.mesh import data_shards
from vlaa_jax.policy.prompts import Encoder, Prompt
from vlaa_jax.rollout.engine import Rollout
from vlaa_jax.schema import Record, Score


@dataclass(frozen=True)
class Deal:
    """Which host loads and which host scores each prompt of a batch.

    Attributes:
        mesh: the device mesh.
        at_once: prompts that are dealt to the data shards together.
    """

    mesh: Mesh
    at_once: int

    def owner_P(self, count: int) -> np.ndarray:
        """The one host that scores each of the prompts."""
        if hosts.count() == 1:
            return np.zeros(count, int)
        return owners(count, self.at_once, self.mesh)

    def held(self, count: int) -> list[int]:
        """The prompts that lie on devices of this host."""
        shard = np.arange(count) % self.at_once // (self.at_once // data_shards(self.mesh))
        return np.flatnonzero(np.isin(shard, local_shards(self.mesh))).tolist()


def outline(record: Record, length: int, grids: Sequence[Any], size: Any) -> Prompt:
    """What a host knows of a prompt whose tokens are elsewhere."""
    zeros = np.broadcast_to(np.int32(0), (length,))
    encoded = Encoded(
        ids_T=zeros,
        loss_mask_T=zeros.astype(bool),
        positions_T3=np.broadcast_to(np.int32(0), (length, 3)),
        rope_delta=0,
        patches=(),
        grids=tuple((int(t), int(h), int(w)) for t, h, w in grids),
        n_image_tokens=0,
        image_mask_T=zeros.astype(bool),
    )
    return Prompt(record, encoded, tuple(size) if size else None, whole=False)


def complete(
    records: Sequence[Record], mine: Mapping[int, Prompt], owner_P: np.ndarray
) -> list[Prompt]:
    """All prompts of a batch: this host's whole, the others' in outline.

    Args:
        records: of all prompts.
        mine: by place, those that were loaded here.
        owner_P: the host that tells of each.
    """
    told = {
        str(place): [prompt.encoded.length, prompt.encoded.grids, prompt.image_size]
        for place, prompt in mine.items()
        if owner_P[place] == hosts.index()
    }
    known: dict[str, list[Any]] = {}
    for part in hosts.gather(told, "the prompts"):
        known |= part
    return [
        mine[place] if place in mine else outline(record, *known[str(place)])
        for place, record in enumerate(records)
    ]


class SpreadLoader(Loader[list[Prompt]]):
    """Batches of all prompts of a step, of which only this host's are loaded whole.

    Args:
        own: batches of the prompts at `held`.
        stream: all records in their order.
        deal: who loads what.
        batch: prompts of a batch.
    """

    def __init__(
        self, own: Loader[list[Prompt]], stream: Sequence[Record], deal: Deal, batch: int
    ) -> None:
        self._own, self._stream, self._batch = own, stream, batch
        self._held, self._owner_P = deal.held(batch), deal.owner_P(batch)
        self._next = 0

    def __iter__(self) -> Iterator[list[Prompt]]:
        return self

    def __next__(self) -> list[Prompt]:
        records = [self._stream[self._next + place] for place in range(self._batch)]
        mine = dict(zip(self._held, next(self._own), strict=True))
        self._next += self._batch
        return complete(records, mine, self._owner_P)

    def get_state(self) -> dict[str, Any]:
        """The position of all hosts together: that of a single one."""
        return {"next_index": self._next}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position, whoever wrote it."""
        self._next = int(state["next_index"])
        batches = self._next // self._batch
        self._own.set_state({"next_index": batches * len(self._held)})

    def close(self) -> None:
        """Stops reading ahead."""
        self._own.close()


class Reader:
    """Reads prompts whole that are known in outline; called for those of this host's shards.

    Args:
        images: opens images.
        encoder: encodes a record.
        most: prompts that are kept; beyond them all are given up.
    """

    def __init__(self, images: ImageOpener, encoder: Encoder, most: int = 512) -> None:
        self.most = most
        self._read: Callable[[Record, Any], Prompt] = encoder
        self._images, self._threads = images, max(encoder.data.workers, 1)
        self._found: dict[int, tuple[Prompt, Prompt]] = {}

    def __call__(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The same prompts, all of them whole."""
        if len(self._found) > self.most:
            self._found.clear()
        missing = {id(p): p for p in prompts if not p.whole and id(p) not in self._found}
        if missing:
            with ThreadPoolExecutor(self._threads, "read again") as pool:
                read = pool.map(self._again, missing.values())
                self._found |= zip(missing, zip(missing.values(), read, strict=True), strict=True)
        return [p if p.whole else self._found[id(p)][1] for p in prompts]

    def _again(self, prompt: Prompt) -> Prompt:
        return self._read(prompt.record, self._images(prompt.record))


def taken(rollout: Rollout, places: Sequence[int]) -> Rollout:
    """The completions of some prompts."""
    return Rollout(*(array[list(places)] for array in rollout))


def exchange(own: Mapping[int, Sequence[Score]], count: int) -> list[list[Score]]:
    """The scores of all prompts, from the hosts that have them.

    Args:
        own: by place, those of this host.
        count: prompts.
    """
    if hosts.count() == 1:
        return [list(own[place]) for place in range(count)]
    told = {str(place): [asdict(score) for score in scores] for place, scores in own.items()}
    every: dict[str, list[dict[str, Any]]] = {}
    for part in hosts.gather(told, "the scores"):
        every |= part
    return [[Score(**score) for score in every[str(place)]] for place in range(count)]
