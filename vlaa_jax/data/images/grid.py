"""The grid of patches that an image is cut into, and how many tokens it becomes."""

Grid = tuple[int, int, int]
"""(frames, patch rows, patch columns) of an image or a video."""


def unit_count(grid: Grid) -> int:
    """Merge units of a grid, which is also its number of language-model tokens."""
    t, h, w = grid
    return t * (h // 2) * (w // 2)
