from dataclasses import replace

import pytest

from pipeline_cases import changed, outputs, run
from vlaa_jax.schema import UserError

pytest.importorskip("apache_beam")


def test_beam_writes_what_asyncio_writes(served, models, tmp_path):
    run(served, tmp_path / "asyncio")
    asked = len(models.asked)
    run(changed(served, "run", runner="beam"), tmp_path / "beam")
    assert outputs(tmp_path / "beam") == outputs(tmp_path / "asyncio")
    assert len(models.asked) == 2 * asked
    assert list((tmp_path / "beam" / "beam").glob("outcomes*.jsonl"))


def test_beam_goes_on_where_asyncio_was(served, models, tmp_path):
    run(served, tmp_path)
    first, asked = outputs(tmp_path), len(models.asked)
    run(changed(served, "run", runner="beam"), tmp_path)
    assert outputs(tmp_path) == first
    assert len(models.asked) == asked


@pytest.mark.parametrize("before", [False, True])
def test_workers_with_ledgers_of_their_own_leave_one(served, models, tmp_path, before):
    apart = changed(served, "run", runner="beam", beam_options="--runner=FnApiRunner")
    if before:
        run(changed(served, "run", preview=12), tmp_path / "work")
    run(apart, tmp_path / "work")
    asked = len(models.asked)
    assert asked == len(set(models.asked)) and not list((tmp_path / "work/ledger.d").iterdir())
    run(served, tmp_path / "work")
    assert len(models.asked) == asked
    run(served, tmp_path / "asyncio")
    assert outputs(tmp_path / "work") == outputs(tmp_path / "asyncio")


def test_a_sample_that_nothing_more_may_be_asked_about_is_left(served, tmp_path, caplog):
    model = replace(served.caption.model, price_prompt=1e6)
    capped = changed(changed(served, "caption", model=model), "run", runner="beam", max_cost=1.0)
    summary = run(capped, tmp_path)
    assert "run.max_cost" in caplog.text
    assert summary.stopped and 0 < summary.pending < summary.samples


def test_options_that_beam_does_not_know_are_one_line(served, tmp_path):
    with pytest.raises(UserError, match="Apache Beam"):
        run(changed(served, "run", runner="beam", beam_options="--runner=NoSuch"), tmp_path)
