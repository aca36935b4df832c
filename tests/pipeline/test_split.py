from dataclasses import replace

import pytest

from pipeline_cases import lines
from vlaa_jax.data.records.parse import Parser
from vlaa_jax.pipeline.outcomes import Outcomes
from vlaa_jax.pipeline.sample import Outcome, Sample
from vlaa_jax.pipeline.split import grpo_record, has_aha, sft_record, split
from vlaa_jax.schema import UserError
from vlaa_jax.settings.pipeline import SplitSettings

BASE = Sample(
    *("clevr_math-0", "clevr_math", "How many?", "3", "digit", "clevr_math/images/0.png", "00"),
    **{"thought": "I count.", "answer": "3", "distilled": "x", "caption": "Three."},
)


def sample(number, thought="I count.", source="clevr_math", **fields):
    return replace(BASE, id=f"{source}-{number}", source=source, thought=thought, **fields)


def run_split(tmp_path, samples, problems=(), **settings):
    outcomes = Outcomes(tmp_path / "outcomes.jsonl", len(samples))
    for position in reversed(range(len(samples))):  # calls end in any order
        outcomes.add(Outcome(position, "kept", samples[position]))
    bad = dict(problems)
    tally = split(
        outcomes, SplitSettings(**settings), tmp_path, lambda s: [bad.get(x.id) for x in s]
    )
    outcomes.close()
    names = ("sft", "aha_sft", "grpo")
    return tally, *([line["id"] for line in lines(tmp_path / f"{n}.jsonl")] for n in names)


@pytest.mark.parametrize(
    "text",
    [
        *("Wait, no", "once AGAIN", "I double-check", "Hmm", "my mistake", "Alternatively"),
        *("let me check", "I should confirm", "against it", "a checkered flag", "the waiter"),
    ],
)
def test_a_cue_is_a_substring_whatever_the_case(text):
    assert has_aha(text)


@pytest.mark.parametrize("text", ["I see", "I should", "confirm it", "a gain", ""])
def test_other_words_are_no_cue(text):
    assert not has_aha(text)


def test_files_are_in_the_order_of_the_samples(tmp_path):
    samples = [sample(i, "Wait." if i % 2 else "So.") for i in range(6)]
    _, sft, aha, rl = run_split(tmp_path, samples)
    assert sft == ["clevr_math-0", "clevr_math-2", "clevr_math-4"]
    assert aha == rl == ["clevr_math-1", "clevr_math-3", "clevr_math-5"]


def test_a_cue_in_the_answer_counts_too(tmp_path):
    _, sft, _, rl = run_split(tmp_path, [replace(BASE, answer="3, I checked")])
    assert (sft, rl) == ([], [BASE.id])


def test_caps_are_per_source_and_the_aha_file_has_its_own(tmp_path):
    samples = [sample(i, "Wait.") for i in range(8)]
    samples += [sample(i, "Wait.", "docvqa", verifier_type="open_ended") for i in range(4)]
    tally, sft, aha, rl = run_split(tmp_path, samples, rl_caps="clevr_math=3", aha_cap=5)
    assert (tally.rl["clevr_math"], tally.rl["docvqa"]) == (3, 4)
    assert (len(sft), len(aha), len(rl)) == (0, 5, 7)


def test_a_gold_that_training_could_not_score_is_a_reject_of_rl_only(tmp_path):
    samples = [sample(0, "Wait."), sample(1, "Wait.")]
    tally, _, aha, rl = run_split(tmp_path, samples, {"clevr_math-0": "gold is odd"}.items())
    assert (len(aha), rl) == (2, ["clevr_math-1"])
    (reject,) = lines(tmp_path / "rejects.jsonl")
    assert (reject["step"], reject["reason"], reject["detail"]) == (
        *("split", "gold cannot be scored"),
        "gold is odd",
    )
    assert tally.dropped == {("clevr_math", "split", "gold cannot be scored"): 1}


def test_pass_rates_within_the_band_are_explored_and_the_others_imitated(tmp_path):
    rates = [0.0, 0.25, 0.75, 1.0]
    samples = [sample(i, "Wait.", difficulty={"pass_rate": r}) for i, r in enumerate(rates)]
    band = {"rule": "pass_rate", "low": 0.2, "high": 0.8}
    _, sft, _, rl = run_split(tmp_path, [*samples, sample(4)], **band)
    assert rl == ["clevr_math-1", "clevr_math-2"]
    assert sft == ["clevr_math-0", "clevr_math-3", "clevr_math-4"]
    assert [line["meta"]["pass_rate"] for line in lines(tmp_path / "grpo.jsonl")] == [0.25, 0.75]


def test_what_is_explored_only_needs_no_trace_and_no_cue(tmp_path):
    box = sample(0, "", "coco", uses=("rl",), answer="", verifier_type="iou", gt="[0, 0, 1, 1]")
    _, sft, aha, rl = run_split(tmp_path, [box])
    assert (sft, aha, rl) == ([], [], ["coco-0"])


def test_records_are_read_back_as_the_released_ones_are():
    full = replace(BASE, box_space=None, meta={"url": "u"}, caption_model="m", license="L")
    read = Parser("grpo")(grpo_record(full), "")
    assert (read.id, read.gt, read.verifier_type) == (BASE.id, "3", "digit")
    assert read.meta["ds_answer"] == BASE.target and read.meta["caption_model_id"] == "m"
    assert (read.meta["url"], read.meta["license"]) == ("u", "L")
    read = Parser("sft")(sft_record(full), "")
    assert read.answer == "<think> I count. </think> <answer> 3 </answer>"
    assert grpo_record(full)["gt"] == 3  # an integer, as released


@pytest.mark.parametrize("caps", ["clevr_math", "clevr_math=x", "clevr_math=-1", "a=1,a=2"])
def test_caps_of_another_form_are_refused(caps):
    with pytest.raises(UserError, match=r"split\.rl_caps"):
        SplitSettings(rl_caps=caps)
