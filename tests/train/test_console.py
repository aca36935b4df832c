"""Tables of the terminal."""

from vlaa_jax.train.console import heldout_table


def test_the_closing_table_shows_benchmarks_with_and_without_held_out_records():
    bench = {"benchmark/wemath": 12.5}
    alone = heldout_table(
        {"before": bench, "after": {"benchmark/wemath": 25.0, "benchmark/wemath_unknown_frac": 0.0}}
    )
    assert [list(column.cells) for column in alone.columns] == [
        *(["benchmark/wemath"], [""], ["12.500"], ["25.000"], ["+12.500"]),
    ]
    kept = {"before": {"heldout/mean": 0.5}, "after": {"heldout/mean": 0.75, **bench}}
    assert list(heldout_table(kept).columns[0].cells) == ["mean", "benchmark/wemath"]
