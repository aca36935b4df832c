"""Bin packing of images: windows into rows of 16 merge units, images into bins of R rows.

Knows grids, not pixels and not batches; ``planner`` turns the result into index arrays.
"""

from collections.abc import Iterable, Sequence
from copy import copy
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlaa_jax.schema import Grid

UNITS_PER_ROW = 16
PATCHES_PER_ROW = 64
MIN_ROWS = 4
"""Smallest bin. Every rung from 4 up is even, so the patches of a bin are a multiple of 128."""
# Cost of one more row per bin, as a share of the cost of a patch: 64 * 20480 FLOP (four full
# blocks) or 64 * 163840 FLOP (all 32 full, Qwen2-VL) over about 1.29 GFLOP of everything else.
_ATTENTION_SHARE_WINDOWED = 1 / 984
_ATTENTION_SHARE_FULL = 1 / 123


def unit_count(grid: Grid) -> int:
    """Merge units of a grid, which is also its number of language-model tokens."""
    t, h, w = grid
    return t * (h // 2) * (w // 2)


def vision_load(grids: Iterable[Grid]) -> int:
    """Merge units of a sample's images, which the work of the vision tower goes with."""
    return sum(unit_count(grid) for grid in grids)


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


class Placed(NamedTuple):
    """One image in its bin."""

    bin: int
    slots_U: NDArray[np.int32]  # within the bin
    first_window: int  # windows and frames already in the bin
    first_frame: int


class _Bin:
    """R rows being filled with images. Windows go best-fit; rows are shared between images."""

    def __init__(self, rows: int, window_units: int):
        self.rows = rows
        self.window_units = window_units
        self.used = 0  # rows opened so far, or units where there are no windows
        self.room = rows * UNITS_PER_ROW  # units that are free, to skip full bins quickly
        self.n_windows = 0
        self.n_frames = 0
        self.free: list[list[int]] = [[] for _ in range(UNITS_PER_ROW + 1)]  # rows by free units

    def copy(self) -> "_Bin":
        twin = copy(self)
        twin.free = [list(rows) for rows in self.free]
        return twin

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
        self.room -= len(shape.window_U)
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


def rows_of_largest(grids: Iterable[Grid], window_units: int = 4) -> int:
    """Rows that the largest of some images takes; 0 where there are none."""
    return max((rows_needed(grid, window_units) for grid in grids), default=0)


class BinPacker:
    """The bins of one data shard, filled in arrival order. An image never crosses a bin.

    ``plan_vision`` is certain to succeed on the same images in the same order; for another order
    ask ``pack_shards``.
    """

    def __init__(self, rows_per_bin: int, n_bins: int, window_units: int = 4):
        """No bins yet: they are opened as images need them, up to ``n_bins``."""
        self._rows, self._n_bins, self._window_units = rows_per_bin, n_bins, window_units
        self._bins: list[_Bin] = []

    def place(self, grid: Grid) -> Placed | None:
        """Put an image into the first bin that takes it; None if none does."""
        units, bins = unit_count(grid), self._bins
        home = next((i for i, b in enumerate(bins) if b.room >= units and b.fits(grid)), len(bins))
        if home == len(bins):
            new = _Bin(self._rows, self._window_units)
            if home == self._n_bins or not new.fits(grid):
                return None
            bins.append(new)
        found = bins[home]
        before = found.n_windows, found.n_frames
        return Placed(home, found.place(grid), *before)

    def add(self, grids: Sequence[Grid]) -> bool:
        """Take all the images of a sample, or none of them and return False."""
        if len(grids) == 1:  # the common case needs no copy to roll back to
            return self.place(grids[0]) is not None
        before = [one.copy() for one in self._bins]
        if all(self.place(grid) is not None for grid in grids):
            return True
        self._bins = before
        return False


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
        by_size = sorted(range(len(grids)), key=lambda i: -rows_needed(grids[i], window_units))
        for order in (by_size, range(len(grids))):  # rare: only arrival order may fit
            packer = BinPacker(rows, at_most, window_units)
            where = {i: packer.place(grids[i]) for i in order}
            found = [p for i in range(len(grids)) if (p := where[i]) is not None]
            if len(found) == len(grids):
                break
        else:
            return None
        placed.append(found)
        bins = max(bins, 1 + max((p.bin for p in found), default=0))
    return Packing(rows, bins, placed)
