from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from configs.pipeline import VARIANTS, get_config
from pipeline_cases import changed, lines, outputs, run
from vlaa_jax.data.judging.check import check
from vlaa_jax.data.judging.judge import Judge
from vlaa_jax.data.sources.table import open_source
from vlaa_jax.pipeline.split import has_aha
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.schema import UserError
from vlaa_jax.settle import settle


def test_tiny_yields_files_that_the_data_check_accepts(tmp_path):
    settings = settle(get_config("tiny").to_dict())
    summary = run(settings, tmp_path)
    assert summary.pending == 0 and not summary.stopped
    with MixedReward() as reward:
        for name, kind in (("sft", "sft"), ("aha_sft", "sft"), ("grpo", "grpo")):
            path = tmp_path / f"{name}.jsonl"
            problems = check(
                open_source(path, tmp_path / "images", kind=kind),
                Judge(reward.gold_problems, kind=kind),
            )
            assert problems.clean and len(lines(path)) >= 10, name


def test_every_sample_is_kept_dropped_or_failed(served, tmp_path):
    summary = run(served, tmp_path)
    tally = summary.tally
    dropped = sum(tally.dropped.values())
    assert sum(tally.kept.values()) + dropped + sum(tally.failed.values()) == summary.samples == 40
    reasons = Counter((line["step"], line["reason"]) for line in lines(tmp_path / "rejects.jsonl"))
    counted = Counter()
    for (_, step, reason), number in tally.dropped.items():
        counted[step, reason] += number
    assert reasons == counted
    assert {step for step, _ in reasons} == {"distil", "rewrite", "verify"}


def test_traces_with_a_cue_are_explored_and_the_others_imitated(served, tmp_path):
    run(served, tmp_path)
    assert not any(has_aha(line["answer"]) for line in lines(tmp_path / "sft.jsonl"))
    assert all(has_aha(line["answer"]) for line in lines(tmp_path / "aha_sft.jsonl"))
    explored = {line["id"] for line in lines(tmp_path / "grpo.jsonl")}
    assert {line["id"] for line in lines(tmp_path / "aha_sft.jsonl")} <= explored
    assert not explored & {line["id"] for line in lines(tmp_path / "sft.jsonl")}


def test_a_second_run_asks_nothing_and_writes_the_same(served, models, tmp_path):
    run(served, tmp_path)
    first, asked = outputs(tmp_path), len(models.asked)
    run(served, tmp_path)
    assert outputs(tmp_path) == first
    assert len(models.asked) == asked


def test_another_prompt_asks_its_step_again_and_what_depends_on_it(served, models, tmp_path):
    run(served, tmp_path / "run")
    before = {step: models.count(step) for step in ("caption", "distil", "rewrite", "verify")}
    prompt = tmp_path / "own.txt"
    prompt.write_text("Copy this, but speak of the image.\n$text\n", encoding="utf-8")
    run(changed(served, "rewrite", prompt=str(prompt)), tmp_path / "run")
    after = {step: models.count(step) for step in before}
    assert after["caption"] == before["caption"] and after["distil"] == before["distil"]
    assert after["rewrite"] == 2 * before["rewrite"]
    # The scripted rewriter answers as before, so the judge is asked nothing new.
    assert after["verify"] == before["verify"]


def test_an_own_prompt_must_hold_what_it_is_to_ask(served, tmp_path):
    prompt = tmp_path / "own.txt"
    prompt.write_text("Copy this.", encoding="utf-8")
    with pytest.raises(UserError, match=r"\$text must stand"):
        run(changed(served, "rewrite", prompt=str(prompt)), tmp_path / "run")


def test_caps_hold_per_source_and_the_seed_draws(served, tmp_path):
    def drawn(seed, name):
        settings = changed(served, "split", rl_caps="clevr_math=1,geoqa170k=2", seed=seed)
        run(settings, tmp_path)
        return [line["id"] for line in lines(tmp_path / "grpo.jsonl") if name in line["id"]]

    assert len(drawn(0, "clevr_math")) == 1 and len(drawn(0, "geoqa170k")) == 2
    assert len({tuple(drawn(seed, "geoqa170k")) for seed in range(3)}) > 1


def test_two_runs_in_one_directory_are_refused(served, tmp_path):
    from vlaa_jax.pipeline.run import _alone

    tmp_path.mkdir(exist_ok=True)
    with _alone(tmp_path), pytest.raises(UserError, match="another run"):
        run(served, tmp_path)


