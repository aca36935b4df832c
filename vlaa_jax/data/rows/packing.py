"""Which samples share a row: bin packing under a token budget and a vision budget at once.

A batch is ``n_shards`` data shards of ``rows_per_shard`` rows of ``tokens_per_row`` tokens, and for
each shard ``bins_per_shard`` vision bins of ``rows_per_bin`` rows of 64 patches. A sample goes
whole into one row, its images into the bins of that row's shard; nothing is cut. Packing needs
sizes only, so it can run far ahead of decoding, and it is deterministic: the same sizes in the same
order give the same batches.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, TypeVar

from vlaa_jax.data.images.bins import (
    MIN_ROWS,
    PATCHES_PER_ROW,
    UNITS_PER_ROW,
    BinPacker,
    pack_shards,
    row_cost,
    rows_of_largest,
    vision_load,
)
from vlaa_jax.data.rows.batches import BatchLayout
from vlaa_jax.schema import Grid, UserError

Item = TypeVar("Item")


@dataclass(frozen=True)
class PackBudget:
    """The static shape of a packed batch, and how far to look ahead for samples that fill it."""

    tokens_per_row: int
    rows_per_shard: int
    n_shards: int = 1
    rows_per_bin: int = 32
    """R: rows of 64 patches in a vision bin; at least what the largest image needs."""
    bins_per_shard: int = 1
    window_units: int = 4
    """4 for Qwen2.5-VL, 0 for Qwen2-VL."""
    lookahead: float = 1.5
    """A batch is closed once this many batches' worth of samples wait; 1.0 packs worst."""

    def __post_init__(self) -> None:
        for name in ("tokens_per_row", "rows_per_shard", "n_shards", "rows_per_bin"):
            if getattr(self, name) < 1:
                raise UserError(f"packing: {name} must be at least 1, got {getattr(self, name)}")
        if self.bins_per_shard < 1 or self.lookahead < 1:
            raise UserError("packing: bins_per_shard and lookahead must be at least 1")

    @property
    def n_rows(self) -> int:
        """Rows of a batch."""
        return self.rows_per_shard * self.n_shards

    @property
    def tokens(self) -> int:
        """Token slots of a batch."""
        return self.n_rows * self.tokens_per_row

    @property
    def patches(self) -> int:
        """Patch slots of a batch."""
        return self.n_shards * self.bins_per_shard * self.rows_per_bin * PATCHES_PER_ROW

    def layout(self, pad_id: int) -> BatchLayout:
        """How its batches are laid out."""
        vision = (self.window_units, self.rows_per_bin, self.bins_per_shard)
        return BatchLayout(self.n_shards, pad_id, *vision)

    def bins(self) -> BinPacker:
        """The empty vision bins of a shard."""
        return BinPacker(self.rows_per_bin, self.bins_per_shard, self.window_units)

    def problem(self, n_tokens: int, grids: Sequence[Grid]) -> str | None:
        """Why a sample can never fit, or None."""
        if n_tokens > self.tokens_per_row:
            return f"{n_tokens} tokens are over tokens_per_row {self.tokens_per_row}"
        need = rows_of_largest(grids, self.window_units)
        if need > self.rows_per_bin:
            return f"an image needs {need} vision rows, over rows_per_bin {self.rows_per_bin}"
        if len(grids) > 1 and not self.bins().add(grids):
            bins = f"{self.bins_per_shard} vision bins of {self.rows_per_bin} rows"
            return f"{len(grids)} images do not fit into {bins}"
        return None


class _Sample(NamedTuple, Generic[Item]):
    n_tokens: int
    grids: tuple[Grid, ...]
    item: Item


@dataclass
class PackedBatch(Generic[Item]):
    """Items of each row, B = n_shards * rows_per_shard rows; shard i has the i-th part."""

    rows: list[list[Item]]
    n_tokens: int
    """Real tokens."""
    n_patches: int
    """Real patches."""


