"""Packed rows on the devices: which records can be used, how they are packed, where they lie."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from vlaa_jax.data.loaders.loader import Loader, Order
from vlaa_jax.data.loaders.rows import Samples, count_batches, row_budget, row_loader
from vlaa_jax.data.rows.batches import RowBatch, collate_rows
from vlaa_jax.data.rows.packing import PackBudget, pack
from vlaa_jax.data.sources.source import ImageOpener
from vlaa_jax.models.qwen_vl.model import RowInputs
from vlaa_jax.models.qwen_vl.vision import VisionInputs
from vlaa_jax.parallel import hosts
from vlaa_jax.parallel.local import local_shards, owned_shards, put_local
from vlaa_jax.parallel.mesh import data_shards
from vlaa_jax.policy.pretrained import Pretrained
from vlaa_jax.schema import Record, UserError
from vlaa_jax.settings import by_source
from vlaa_jax.settings.sft import RowSettings


class RowTargets(NamedTuple):
    """Rows, and which tokens of them are to be learnt.

    Attributes:
        rows: the rows.
        predicts_BT: True where the token that follows is a target.
    """

    rows: RowInputs
    predicts_BT: Any


def row_targets(batch: RowBatch, *, vision: bool) -> RowTargets:
    """The model's view of a host batch, with or without its vision part."""
    host: Any = batch  # numpy arrays stand in for the device's
    predicts = np.zeros_like(batch.loss_mask_BT)
    predicts[:, :-1] = batch.loss_mask_BT[:, 1:]
    images = VisionInputs(*host.vision) if vision else None
    rows = RowInputs(host.ids_BT, host.positions_BT3, host.segment_ids_BT, host.unit_src_BT, images)
    return RowTargets(rows, predicts)


class RowSource:
    """Packs records into rows and puts these on the mesh, every host those of its data shards.

    Args:
        records: usable ones.
        images: opens their images.
        pretrained: tokenizer and image processor.
        data: sizes of rows and batches.
        mesh: the device mesh.
        seed: of the order.

    Raises:
        UserError: the rows do not divide over the data shards, or a record fits no row.
    """

    def __init__(
        self,
        records: Sequence[Record],
        images: ImageOpener,
        pretrained: Pretrained,
        data: RowSettings,
        mesh: Mesh,
        *,
        seed: int,
    ) -> None:
        shards = data_shards(mesh)
        if data.rows_at_once % shards:
            name = "data.micro_rows" if data.micro_rows else "data.rows"
            raise UserError(
                f"{name}: {data.rows_at_once} rows at once cannot be dealt to {shards} data shards "
                "(mesh.data x mesh.fsdp); choose a multiple"
            )
        self.records, self._data, self._mesh = records, data, mesh
        self._samples = Samples(records, images, pretrained.preprocessor(data))
        weights = by_source.source_weights(data.source_weights)
        self._order = Order(seed=seed, source_weights=weights)
        shape = PackBudget(
            data.tokens_per_row,
            data.rows_at_once // shards,
            shards,
            window_units=pretrained.window_units,
        )
        self.budget: PackBudget = row_budget(self._samples, shape, order=self._order)

    @property
    def batches_per_update(self) -> int:
        """Micro-batches of an update."""
        return self._data.rows // self._data.rows_at_once

    def updates_per_epoch(self) -> int:
        """Updates that one pass over the records takes; packs sizes, decodes nothing."""
        once = replace(self._order, epochs=1, source_weights=None)
        batches = count_batches(self._samples, self.budget, once)
        return max(-(-batches // self.batches_per_update), 1)

    def loader(self) -> Loader[RowBatch]:
        """Endless shuffled batches with exact state."""
        return self._load(self._order)

    def once(self) -> Loader[RowBatch]:
        """Every record once, in file order; the last batch may hold empty rows."""
        return self._load(Order(shuffle=False, epochs=1))

    def _load(self, order: Order) -> Loader[RowBatch]:
        return row_loader(
            self._samples,
            self.budget,
            order=order,
            threads=self._data.workers,
            shards=local_shards(self._mesh),
        )

    def put(self, batches: Sequence[RowBatch]) -> Iterator[RowTargets]:
        """Host batches on the mesh, rows and vision bins split over the data shards.

        A batch that has no image on any host has no vision part.
        """
        seen = [bool(np.any(batch.vision.seg_id_SQ)) for batch in batches]
        vision = np.any(hosts.gather(seen, "which batches have images"), axis=0)
        return (
            put_local(row_targets(batch, vision=bool(has)), self._mesh)
            for batch, has in zip(batches, vision, strict=True)
        )

    def own(self, batch: RowBatch) -> RowBatch:
        """The part of a host batch that only this host counts."""
        local, owned = local_shards(self._mesh), owned_shards(self._mesh)
        if local == owned:
            return batch
        keep = np.isin(local, owned)
        return jax.tree.map(lambda array: array[np.repeat(keep, len(array) // len(local))], batch)

    def numbered(self) -> Iterator[tuple[list[list[Record]], RowBatch]]:
        """Every record once, with the records of each row in the order of their segments."""
        sized = map(self._samples.size, self.records)
        samples = ((one, one.n_tokens, one.grids) for one in sized)
        with ThreadPoolExecutor(max(self._data.workers, 1), "encode") as pool:
            for packed in pack(samples, self.budget):
                rows = [list(pool.map(self._samples.encode, row)) for row in packed.rows]
                layout = self.budget.layout(self._samples.preprocessor.chat.pad_id)
                batch = collate_rows(rows, layout, tokens_per_row=self.budget.tokens_per_row)
                yield [[one.record for one in row] for row in packed.rows], batch
