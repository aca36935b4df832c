"""The paper's arms with its six benchmarks (arXiv 2504.11468), to be held beside ours.

Cells of SFT alone are not printed there: they are the base's, lowered by the relative drops of
Figure 3, and marked as such.
"""

from dataclasses import dataclass

from vlaa_jax.evaluate.report.paper import COLUMNS

Cells = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class PaperArm:
    """One bar group of the paper; cells in the order of ``COLUMNS``."""

    model: str
    arm: str
    cells: Cells
    source: str

    @property
    def average(self) -> float:
        """The plain mean of the cells."""
        return sum(self.cells) / len(self.cells)


_BASES: dict[str, Cells] = {
    "2vl-2b": (48.0, 16.1, 17.5, 3.8, 10.8, 26.6),
    "2vl-7b": (61.6, 19.2, 25.4, 11.0, 22.3, 33.3),
    "3b": (61.2, 21.9, 31.2, 13.2, 22.9, 40.3),
    "7b": (68.1, 25.4, 41.1, 21.8, 36.2, 47.9),
}
_DROPS: dict[tuple[str, str], Cells] = {
    ("2vl-2b", "sft-25k"): (-30.8, -16.0, 8.1, -21.3, -13.6, 4.3),
    ("2vl-2b", "sft-126k"): (-33.8, -26.5, 6.6, -57.9, -58.5, 3.5),
    ("2vl-7b", "sft-25k"): (-28.6, -25.3, -27.0, -74.6, -56.9, -20.7),
    ("2vl-7b", "sft-126k"): (-33.6, -23.7, -8.6, -94.5, -76.1, -10.7),
    ("3b", "sft-25k"): (-24.3, -28.9, -24.7, -65.2, -68.0, -19.5),
    ("3b", "sft-126k"): (-50.7, -41.4, -59.3, -98.5, -99.6, -50.0),
    ("7b", "sft-25k"): (-25.7, -37.8, -39.8, -64.3, -47.1, -25.3),
    ("7b", "sft-126k"): (-23.9, -38.0, -37.9, -93.6, -99.7, -22.0),
}
_GRPO: dict[tuple[str, str], tuple[Cells, str]] = {
    ("2vl-2b", "grpo"): ((43.6, 14.8, 19.0, 3.4, 12.6, 30.4), "Table 4"),
    ("2vl-7b", "grpo"): ((59.6, 19.8, 33.9, 15.2, 30.5, 36.0), "Table 4"),
    ("2vl-7b", "sft-25k+grpo"): ((43.7, 14.7, 19.0, 3.2, 11.1, 27.3), "Table 3"),
    ("3b", "grpo"): ((60.80, 23.20, 35.80, 18.56, 29.43, 39.15), "Figure 5"),
    ("3b", "sft-5k+grpo"): ((42.40, 15.62, 22.72, 5.79, 9.62, 29.75), "Figure 5"),
    ("3b", "sft-10k+grpo"): ((43.60, 14.93, 21.32, 5.19, 14.10, 31.54), "Figure 5"),
    ("7b", "grpo"): ((68.0, 26.4, 48.2, 22.4, 41.5, 48.5), "Table 4"),
}


def _lowered(base: Cells, drops: Cells) -> Cells:
    a, b, c, d, e, f = (round(x * (1 + y / 100), 1) for x, y in zip(base, drops, strict=True))
    return a, b, c, d, e, f


ARMS = (
    *(PaperArm(model, "base", cells, "Table 4") for model, cells in _BASES.items()),
    *(
        PaperArm(model, arm, _lowered(_BASES[model], drops), "from the drops of Figure 3")
        for (model, arm), drops in _DROPS.items()
    ),
    *(PaperArm(model, arm, cells, source) for (model, arm), (cells, source) in _GRPO.items()),
)
AVERAGES = {("3b", "sft-aha"): 21.3, ("3b", "sft-25k"): 21.6, ("3b", "sft-126k"): 12.7}
"""Printed in Table 2 without their cells, or as a check on those above."""


def paper_arm(model: str, arm: str) -> PaperArm | None:
    """The paper's numbers for an arm of the same name, if it has them."""
    return next((one for one in ARMS if (one.model, one.arm) == (model, arm)), None)


__all__ = ["ARMS", "AVERAGES", "COLUMNS", "PaperArm", "paper_arm"]
