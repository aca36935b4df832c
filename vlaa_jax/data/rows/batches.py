"""Samples to arrays of static shape: padded prompts for rollouts, packed rows for supervised work.

Both are NamedTuples of numpy arrays, which JAX treats as pytrees. The leading axis of every array
divides by the number of data shards, and shard i owns the i-th part of each: its rows, and the
vision bins that the images of those rows lie in. ``unit_src`` therefore counts from the start of
the shard's own bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlaa_jax.data.images.planner import gather_patches, ladder, plan_vision
from vlaa_jax.data.samples.preprocessor import Encoded
from vlaa_jax.schema import UserError


class VisionBatch(NamedTuple):
    """S bins of R rows of 64 patches; see ``planner.VisionPlan``. Q = 64 R."""

    patches_SR64C: NDArray[np.uint8]
    pos_hw_SR642: NDArray[np.int32]
    win_id_SR64: NDArray[np.int32]
    seg_id_SQ: NDArray[np.int32]


class PromptBatch(NamedTuple):
    """P prompts padded on the right to T tokens; rows added to fill up P have length 0."""

    ids_PT: NDArray[np.int32]
    length_P: NDArray[np.int32]
    positions_PT3: NDArray[np.int32]
    """0 where padding."""
    rope_delta_P: NDArray[np.int32]
    """The token generated at index length + k has position length + k + rope_delta."""
    unit_src_PT: NDArray[np.int32]
    """Merged unit of the shard's bins behind each image placeholder; -1 elsewhere."""
    vision: VisionBatch


class RowBatch(NamedTuple):
    """B rows of T tokens, several samples in each."""

    ids_BT: NDArray[np.int32]
    segment_ids_BT: NDArray[np.int32]
    """Sample number in its row, from 1; 0 = padding."""
    positions_BT3: NDArray[np.int32]
    """Start again at 0 with each sample; 0 where padding."""
    loss_mask_BT: NDArray[np.bool_]
    """True where the token is a target (to be predicted from the token before it)."""
    unit_src_BT: NDArray[np.int32]
    """Merged unit of the shard's bins behind each image placeholder; -1 elsewhere."""
    vision: VisionBatch


@dataclass(frozen=True)
class BatchLayout:
    """How samples are laid out: over how many data shards, and the shape of their vision part.

    Attributes:
        n_shards: data shards.
        pad_id: token id for padding.
        window_units: 4 for Qwen2.5-VL, 0 for Qwen2-VL.
        rows_per_bin: as in ``plan_vision``.
        bins_per_shard: as in ``plan_vision``.
    """

    n_shards: int = 1
    pad_id: int = 0
    window_units: int = 4
    rows_per_bin: int | None = None
    bins_per_shard: int | None = None


