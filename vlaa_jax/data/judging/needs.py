"""What a run has to have room for to take all records of a source."""

from collections.abc import Sequence
from dataclasses import dataclass

from vlaa_jax.data.images.bins import rows_needed
from vlaa_jax.data.samples.preprocessor import Measure, Preprocessor

_TOKENS, _ROWS = 32, 2
"""Budgets are rounded up to multiples of these."""


@dataclass
class Needs:
    """Grows with every record that is added.

    Attributes:
        preprocessor: that measured them.
        window_units: 4 for Qwen2.5-VL, 0 for Qwen2-VL.
    """

    preprocessor: Preprocessor | None = None
    window_units: int = 4
    tokens: int = 0
    """Of the longest sample."""
    rows: int = 0
    """Vision rows of the largest image."""
    patches: int = 0
    """Of the largest image."""

    def add(self, found: Measure) -> None:
        """Make room for a record."""
        self.tokens = max(self.tokens, found.tokens)
        for grid in found.grids:
            self.rows = max(self.rows, rows_needed(grid, self.window_units))
            self.patches = max(self.patches, grid[0] * grid[1] * grid[2])

    def flags(self, kind: str | None) -> Sequence[str]:
        """The settings of a run that hold all of it; none where nothing was measured."""
        if self.preprocessor is None or not self.tokens:
            return []
        tokens = -(-self.tokens // _TOKENS) * _TOKENS
        settings = {"tokens_per_row" if kind == "sft" else "max_prompt_tokens": tokens}
        if self.patches:
            settings["max_pixels"] = self.patches * self.preprocessor.processor.patch_size**2
        if self.patches and kind != "sft":
            settings["vision_rows_per_bin"] = -(-self.rows // _ROWS) * _ROWS
        return [f"--config.data.{name}={value}" for name, value in settings.items()]
