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
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vlaa_jax.schema import UserError

UNITS_PER_ROW = 16
PATCHES_PER_ROW = 64
MIN_ROWS = 4
"""Smallest bin. Every rung from 4 up is even, so the patches of a bin are a multiple of 128."""

# Cost of one more row per bin, as a share of the cost of a patch: 64 * 20480 FLOP (four full
# blocks) or 64 * 163840 FLOP (all 32 full, Qwen2-VL) over about 1.29 GFLOP of everything else.
_ATTENTION_SHARE_WINDOWED = 1 / 984
_ATTENTION_SHARE_FULL = 1 / 123


def row_cost(rows_per_bin: int, window_units: int = 4) -> float:
    """Relative work on a row of patches in bins of R rows: 1 + the attention over the whole bin."""
    share = _ATTENTION_SHARE_WINDOWED if window_units else _ATTENTION_SHARE_FULL
    return 1 + rows_per_bin * share


Grid = tuple[int, int, int]
"""(frames, patch rows, patch columns) of an image or a video."""


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


def unit_count(grid: Grid) -> int:
    """Merge units of a grid, which is also its number of language-model tokens."""
    t, h, w = grid
    return t * (h // 2) * (w // 2)


class _Layout(NamedTuple):
    """What is known of an image from its grid alone; U units in row-major order, W windows."""

    window_U: NDArray[np.int32]
    place_U: NDArray[np.int32]  # position inside the window
    frame_U: NDArray[np.int32]
    pos_hw_U42: NDArray[np.int32]
    full_F: NDArray[np.int32]  # windows of exactly 16 units
    partial: tuple[tuple[int, int], ...]  # (units, window), largest first
    n_windows: int


@lru_cache(maxsize=4096)
def _layout(grid: Grid, window_units: int) -> _Layout:
    t, h, w = grid
    if t < 1 or h < 2 or w < 2 or h % 2 or w % 2:
        raise ValueError(f"a grid is (frames >= 1, even rows, even columns) of patches, got {grid}")
    uh, uw = h // 2, w // 2
    row, col = np.divmod(np.arange(uh * uw, dtype=np.int32), uw)
    step = window_units or max(uh, uw)
    across = -(-uw // step)
    width = np.minimum(step, uw - col // step * step)
    window = row // step * across + col // step
    place = row % step * width + col % step
    per_frame = int(window[-1]) + 1
    frame_U = np.repeat(np.arange(t, dtype=np.int32), uh * uw)
    window_U = np.tile(window, t) + frame_U * per_frame
    sizes = np.bincount(window_U)
    partial = [(int(sizes[i]), int(i)) for i in np.flatnonzero(sizes < UNITS_PER_ROW)]
    corner = np.stack(np.divmod(np.arange(4, dtype=np.int32), 2), axis=-1)
    pos = np.stack([row, col], axis=-1)[:, None, :] * 2 + corner
    return _Layout(
        window_U=window_U.astype(np.int32),
        place_U=np.tile(place, t).astype(np.int32),
        frame_U=frame_U,
        pos_hw_U42=np.tile(pos, (t, 1, 1)).astype(np.int32),
        full_F=np.flatnonzero(sizes == UNITS_PER_ROW).astype(np.int32),
        partial=tuple(sorted(partial, key=lambda item: (-item[0], item[1]))),
        n_windows=per_frame * t,
    )


class _Bin:
    """R rows being filled with images. Windows go best-fit; rows are shared between images."""

    def __init__(self, rows: int, window_units: int):
        self.rows = rows
        self.window_units = window_units
        self.used = 0  # rows opened so far, or units in dense mode
        self.free: list[list[int]] = [[] for _ in range(UNITS_PER_ROW + 1)]  # rows by free units

    def fits(self, grid: Grid) -> bool:
        if self.window_units == 0:
            return self.used + unit_count(grid) <= self.rows * UNITS_PER_ROW
        layout = _layout(grid, self.window_units)
        least = self.used + len(layout.full_F)
        if least > self.rows:
            return False
        if least + len(layout.partial) <= self.rows:
            return True
        counts = [len(rows) for rows in self.free]
        for size, _ in layout.partial:
            for room in range(size, UNITS_PER_ROW):
                if counts[room]:
                    counts[room] -= 1
                    counts[room - size] += 1
                    break
            else:
                least += 1
                counts[UNITS_PER_ROW - size] += 1
        return least <= self.rows

    def place(self, grid: Grid) -> NDArray[np.int32]:
        """Take the image in; the unit slot inside the bin of each of its units."""
        layout = _layout(grid, self.window_units)
        if self.window_units == 0:
            start = self.used
            self.used += len(layout.window_U)
            return np.arange(start, self.used, dtype=np.int32)
        start_W = np.empty(layout.n_windows, np.int32)
        n_full = len(layout.full_F)
        opened = np.arange(self.used, self.used + n_full, dtype=np.int32)
        start_W[layout.full_F] = opened * UNITS_PER_ROW
        self.used += n_full
        for size, window in layout.partial:
            start_W[window] = self._place_partial(size)
        return start_W[layout.window_U] + layout.place_U

    def _place_partial(self, size: int) -> int:
        for room in range(size, UNITS_PER_ROW):
            if self.free[room]:
                row = self.free[room].pop()
                break
        else:
            room, row = UNITS_PER_ROW, self.used
            self.used += 1
        self.free[room - size].append(row)
        return row * UNITS_PER_ROW + UNITS_PER_ROW - room


@lru_cache(maxsize=4096)
def rows_needed(grid: Grid, window_units: int = 4) -> int:
    """Rows of 64 patches that one image takes when it is alone in its bin."""
    alone = _Bin(rows=0, window_units=window_units)
    alone.place(grid)
    return alone.used if window_units else -(-alone.used // UNITS_PER_ROW)


class BinPacker:
    """The bins of one data shard, filled in arrival order. An image never crosses a bin.

    ``plan_vision`` is certain to succeed on the same images in the same order; for another order
    ask ``fits_bins``.
    """

    def __init__(self, rows_per_bin: int, n_bins: int, window_units: int = 4):
        self._bins = [_Bin(rows_per_bin, window_units) for _ in range(n_bins)]

    def add(self, grids: Sequence[Grid]) -> bool:
        """Take all the images of a sample, or none of them and return False."""
        if len(grids) == 1:  # the common case needs no copy to roll back to
            home = next((b for b in self._bins if b.fits(grids[0])), None)
            if home is not None:
                home.place(grids[0])
            return home is not None
        before = [(b.used, [list(rows) for rows in b.free]) for b in self._bins]
        for grid in grids:
            home = next((b for b in self._bins if b.fits(grid)), None)
            if home is None:
                for b, (used, free) in zip(self._bins, before, strict=True):
                    b.used, b.free = used, free
                return False
            home.place(grid)
        return True


def fits_bins(grids: Sequence[Grid], rows_per_bin: int, n_bins: int, window_units: int = 4) -> bool:
    """Whether ``plan_vision`` can place a shard's images, in this order, into so many bins."""
    if any(rows_needed(g, window_units) > rows_per_bin for g in grids):
        return False
    return _try_rows([grids], rows_per_bin, window_units, n_bins) is not None


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

    @property
    def n_patches(self) -> int:
        """Real patches."""
        return sum(4 * len(unit) for shard in self.units for unit in shard)

    @property
    def padding_frac(self) -> float:
        """Share of patch slots that hold no patch; 0.0 when there is no image at all."""
        n = self.n_patches
        return 1.0 - n / self.src_SR64.size if n else 0.0


def _assign(
    grids: Sequence[Grid], order: Sequence[int], rows: int, window_units: int, at_most: int
) -> list[int] | None:
    """First-fit the images in the given order; the bin of each, or None past ``at_most`` bins."""
    bins: list[_Bin] = []
    home = [0] * len(grids)
    for i in order:
        b = next((b for b, candidate in enumerate(bins) if candidate.fits(grids[i])), len(bins))
        if b == at_most:
            return None
        if b == len(bins):
            bins.append(_Bin(rows, window_units))
        bins[b].place(grids[i])
        home[i] = b
    return home


class _Assignment(NamedTuple):
    rows: int
    bins: int
    order: list[list[int]]  # per shard: images in placing order
    home: list[list[int]]  # per shard: bin of each image


def _decreasing(grids: Sequence[Grid], window_units: int) -> list[int]:
    # Sorting is stable, so equal images keep their order and the plan is deterministic.
    return sorted(range(len(grids)), key=lambda i: (-rows_needed(grids[i], window_units), i))


def _try_rows(
    shards: Sequence[Sequence[Grid]], rows: int, window_units: int, at_most: int
) -> _Assignment | None:
    orders, homes, bins = [], [], 1
    for grids in shards:
        order = _decreasing(grids, window_units)
        home = _assign(grids, order, rows, window_units, at_most)
        if home is None:  # rare: arrival order may fit where decreasing order does not
            order = list(range(len(grids)))
            home = _assign(grids, order, rows, window_units, at_most)
        if home is None:
            return None
        orders.append(order)
        homes.append(home)
        bins = max(bins, max(home, default=0) + 1)
    return _Assignment(rows, bins, orders, homes)


def _choose(
    shards: Sequence[Sequence[Grid]],
    window_units: int,
    rows_per_bin: int | None,
    bins_per_shard: int | None,
) -> _Assignment:
    """Pick R and the number of bins: least cost, where cost counts slots and their attention."""
    largest = max((rows_needed(g, window_units) for s in shards for g in s), default=1)
    if rows_per_bin is not None and largest > rows_per_bin:
        worst = next(g for s in shards for g in s if rows_needed(g, window_units) == largest)
        raise UserError(
            f"an image of {worst[0]}x{worst[1]}x{worst[2]} patches needs {largest} vision rows but "
            f"a bin has {rows_per_bin}: raise rows_per_bin or lower max_pixels"
        )
    units = max((sum(unit_count(g) for g in s) for s in shards), default=0)

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
    best: _Assignment | None = None
    best_cost = float("inf")
    for rows in sorted(candidates, key=lambda r: (cost(r, least_bins(r)), r)):
        if cost(rows, least_bins(rows)) >= best_cost:
            break  # candidates come by lower bound: nothing better can follow
        found = _try_rows(shards, rows, window_units, bins_per_shard or 1 << 30)
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
    n_slots = chosen.bins * chosen.rows * UNITS_PER_ROW
    n_shards = len(shards)
    src = np.full((n_shards, n_slots, 4), -1, np.int32)
    pos = np.zeros((n_shards, n_slots, 4, 2), np.int32)
    win = np.zeros((n_shards, n_slots, 4), np.int32)
    seg = np.zeros((n_shards, n_slots, 4), np.int32)
    units = [
        _fill_shard(grids, window_units, chosen, i, src[i], pos[i], win[i], seg[i])
        for i, grids in enumerate(shards)
    ]
    bins, rows = n_shards * chosen.bins, chosen.rows
    return VisionPlan(
        src_SR64=src.reshape(bins, rows, PATCHES_PER_ROW),
        pos_hw_SR642=pos.reshape(bins, rows, PATCHES_PER_ROW, 2),
        win_id_SR64=win.reshape(bins, rows, PATCHES_PER_ROW),
        seg_id_SQ=seg.reshape(bins, rows * PATCHES_PER_ROW),
        units=units,
        n_shards=n_shards,
        bins_per_shard=chosen.bins,
        rows_per_bin=rows,
    )


def _fill_shard(
    grids: list[Grid],
    window_units: int,
    chosen: _Assignment,
    shard: int,
    src_N4: NDArray[np.int32],
    pos_N42: NDArray[np.int32],
    win_N4: NDArray[np.int32],
    seg_N4: NDArray[np.int32],
) -> list[NDArray[np.int32]]:
    """Write one shard's index arrays (N unit slots) and return the slots of each image's units."""
    bins = [_Bin(chosen.rows, window_units) for _ in range(chosen.bins)]
    slots: list[NDArray[np.int32]] = [np.empty(0, np.int32)] * len(grids)
    first_window, first_frame = [0] * len(grids), [0] * len(grids)
    n_windows, n_frames = [1] * chosen.bins, [1] * chosen.bins
    for i in chosen.order[shard]:
        b = chosen.home[shard][i]
        slots[i] = bins[b].place(grids[i]) + np.int32(b * chosen.rows * UNITS_PER_ROW)
        first_window[i], first_frame[i] = n_windows[b], n_frames[b]
        n_windows[b] += _layout(grids[i], window_units).n_windows
        n_frames[b] += grids[i][0]
    if not grids:
        return slots
    layouts = [_layout(grid, window_units) for grid in grids]
    where = np.concatenate(slots)
    order_U = np.arange(len(where), dtype=np.int32)
    src_N4[where] = order_U[:, None] * 4 + np.arange(4, dtype=np.int32)
    pos_N42[where] = np.concatenate([x.pos_hw_U42 for x in layouts])
    if window_units:
        ids = [x.window_U + np.int32(n) for x, n in zip(layouts, first_window, strict=True)]
        win_N4[where] = np.concatenate(ids)[:, None]
    else:
        win_N4[where] = 1
    ids = [x.frame_U + np.int32(n) for x, n in zip(layouts, first_frame, strict=True)]
    seg_N4[where] = np.concatenate(ids)[:, None]
    return slots


def gather_patches(
    plan: VisionPlan,
    patches_per_shard: Sequence[Sequence[NDArray[np.float32]]],
    dtype: DTypeLike = np.float32,
) -> NDArray[np.float32]:
    """Lay the patches of the images out as planned; one copy, padding slots are zero.

    Args:
        plan: of the same images in the same order.
        patches_per_shard: per shard, per image, [n, C] as the image processor gives them.
        dtype: of the result, e.g. ml_dtypes.bfloat16 to halve the transfer.

    Returns:
        patches_SR64C
    """
    channels = {p.shape[1] for shard in patches_per_shard for p in shard} or {1176}
    if len(channels) > 1:
        raise ValueError(f"patches of different widths in one batch: {sorted(channels)}")
    C = channels.pop()
    bins, rows = plan.src_SR64.shape[:2]
    out = np.zeros((plan.n_shards, plan.bins_per_shard * rows * UNITS_PER_ROW, 4 * C), dtype)
    for shard, (units, images) in enumerate(zip(plan.units, patches_per_shard, strict=True)):
        for slots, patches in zip(units, images, strict=True):
            if len(patches) != 4 * len(slots):
                raise ValueError(f"{len(patches)} patches given where {4 * len(slots)} are planned")
            out[shard][slots] = patches.reshape(len(slots), 4 * C)
    return out.reshape(bins, rows, PATCHES_PER_ROW, C)
