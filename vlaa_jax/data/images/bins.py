"""Bin packing of images: windows into rows of 16 merge units, images into bins of R rows.

Knows grids, not pixels and not batches; ``planner`` turns the result into index arrays.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlaa_jax.data.images.grid import Grid, unit_count

UNITS_PER_ROW = 16
PATCHES_PER_ROW = 64
# Cost of one more row per bin, as a share of the cost of a patch: 64 * 20480 FLOP (four full
# blocks) or 64 * 163840 FLOP (all 32 full, Qwen2-VL) over about 1.29 GFLOP of everything else.
_ATTENTION_SHARE_WINDOWED = 1 / 984
_ATTENTION_SHARE_FULL = 1 / 123


def row_cost(rows_per_bin: int, window_units: int = 4) -> float:
    """Relative work on a row of patches in bins of R rows: 1 + the attention over the whole bin."""
    share = _ATTENTION_SHARE_WINDOWED if window_units else _ATTENTION_SHARE_FULL
    return 1 + rows_per_bin * share


class Layout(NamedTuple):
    """What is known of an image from its grid alone; U units in row-major order, W windows."""

    window_U: NDArray[np.int32]
    place_U: NDArray[np.int32]  # position inside the window
    frame_U: NDArray[np.int32]
    pos_hw_U42: NDArray[np.int32]  # (row, column) of the unit's four patches on its frame
    full_F: NDArray[np.int32]  # windows of exactly 16 units
    partial: tuple[tuple[int, int], ...]  # (units, window), largest first
    n_windows: int


@lru_cache(maxsize=4096)
def layout(grid: Grid, window_units: int) -> Layout:
    """Windows of a grid; one window per frame where ``window_units`` is 0."""
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
    corner = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.int32)
    return Layout(
        window_U=window_U.astype(np.int32),
        place_U=np.tile(place, t).astype(np.int32),
        frame_U=frame_U,
        pos_hw_U42=np.tile(2 * np.stack([row, col], axis=-1)[:, None] + corner, (t, 1, 1)),
        full_F=np.flatnonzero(sizes == UNITS_PER_ROW).astype(np.int32),
        partial=tuple(sorted(partial, key=lambda item: (-item[0], item[1]))),
        n_windows=per_frame * t,
    )


class _Bin:
    """R rows being filled with images. Windows go best-fit; rows are shared between images."""

    def __init__(self, rows: int, window_units: int):
        self.rows = rows
        self.window_units = window_units
        self.used = 0  # rows opened so far, or units where there are no windows
        self.n_windows = 0
        self.n_frames = 0
        self.free: list[list[int]] = [[] for _ in range(UNITS_PER_ROW + 1)]  # rows by free units

    def fits(self, grid: Grid) -> bool:
        if self.window_units == 0:
            return self.used + unit_count(grid) <= self.rows * UNITS_PER_ROW
        shape = layout(grid, self.window_units)
        least = self.used + len(shape.full_F)
        if least > self.rows:
            return False
        if least + len(shape.partial) <= self.rows:
            return True
        counts = [len(rows) for rows in self.free]
        for size, _ in shape.partial:
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
        shape = layout(grid, self.window_units)
        self.n_windows += shape.n_windows
        self.n_frames += grid[0]
        if self.window_units == 0:
            start = self.used
            self.used += len(shape.window_U)
            return np.arange(start, self.used, dtype=np.int32)
        start_W = np.empty(shape.n_windows, np.int32)
        n_full = len(shape.full_F)
        opened = np.arange(self.used, self.used + n_full, dtype=np.int32)
        start_W[shape.full_F] = opened * UNITS_PER_ROW
        self.used += n_full
        for size, window in shape.partial:
            start_W[window] = self._place_partial(size)
        return start_W[shape.window_U] + shape.place_U

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
        # Window and frame counts are not rolled back: only used and free decide what fits.
        before = [(b.used, [list(rows) for rows in b.free]) for b in self._bins]
        for grid in grids:
            home = next((b for b in self._bins if b.fits(grid)), None)
            if home is None:
                for b, (used, free) in zip(self._bins, before, strict=True):
                    b.used, b.free = used, free
                return False
            home.place(grid)
        return True


class Placed(NamedTuple):
    """One image in its bin."""

    bin: int
    slots_U: NDArray[np.int32]  # within the bin
    first_window: int  # windows and frames already in the bin
    first_frame: int


def _first_fit(
    grids: Sequence[Grid], order: Sequence[int], rows: int, window_units: int, at_most: int
) -> list[Placed] | None:
    """Place the images in the given order; where each went, or None past ``at_most`` bins."""
    bins: list[_Bin] = []
    room: list[int] = []  # free units of each bin, to skip full ones quickly
    placed: dict[int, Placed] = {}
    for i in order:
        grid, units = grids[i], unit_count(grids[i])
        roomy = (b for b, free in enumerate(room) if free >= units)
        home = next((b for b in roomy if bins[b].fits(grid)), len(bins))
        if home == at_most:
            return None
        if home == len(bins):
            bins.append(_Bin(rows, window_units))
            room.append(rows * UNITS_PER_ROW)
        before = bins[home].n_windows, bins[home].n_frames
        placed[i] = Placed(home, bins[home].place(grid), *before)
        room[home] -= units
    return [placed[i] for i in range(len(grids))]


class Packing(NamedTuple):
    """All shards packed."""

    rows: int
    bins: int  # of the shard that needs most
    placed: list[list[Placed]]  # per shard, per image


def pack_shards(
    shards: Sequence[Sequence[Grid]], rows: int, window_units: int, at_most: int
) -> Packing | None:
    """Pack each shard's images, large ones first; None if a shard needs more bins than that."""
    placed, bins = [], 1
    for grids in shards:
        # Sorting is stable, so equal images keep their order and the plan is deterministic.
        order = sorted(range(len(grids)), key=lambda i: -rows_needed(grids[i], window_units))
        found = _first_fit(grids, order, rows, window_units, at_most)
        if found is None:  # rare: arrival order may fit where decreasing order does not
            found = _first_fit(grids, range(len(grids)), rows, window_units, at_most)
        if found is None:
            return None
        placed.append(found)
        bins = max(bins, 1 + max((p.bin for p in found), default=0))
    return Packing(rows, bins, placed)


def fits_bins(grids: Sequence[Grid], rows_per_bin: int, n_bins: int, window_units: int = 4) -> bool:
    """Whether ``plan_vision`` can place a shard's images, in this order, into so many bins."""
    if any(rows_needed(g, window_units) > rows_per_bin for g in grids):
        return False
    return pack_shards([grids], rows_per_bin, window_units, n_bins) is not None
