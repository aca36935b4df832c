"""What can be known before the money is spent: dry run, preview, cap."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from pipeline_cases import changed, lines, outputs, run
from vlaa_jax.pipeline.preview import write_preview
from vlaa_jax.pipeline.report import counts_rows
from vlaa_jax.pipeline.sample import Outcome, Sample
from vlaa_jax.pipeline.sources import SOURCES
from vlaa_jax.pipeline.split import Tally

PRICES = {"price_prompt": 1000.0, "price_completion": 2000.0, "max_tokens": 100}


def priced(settings):
    for group in ("caption", "distil", "rewrite", "verify"):
        model = replace(getattr(settings, group).model, **PRICES)
        settings = changed(settings, group, model=model)
    return settings


def test_a_dry_run_asks_nothing(served, models, tmp_path):
    summary = run(changed(served, "run", dry_run=True), tmp_path)
    assert not models.asked
    calls = {step: one.calls for step, one in summary.estimates.items()}
    # 27 of 40 samples want a trace; 16 of them come with words to reason from.
    assert calls == {"caption": 11, "distil": 27, "rewrite": 27, "verify": 27}
    assert not any(one.measured for one in summary.estimates.values())


def test_a_dry_run_after_a_preview_reckons_from_what_was_recorded(served, models, tmp_path):
    settings = priced(served)
    run(changed(settings, "run", preview=20), tmp_path)
    asked = len(models.asked)
    expected = run(changed(settings, "run", dry_run=True), tmp_path).estimates
    assert len(models.asked) == asked
    before = sum(
        cost.cost for cost in run(changed(settings, "run", preview=20), tmp_path).costs.values()
    )
    spent = sum(cost.cost for cost in run(settings, tmp_path).costs.values()) - before
    assert sum(one.cost for one in expected.values()) == pytest.approx(spent, rel=0.25)
    assert all(one.measured for one in expected.values())


def test_a_dry_run_of_a_finished_run_expects_nothing(served, tmp_path):
    run(served, tmp_path)
    expected = run(changed(served, "run", dry_run=True), tmp_path).estimates
    assert all(one.calls == 0 for one in expected.values())


def test_a_preview_is_paid_for_once(served, models, tmp_path):
    run(changed(served, "run", preview=10), tmp_path)
    asked = [body for _, body in models.asked]
    assert not (tmp_path / "sft.jsonl").exists()
    run(served, tmp_path)
    later = [body for _, body in models.asked[len(asked) :]]
    assert not set(asked) & set(later)


def test_the_preview_shows_every_step_and_fetches_nothing(served, tmp_path):
    run(changed(served, "run", preview=20), tmp_path)
    page = (tmp_path / "preview.html").read_text()
    assert page.count("<article>") == 20
    assert page.count("data:image/png;base64,") == 20
    for title in ("question", "trace", "trace after rewriting", "verdict", "gold (mcq)"):
        assert f"<h3>{title}</h3>" in page
    assert "caption (scripted-captioner)" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "http:" not in page.split("<body>")[1]


def test_what_models_say_cannot_become_part_of_the_page(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    evil = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>"
    fields = {"caption": evil, "thought": evil, "answer": evil, "distilled": evil, "context": evil}
    sample = Sample(evil, evil, evil, evil, evil, "a.png", "00", license=evil, **fields)
    outcome = Outcome(0, "dropped", sample, "verify", evil, evil)
    write_preview([outcome], tmp_path, tmp_path / "page.html", evil)
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and "<img src=x" not in page
    assert page.count("&lt;script&gt;") >= 8


def test_the_cap_stops_cleanly_and_raising_it_goes_on(served, models, tmp_path):
    whole = run(priced(served), tmp_path / "whole")
    total = sum(cost.cost for cost in whole.costs.values())
    capped = changed(priced(served), "run", max_cost=total / 2)
    summary = run(capped, tmp_path / "capped")
    assert "run.max_cost" in summary.stopped and summary.pending > 0
    spent = sum(cost.cost for cost in summary.costs.values())
    assert spent <= total / 2
    written = lines(tmp_path / "capped" / "grpo.jsonl")
    assert written  # what is done can be used
    run(changed(priced(served), "run", max_cost=2 * total), tmp_path / "capped")
    assert outputs(tmp_path / "capped") == outputs(tmp_path / "whole")


def test_people_see_counts_reasons_and_costs(served, tmp_path):
    text = io.StringIO()
    run(priced(served), tmp_path, Console(file=text, width=140))
    said = text.getvalue()
    for words in ("CLEVR-Math", "no think block", "rewrite", "total", "(35,000)"):
        assert words in said
    counts = (tmp_path / "counts.md").read_text()
    assert "| CLEVR-Math | 8 (35,000) |" in counts


def test_the_counts_of_all_sources_end_in_the_papers_total():
    *rows, total = counts_rows(dict.fromkeys(SOURCES, 1), Tally())
    assert len(rows) == 9
    assert total == ["total", "9 (203,182)", "0 (144,895)", "0 (126,413)", "0 (25,195)", "0", "0"]
    assert counts_rows({"geoqa170k": 7}, Tally())[-1][1] == "7"


def test_the_live_table_has_a_row_per_step(served, tmp_path):
    text = io.StringIO()
    console = Console(file=text, width=140, force_terminal=True)
    run(served, tmp_path, console)
    assert "dropped, by reason" in text.getvalue() and "calls/s" in text.getvalue()
