"""The leaderboard's rows that stand in the paper (arXiv 2504.11468), to be held beside ours.

Columns: MathVista, MathVision, MathVerse (vision only), DynaMath (worst case), WeMath (strict),
LogicVista; then the average as printed.
"""

from dataclasses import dataclass

COLUMNS = ("mathvista", "mathvision", "mathverse", "dynamath", "wemath", "logicvista")


@dataclass(frozen=True)
class PaperRow:
    """One model of a table."""

    model: str
    cells: tuple[float, float, float, float, float, float]
    printed_average: float
    table: str = "Table 4"

    @property
    def average(self) -> float:
        """The plain mean of the cells."""
        return sum(self.cells) / len(self.cells)

    @property
    def slip(self) -> bool:
        """Whether the printed average is not the rounded mean of the printed cells."""
        return abs(self.average - self.printed_average) > 0.05 + 1e-9


ROWS = (
    PaperRow("Qwen2-VL-2B", (48.0, 16.1, 17.5, 3.8, 10.8, 26.6), 20.5),
    PaperRow("VLAA-Thinker-Qwen2VL-2B", (43.6, 14.8, 19.0, 3.4, 12.6, 30.4), 20.3),
    PaperRow("Qwen2.5-VL-3B", (61.2, 21.9, 31.2, 13.2, 22.9, 40.3), 31.8),
    PaperRow("VLM-R1-Math-0305", (62.7, 21.9, 32.2, 13.0, 30.0, 40.5), 33.4),
    PaperRow("VLAA-Thinker-Qwen2.5VL-3B", (61.0, 24.4, 36.4, 18.2, 33.8, 38.5), 35.4),
    PaperRow("Qwen2-VL-7B", (61.6, 19.2, 25.4, 11.0, 22.3, 33.3), 28.8),
    PaperRow("VLAA-Thinker-Qwen2VL-7B-Zero", (59.3, 18.2, 33.5, 11.4, 23.2, 36.2), 30.7),
    PaperRow("VLAA-Thinker-Qwen2VL-7B", (59.6, 19.8, 33.9, 15.2, 30.5, 36.0), 32.5),
    PaperRow("Qwen2.5-VL-7B", (68.1, 25.4, 41.1, 21.8, 36.2, 47.9), 40.1),
    PaperRow("VLAA-Thinker-Qwen2.5VL-7B", (68.0, 26.4, 48.2, 22.4, 41.5, 48.5), 42.5),
    PaperRow(
        "Qwen2-VL-7B-Inst, GRPO after SFT", (43.7, 14.7, 19.0, 3.2, 11.1, 27.3), 19.8, "Table 3"
    ),
    PaperRow(
        "Qwen2-VL-7B-Base, GRPO after SFT", (49.5, 16.4, 25.0, 6.4, 20.4, 32.7), 25.7, "Table 3"
    ),
    PaperRow(
        "Qwen2.5-VL-3B, GRPO only", (60.80, 23.20, 35.80, 18.56, 29.43, 39.15), 34.49, "Figure 5"
    ),
    PaperRow(
        "Qwen2.5-VL-3B, 5K SFT + GRPO", (42.40, 15.62, 22.72, 5.79, 9.62, 29.75), 20.98, "Figure 5"
    ),
    PaperRow(
        "Qwen2.5-VL-3B, 10K SFT + GRPO",
        (43.60, 14.93, 21.32, 5.19, 14.10, 31.54),
        21.78,
        "Figure 5",
    ),
)
