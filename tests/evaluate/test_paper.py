"""The paper's averages, recomputed from its cells by the code that averages our own."""

import pytest

from vlaa_jax.evaluate.benchmarks import LEADERBOARD
from vlaa_jax.evaluate.report.paper import COLUMNS, ROWS
from vlaa_jax.evaluate.scoring.profiles import PROFILES
from vlaa_jax.settings import evaluate as settings

# Printed averages that are not the rounded mean of the printed cells, and that mean.
SLIPS = {
    "VLAA-Thinker-Qwen2VL-2B": 20.6,
    "VLAA-Thinker-Qwen2VL-7B-Zero": 30.3,
    "Qwen2-VL-7B-Base, GRPO after SFT": 25.1,
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.model)
def test_a_printed_average_is_the_mean_of_its_cells_or_a_known_slip(row):
    if row.model in SLIPS:
        assert row.slip
        assert round(row.average, 1) == SLIPS[row.model] != row.printed_average
    else:
        assert not row.slip
        assert row.average == pytest.approx(row.printed_average, abs=0.051)


def test_the_leaderboard_is_ours_in_its_order():
    assert [one.name for one in LEADERBOARD] == list(COLUMNS) == list(settings.LEADERBOARD)
    assert set(settings.PROFILES) == set(PROFILES)
    assert sum(one.size for one in LEADERBOARD) == 1000 + 3040 + 788 + 5010 + 1740 + 447