def collate_prompts(
    prompts: Sequence[Encoded],
    layout: BatchLayout,
    *,
    min_tokens: int = 64,
    tokens: int | None = None,
    min_prompts: int = 1,
) -> PromptBatch:
    """Pad prompts into one batch. Prompts are dealt to the shards in contiguous parts.

    P is the least multiple of ``n_shards`` that holds the prompts and ``min_prompts``; T comes from
    the ladder; vision shapes as in ``plan_vision``.

    Args:
        prompts: from ``Preprocessor.encode``.
        layout: of the batch.
        min_tokens: least T.
        tokens: T, instead of the ladder's; holds the longest prompt.
        min_prompts: least P, to keep the last batch of an epoch in shape.
    """
    if not prompts:
        raise ValueError("a batch needs at least one prompt")
    n_shards, pad_id = layout.n_shards, layout.pad_id
    P = -(-max(len(prompts), min_prompts) // n_shards) * n_shards
    longest = max(p.length for p in prompts)
    T = ladder(longest, min_tokens) if tokens is None else tokens
    if longest > T:
        raise ValueError(f"a prompt of {longest} tokens does not fit into {T}")
    part = P // n_shards
    shards = [prompts[i * part : (i + 1) * part] for i in range(n_shards)]
    vision, units = _vision(shards, layout)
    batch = PromptBatch(
        ids_PT=np.full((P, T), pad_id, np.int32),
        length_P=np.zeros(P, np.int32),
        positions_PT3=np.zeros((P, T, 3), np.int32),
        rope_delta_P=np.zeros(P, np.int32),
        unit_src_PT=np.full((P, T), -1, np.int32),
        vision=vision,
    )
    for i, prompt in enumerate(prompts):
        n = prompt.length
        batch.ids_PT[i, :n] = prompt.ids_T
        batch.length_P[i] = n
        batch.positions_PT3[i, :n] = prompt.positions_T3
        batch.rope_delta_P[i] = prompt.rope_delta
        batch.unit_src_PT[i, :n][prompt.image_mask_T] = units[i]
    return batch


def collate_rows(
    rows: Sequence[Sequence[Encoded]], layout: BatchLayout, *, tokens_per_row: int | None = None
) -> RowBatch:
    """Lay packed samples out, row by row; B = len(rows) must divide by ``n_shards``.

    Args:
        rows: samples of each row, as ``packing.Packer`` groups them; a row may be empty. Shard i
            gets the i-th part of the rows.
        layout: of the batch.
        tokens_per_row: T; None takes the ladder size that holds the longest row.

    Raises:
        UserError: a row is longer than ``tokens_per_row`` (nothing is ever cut).
    """
    B, n_shards, pad_id = len(rows), layout.n_shards, layout.pad_id
    if not B or B % n_shards:
        raise ValueError(f"{B} rows do not divide over {n_shards} data shards")
    longest = max(sum(s.length for s in row) for row in rows)
    T = tokens_per_row or ladder(longest, 1)
    if longest > T:
        raise UserError(f"a packed row of {longest} tokens is over tokens_per_row {T}")
    part = B // n_shards
    shards = [[s for row in rows[i * part : (i + 1) * part] for s in row] for i in range(n_shards)]
    vision, units = _vision(shards, layout)
    batch = RowBatch(
        ids_BT=np.full((B, T), pad_id, np.int32),
        segment_ids_BT=np.zeros((B, T), np.int32),
        positions_BT3=np.zeros((B, T, 3), np.int32),
        loss_mask_BT=np.zeros((B, T), bool),
        unit_src_BT=np.full((B, T), -1, np.int32),
        vision=vision,
    )
    unit = iter(units)
    for b, row in enumerate(rows):
        start = 0
        for number, sample in enumerate(row, start=1):
            here = slice(start, start + sample.length)
            batch.ids_BT[b, here] = sample.ids_T
            batch.segment_ids_BT[b, here] = number
            batch.positions_BT3[b, here] = sample.positions_T3
            batch.loss_mask_BT[b, here] = sample.loss_mask_T
            batch.unit_src_BT[b, here][sample.image_mask_T] = next(unit)
            start += sample.length
    return batch


def _vision(
    shards: Sequence[Sequence[Encoded]], layout: BatchLayout
) -> tuple[VisionBatch, list[NDArray[np.int32]]]:
    """Plan and fill the vision buffers; unit indices of each sample's image tokens, in order."""
    grids = [[g for s in shard for g in s.grids] for shard in shards]
    plan = plan_vision(grids, layout.window_units, layout.rows_per_bin, layout.bins_per_shard)
    patches = [[p for s in shard for p in s.patches] for shard in shards]
    per_sample = []
    for shard, units in zip(shards, plan.units, strict=True):
        of_image = iter(units)
        for sample in shard:
            mine = [next(of_image) for _ in sample.grids]
            per_sample.append(np.concatenate(mine) if mine else np.empty(0, np.int32))
    laid_out = gather_patches(plan, patches)
    return VisionBatch(laid_out, plan.pos_hw_SR642, plan.win_id_SR64, plan.seg_id_SQ), per_sample
