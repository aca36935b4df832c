"""Where every image patch sits: ragged images laid into buffers of static shape.

A vision tower sees three nested groups. Four patches make a merge unit (what becomes one token of
the language model), up to 4x4 units make a window (attention of most Qwen2.5-VL blocks), and all
units of a frame make a segment (attention of the full blocks). The planner packs windows into rows
of 16 units = 64 patches and images into bins of R rows, so that on the device

* a windowed block is dense 64x64 attention inside a row, masked by equality of ``win_id``;
* a full block is segment attention inside a bin, masked by equality of ``seg_id``;
* the merger acts on groups of four consecutive patches;
* a gather by the unit indices given here puts the features into the text.

Attention does not care about order inside a window or a segment (Qwen2.5-VL, arXiv 2502.13923,
section 2.1.1), so only membership, rotary coordinates and the grouping by four have to be kept.
Everything is a pure function of the grids: numpy in, index arrays out, no pixels touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlaa_jax.data.images.bins import (
    MIN_ROWS,
    PATCHES_PER_ROW,
    UNITS_PER_ROW,
    Layout,
    Packing,
    Placed,
    layout,
    pack_shards,
    row_cost,
    rows_needed,
    rows_of_largest,
    vision_load,
)
from vlaa_jax.schema import Grid, UserError


def ladder(n: int, minimum: int = 1) -> int:
    """The smallest size >= max(n, minimum) with two significant bits: 1 2 3 4 6 8 12 16 24 ...

    Static shapes are drawn from these rungs, so that a run compiles few programs.
    """
    n = max(n, minimum)
    if n < 1:
        raise ValueError(f"ladder needs a size of at least 1, got {n}")
    if n <= 2:
        return n
    bits = (n - 1).bit_length()
    three = 3 << (bits - 2)
    return three if n <= three else 1 << bits


@dataclass(frozen=True)
class VisionPlan:
    """Index arrays of one batch. S = n_shards * bins_per_shard bins, R rows each, Q = 64 R.

    Shard i owns the bins [i * bins_per_shard, (i + 1) * bins_per_shard). Flat patch order inside a
    shard is that of the image processor (units row-major, four patches each), images in order.
    """

    src_SR64: NDArray[np.int32]
    """Flat patch index among the shard's concatenated patches; -1 = padding."""
    pos_hw_SR642: NDArray[np.int32]
    """(row, column) of the patch on its own frame; 0 where padding."""
    win_id_SR64: NDArray[np.int32]
    """Window number, unique in its bin, from 1; 0 = padding. All 1 where there are no windows."""
    seg_id_SQ: NDArray[np.int32]
    """Frame number, unique in its bin, from 1; 0 = padding."""
    units: list[list[NDArray[np.int32]]]
    """[shard][image]: unit index within the shard's bins of each visual token, row-major."""
    n_shards: int
    bins_per_shard: int
    rows_per_bin: int


def plan_vision(
    grids_per_shard: Sequence[Sequence[Grid]],
    window_units: int = 4,
    rows_per_bin: int | None = None,
    bins_per_shard: int | None = None,
) -> VisionPlan:
    """Plan the vision buffers of a batch. Deterministic; a few milliseconds for 64 images.

    Args:
        grids_per_shard: for each data shard the patch grids of its images, in text order.
        window_units: merge units along a window's side (4 for 112 px windows, at most 4), or 0 for
            a tower without windows (Qwen2-VL): units are then packed without gaps.
        rows_per_bin: R; None takes the ladder size of least cost that holds the largest image.
        bins_per_shard: None takes a ladder size. A batch without images gets one empty bin a shard.

    Raises:
        UserError: an image is larger than a bin, or the images do not fit into the bins given.
    """
    if not 0 <= window_units <= 4:
        raise ValueError(f"window_units must be 0 (no windows) to 4, got {window_units}")
    if not grids_per_shard:
        raise ValueError("plan_vision needs at least one data shard")
    shards: list[list[Grid]] = [
        [(int(t), int(h), int(w)) for t, h, w in grids] for grids in grids_per_shard
    ]
    chosen = _choose(shards, window_units, rows_per_bin, bins_per_shard)
    bins, rows, per_bin = chosen.bins, chosen.rows, chosen.rows * UNITS_PER_ROW
    shape = (len(shards) * bins, rows, PATCHES_PER_ROW)
    plan = VisionPlan(
        src_SR64=np.full(shape, -1, np.int32),
        pos_hw_SR642=np.zeros((*shape, 2), np.int32),
        win_id_SR64=np.zeros(shape, np.int32),
        seg_id_SQ=np.zeros((shape[0], rows * PATCHES_PER_ROW), np.int32),
        units=[[p.slots_U + np.int32(p.bin * per_bin) for p in shard] for shard in chosen.placed],
        n_shards=len(shards),
        bins_per_shard=bins,
        rows_per_bin=rows,
    )
    if any(shards):
        layouts = [layout(grid, window_units) for grids in shards for grid in grids]
        _fill(plan, layouts, [place for shard in chosen.placed for place in shard], window_units)
    return plan