@dataclass
class Packer(Generic[Item]):
    """Feed samples with ``add``; take batches as they fill up; ``flush`` at the end.

    ``waiting`` holds what was fed and not yet packed, in order of arrival. To resume exactly, feed
    these items again into a new packer before the rest of the stream.
    """

    budget: PackBudget
    _waiting: list[_Sample[Item]] = field(default_factory=list)
    _tokens: int = 0
    _patches: int = 0

    @property
    def waiting(self) -> list[Item]:
        """Items fed and not yet packed, in order of arrival."""
        return [sample.item for sample in self._waiting]

    def add(
        self, item: Item, n_tokens: int, grids: Iterable[Grid], name: str = "sample"
    ) -> PackedBatch[Item] | None:
        """Feed one sample; a batch when enough samples wait, else None.

        Raises:
            UserError: the sample, called ``name``, can never fit.
        """
        grids = tuple(grids)
        if problem := self.budget.problem(n_tokens, grids):
            raise UserError(f"{name}: {problem}")
        self._waiting.append(_Sample(n_tokens, grids, item))
        self._tokens += n_tokens
        self._patches += 4 * vision_load(grids)
        enough = self.budget.lookahead
        if self._tokens < enough * self.budget.tokens and (
            self._patches < enough * self.budget.patches
        ):
            return None
        return self._pack()

    def flush(self) -> Iterator[PackedBatch[Item]]:
        """Pack what waits; the last batch may be sparse."""
        while self._waiting:
            yield self._pack()

    def _pack(self) -> PackedBatch[Item]:
        """One batch: the longest-waiting sample first, lest it wait for ever, then by size."""
        rows: list[list[int]] = [[] for _ in range(self.budget.n_rows)]
        room = [self.budget.tokens_per_row] * self.budget.n_rows
        bins = [self.budget.bins() for _ in range(self.budget.n_shards)]
        by_size = sorted(range(1, len(self._waiting)), key=lambda i: (-self._share(i), i))
        for i in (0, *by_size):
            row = self._best_row(self._waiting[i], room, bins)
            if row is not None:
                rows[row].append(i)
                room[row] -= self._waiting[i].n_tokens
        for shard in range(self.budget.n_shards):
            self._settle(rows, shard)
        taken = {i for row in rows for i in row}
        left = [s for i, s in enumerate(self._waiting) if i not in taken]
        tokens = sum(s.n_tokens for s in left)
        patches = 4 * sum(vision_load(s.grids) for s in left)
        batch = PackedBatch(
            [[self._waiting[i].item for i in row] for row in rows],
            self._tokens - tokens,
            self._patches - patches,
        )
        self._waiting, self._tokens, self._patches = left, tokens, patches
        return batch

    def _settle(self, rows: list[list[int]], shard: int) -> None:
        """Put samples with images back, smallest first, until the planner takes the rest.

        Bins were filled in the order of placing; the planner sees row order and may, rarely, need
        one bin more.
        """
        budget, waiting = self.budget, self._waiting
        part = rows[shard * budget.rows_per_shard : (shard + 1) * budget.rows_per_shard]
        shape = budget.rows_per_bin, budget.window_units, budget.bins_per_shard
        while not pack_shards([[g for row in part for i in row for g in waiting[i].grids]], *shape):
            smallest = min((i for row in part for i in row if waiting[i].grids), key=self._share)
            next(row for row in part if smallest in row).remove(smallest)

    def _share(self, index: int) -> float:
        """The larger of a sample's shares in a row and in a shard's vision budget."""
        sample = self._waiting[index]
        patches = 4 * vision_load(sample.grids)
        in_vision = patches * self.budget.n_shards / self.budget.patches
        return max(sample.n_tokens / self.budget.tokens_per_row, in_vision)

    def _best_row(
        self, sample: _Sample[Item], room: list[int], bins: list[BinPacker]
    ) -> int | None:
        """Best fit: the fullest row that still takes the text, in a shard that takes the images."""
        n, per_shard = sample.n_tokens, self.budget.rows_per_shard
        full: set[int] = set()
        for _, row in sorted((left, row) for row, left in enumerate(room) if left >= n):
            shard = row // per_shard
            if shard in full:
                continue
            if not sample.grids or bins[shard].add(sample.grids):
                return row
            full.add(shard)
        return None