def test_a_full_disk_is_told_in_one_line_and_the_run_goes_on_when_there_is_room(served, tmp_path):
    (tmp_path / "outcomes.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device"):
        run(served, tmp_path)
    (tmp_path / "outcomes.jsonl").unlink()
    assert run(served, tmp_path).pending == 0


def test_other_collect_settings_are_refused(served, tmp_path):
    run(served, tmp_path)
    other = replace(served, collect=replace(served.collect, unique_images=False))
    with pytest.raises(UserError, match=r"another collect\.unique_images"):
        run(other, tmp_path)


def test_collecting_begins_again_where_its_files_are_gone(served, models, tmp_path):
    run(served, tmp_path)
    first, asked = outputs(tmp_path), len(models.asked)
    (tmp_path / "collected.jsonl").unlink()
    run(served, tmp_path)
    assert outputs(tmp_path) == first and len(models.asked) == asked
    (tmp_path / "collected.json").write_text('{"settings": 1}')
    with pytest.raises(UserError, match=r"collected\.json: is damaged"):
        run(served, tmp_path)


def test_another_spelling_of_the_work_directory_is_the_same(served, models, tmp_path, monkeypatch):
    run(served, tmp_path / "a")
    asked = len(models.asked)
    monkeypatch.chdir(tmp_path)
    run(served, Path("a"))
    assert len(models.asked) == asked


def names_of(value, prefix=""):
    """Dotted names of all settings of a nested mapping."""
    found = set()
    for name, inner in value.items():
        whole = f"{prefix}{name}"
        found |= names_of(inner, f"{whole}.") if isinstance(inner, dict) else {whole}
    return found


@pytest.mark.parametrize("variant", ["", *VARIANTS])
def test_configs_settle_and_hold_every_setting(variant):
    config = get_config(variant).to_dict()
    assert names_of(config) == names_of(asdict(settle(config)))
    with pytest.raises(ValueError, match="no variant 'x'"):
        get_config("x")


def test_what_came_in_is_kept_dropped_or_failed_for_every_source(served, tmp_path):
    first = run(changed(served, "collect", limits="clevr_math=5"), tmp_path / "first")
    # The images of a source once more: all of them were used before.
    again = tmp_path / "first" / "sources" / "arxivqa"
    other = changed(
        served, "collect", sources=f"arxivqa={again},clevr_math={again.parent / 'clevr_math'}"
    )
    other = changed(other, "collect", limits="clevr_math=5")
    (again / "arxivqa.jsonl").write_text((again / "arxivqa.jsonl").read_text() * 2)
    second = run(other, tmp_path / "second")
    for summary in (first, second):
        tally = summary.tally
        for source, original in summary.originals.items():
            dropped = sum(
                n for (s, step, _), n in tally.dropped.items() if s == source and step != "split"
            )
            assert original == tally.kept[source] + dropped + tally.failed[source]
    assert second.tally.dropped["arxivqa", "collect", "id used before"] == 3
    assert "| collect | id used before | 3 |" in (tmp_path / "second" / "counts.md").read_text()


def test_pass_rates_of_a_served_model_choose_and_are_in_the_records(served, models, tmp_path):
    summary = run(changed(served, "split", rule="pass_rate", low=0.5, samples=3), tmp_path)
    explored = lines(tmp_path / "grpo.jsonl")
    rated = [line["meta"] for line in explored if "pass_rate" in line["meta"]]
    assert rated and all(meta["pass_rate"] >= 0.5 and meta["pass_rate_n"] == 3 for meta in rated)
    easy = {line["id"] for line in explored}
    assert not easy & {line["id"] for line in lines(tmp_path / "sft.jsonl")}
    assert ("coco", "split", "too easy or too hard to explore") in summary.tally.dropped
    # Equal questions on one image differ by the number of the try alone.
    assert models.count("difficulty") == 3 * sum(summary.tally.kept.values())


def test_perplexities_choose_and_are_in_the_records(served, tmp_path):
    run(changed(served, "split", rule="perplexity", low=1.0, high=1.75), tmp_path)
    explored = [line["meta"] for line in lines(tmp_path / "grpo.jsonl")]
    told = [meta["perplexity"] for meta in explored if "perplexity" in meta]
    others = [line["meta"]["perplexity"] for line in lines(tmp_path / "sft.jsonl")]
    assert told and others
    assert max(told) <= 1.75 < min(others)
