import pytest

from pipeline_cases import changed, outputs, run

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