def pack(
    samples: Iterable[tuple[Item, int, Iterable[Grid]]], budget: PackBudget
) -> Iterator[PackedBatch[Item]]:
    """Batches of a whole stream of (item, tokens, grids), the remainder included at the end."""
    packer: Packer[Item] = Packer(budget)
    for item, n_tokens, grids in samples:
        batch = packer.add(item, n_tokens, grids)
        if batch is not None:
            yield batch
    yield from packer.flush()


def fit_budget(sizes: Sequence[tuple[int, Sequence[Grid]]], shape: PackBudget) -> PackBudget:
    """A vision budget that runs out together with the token budget, from a sample of sizes.

    Tries bin heights from what the largest image needs up to three times that, packs the sample
    with each, and keeps the one of least work for each real token and patch. Text and vision weigh
    the same (at 3B a visual token costs as much in the tower as in the decoder), and tall bins
    cost more attention.

    Args:
        sizes: (tokens, grids) of some hundred samples, drawn as training will draw them.
        shape: what is known of the budget; its vision part is replaced.

    Raises:
        UserError: a sample has more images than any budget tried can hold.
    """
    tokens_per_row, window_units = shape.tokens_per_row, shape.window_units
    sizes = [(n, grids) for n, grids in sizes if n <= tokens_per_row]
    largest = rows_of_largest((g for _, grids in sizes for g in grids), window_units)
    if not largest:
        return replace(shape, rows_per_bin=MIN_ROWS, bins_per_shard=1)
    units = sum(vision_load(grids) for _, grids in sizes)
    per_token = units / UNITS_PER_ROW / sum(n for n, _ in sizes)
    rows = per_token * tokens_per_row * shape.rows_per_shard  # vision rows of a shard full of text
    best, least = None, float("inf")
    for height in range(largest + largest % 2, 3 * largest + 2, max(2, largest // 16 * 2)):
        for bins in {max(1, round(rows * slack / height)) for slack in (0.95, 1.0, 1.05)}:
            budget = replace(shape, rows_per_bin=height, bins_per_shard=bins)
            token_fill, patch_fill = _mean_fill(sizes, budget)
            if not token_fill:
                continue
            work = 1 / token_fill + row_cost(height, window_units) / patch_fill
            if work < least:
                best, least = budget, work
    if best is None:
        raise UserError(
            "packing: a sample has more images than the vision budget of its row can hold: "
            "raise rows_per_shard or lower max_pixels"
        )
    return best


def largest_samples(
    every: Iterable[tuple[Grid, ...]], window_units: int
) -> list[tuple[int, tuple[Grid, ...]]]:
    """Samples with the largest image and with the most of images, next to no text in them."""
    every = [grids for grids in every if grids]
    if not every:
        return []
    tall = max(every, key=lambda grids: rows_of_largest(grids, window_units))
    return [(1, tall), (1, max(every, key=vision_load))]


def _mean_fill(
    sizes: Sequence[tuple[int, Sequence[Grid]]], budget: PackBudget
) -> tuple[float, float]:
    """Token fill and patch fill of the full batches; zeros if a sample cannot fit."""
    packer: Packer[int] = Packer(budget)
    try:
        fed = [packer.add(i, n, grids) for i, (n, grids) in enumerate(sizes)]
    except UserError:
        return 0.0, 0.0
    full = [b for b in fed if b is not None] or [next(packer.flush())]
    tokens = sum(b.n_tokens for b in full) / len(full) / budget.tokens
    return tokens, sum(b.n_patches for b in full) / len(full) / budget.patches
