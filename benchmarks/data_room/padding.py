"""Token and patch padding on a mix of image sizes like the released one.

It needs sizes only, so it runs over many samples.
"""

import argparse
from pathlib import Path

import numpy as np

from data_room.samples import HUB_PIXELS, answer, checkpoint, text
from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.rows.packing import PackBudget, Packer, fit_budget
from vlaa_jax.data.text.chat import Chat
from vlaa_jax.schema import Grid

SIZE_MIX = (
    # (width, height), records of the source in the SFT file (arXiv 2504.11468, Table 1)
    ((480, 320), 5_923),  # CLEVR-Math
    ((448, 448), 19_258),  # Math PUMA
    ((800, 600), 34_604),  # ArxivQA
    ((1390, 2016), 4_897),  # DocVQA
    ((768, 1024), 4_266),  # VizWiz
    ((512, 512), 10_496),  # ALLaVA
    ((640, 480), 8_727),  # COCO
    ((500, 375), 38_242),  # VG
)

Size = tuple[int, tuple[Grid, ...]]
"""Tokens of a sample, grids of its images."""


def padding(args: argparse.Namespace, root: Path) -> dict:
    hf_dir = checkpoint(root / "hf", HUB_PIXELS)
    sizes = draw_sizes(args.samples, Chat.from_dir(hf_dir), ImageProcessor.from_dir(hf_dir))
    result: dict = {}
    for rows in (4, 8, 16):
        budget = fit_budget(sizes[:512], PackBudget(2048, rows))
        tokens, patches, per_batch = packed_padding(sizes, budget)
        n = max(1, round(per_batch))
        plain = collated_padding(sizes, n)
        result[rows] = {
            "tokens": tokens,
            "patches": patches,
            "padded_tokens": plain,
            "samples_per_batch": per_batch,
            "budget": vars(budget),
        }
        print(
            f"{rows:2} rows of 2048, {budget.bins_per_shard} bins of {budget.rows_per_bin} rows: "
            f"padding {tokens:.1%} of tokens, {patches:.1%} of patches; padded batches of {n} "
            f"as HF collates: {plain:.1%} of tokens, no patches but a new shape each time"
        )
    return result


def draw_sizes(count: int, chat: Chat, processor: ImageProcessor) -> list[Size]:
    """Samples of one image each, their sources as frequent as in the file."""
    rng = np.random.default_rng(0)
    weights = np.array([n for _, n in SIZE_MIX]) / sum(n for _, n in SIZE_MIX)
    sizes: list[Size] = []
    for _ in range(count):
        grid = processor.grid(*SIZE_MIX[rng.choice(len(SIZE_MIX), p=weights)][0])
        words = len(chat.encode(text(rng, 10, 40))) + len(chat.encode(answer(rng))) + 20
        sizes.append((words + grid[1] * grid[2] // 4, (grid,)))
    return sizes


def packed_padding(sizes: list[Size], budget: PackBudget) -> tuple[float, float, float]:
    """Padded shares of tokens and of patches, and samples in a batch, of our packed rows."""
    packer: Packer[int] = Packer(budget)
    batches = [packer.add(i, n, grids) for i, (n, grids) in enumerate(sizes)]
    full = [b for b in batches if b is not None]
    tokens = 1 - sum(b.n_tokens for b in full) / len(full) / budget.tokens
    patches = 1 - sum(b.n_patches for b in full) / len(full) / budget.patches
    return tokens, patches, sum(len(row) for b in full for row in b.rows) / len(full)


def collated_padding(sizes: list[Size], n: int) -> float:
    """Padded share of tokens where each batch of ``n`` is as long as its longest sample."""
    groups = [sizes[i : i + n] for i in range(0, len(sizes) - n, n)]
    kept = sum(t for group in groups for t, _ in group)
    return 1 - kept / sum(max(t for t, _ in group) * len(group) for group in groups)