def vision_shape(
    grids_per_shard: Sequence[Sequence[Grid]],
    window_units: int = 4,
    rows_per_bin: int | None = None,
    bins_per_shard: int | None = None,
) -> tuple[int, int]:
    """Rows per bin and bins per shard that `plan_vision` takes; its arguments and errors."""
    chosen = _choose(grids_per_shard, window_units, rows_per_bin, bins_per_shard)
    return chosen.rows, chosen.bins


def _fill(
    plan: VisionPlan, layouts: Sequence[Layout], placed: Sequence[Placed], window_units: int
) -> None:
    """Line the real units U of all shards up, then write each array once."""
    per_shard = plan.bins_per_shard * plan.rows_per_bin * UNITS_PER_ROW
    where_U = np.concatenate(
        [u + np.intp(i * per_shard) for i, shard in enumerate(plan.units) for u in shard]
    )
    src_U4 = [np.arange(4 * sum(map(len, shard)), dtype=np.int32) for shard in plan.units]
    _write(plan.src_SR64, where_U, np.concatenate(src_U4))
    _write(plan.pos_hw_SR642, where_U, np.concatenate([one.pos_hw_U42 for one in layouts]))
    pairs = list(zip(layouts, placed, strict=True))
    win_U = [one.window_U + np.int32(1 + p.first_window) for one, p in pairs]
    win_U = win_U if window_units else [np.ones_like(where_U, np.int32)]
    _write(plan.win_id_SR64, where_U, np.repeat(np.concatenate(win_U), 4))
    seg_U = [one.frame_U + np.int32(1 + p.first_frame) for one, p in pairs]
    _write(plan.seg_id_SQ, where_U, np.repeat(np.concatenate(seg_U), 4))


def _write(out: NDArray[np.int32], where_U: NDArray[np.intp], values: NDArray[np.int32]) -> None:
    """Put the values of each unit into its slot, moved as one opaque item: ten times faster."""
    width = values.size // len(where_U)
    item = np.dtype((np.void, 4 * width))
    units = out.reshape(-1, width).view(item)[:, 0]
    units[where_U] = values.reshape(-1, width).view(item)[:, 0]


def _choose(
    shards: Sequence[Sequence[Grid]],
    window_units: int,
    rows_per_bin: int | None,
    bins_per_shard: int | None,
) -> Packing:
    """Pick R and the number of bins: least cost, where cost counts slots and their attention."""
    largest = rows_of_largest((g for s in shards for g in s), window_units) or 1
    if rows_per_bin is not None and largest > rows_per_bin:
        worst = next(g for s in shards for g in s if rows_needed(g, window_units) == largest)
        raise UserError(
            f"an image of {worst[0]}x{worst[1]}x{worst[2]} patches needs {largest} vision rows but "
            f"a bin has {rows_per_bin}: raise rows_per_bin or lower max_pixels"
        )
    units = max(map(vision_load, shards), default=0)

    def cost(rows: int, bins: int) -> float:
        return rows * bins * row_cost(rows, window_units)

    def least_bins(rows: int) -> int:
        return bins_per_shard or ladder(-(-units // (UNITS_PER_ROW * rows)), 1)

    if rows_per_bin is not None:
        candidates = [rows_per_bin]
    else:
        candidates = [ladder(largest, MIN_ROWS)]
        while candidates[-1] * UNITS_PER_ROW < units:
            candidates.append(ladder(candidates[-1] + 1))
    best: Packing | None = None
    best_cost = float("inf")
    for rows in sorted(candidates, key=lambda r: (cost(r, least_bins(r)), r)):
        if cost(rows, least_bins(rows)) >= best_cost:
            break  # candidates come by lower bound: nothing better can follow
        found = pack_shards(shards, rows, window_units, bins_per_shard or 1 << 30)
        if found is not None:
            found = found._replace(bins=bins_per_shard or ladder(found.bins))
            if cost(rows, found.bins) < best_cost:
                best, best_cost = found, cost(rows, found.bins)
    if best is None:
        raise UserError(
            f"the images of a data shard do not fit into {bins_per_shard} vision bins of "
            f"{candidates[-1]} rows: raise bins_per_shard or rows_per_bin, or lower max_pixels"
        )
    return best


def gather_patches(
    plan: VisionPlan, patches_per_shard: Sequence[Sequence[NDArray[Any]]]
) -> NDArray[Any]:
    """Lay the patches of the images out as planned; one copy, padding slots are zero.

    Args:
        plan: of the same images in the same order.
        patches_per_shard: per shard, per image, [n, C] from ``ImageProcessor.pixels``, or from its
            ``patches``.

    Returns:
        patches_SR64C in the type of the patches; bytes where there are none.
    """
    first = next((p for shard in patches_per_shard for p in shard), np.empty((0, 588), np.uint8))
    C, units = first.shape[1], plan.bins_per_shard * plan.rows_per_bin * UNITS_PER_ROW
    out_NU4C = np.zeros((plan.n_shards, units, 4, C), first.dtype)
    for out_U4C, slots, images in zip(out_NU4C, plan.units, patches_per_shard, strict=True):
        for where_U, patches in zip(slots, images, strict=True):
            if patches.shape != (4 * len(where_U), C):
                wanted = f"{4 * len(where_U)} of {C} numbers are planned"
                raise ValueError(f"patches {patches.shape} given where {wanted}")
            out_U4C[where_U] = patches.reshape(len(where_U), 4, C)
    return out_NU4C.reshape(*plan.src_SR64.shape, C)
