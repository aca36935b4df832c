import asyncio
import math
from dataclasses import replace

import pytest

from vlaa_jax.pipeline.contract import CallFailed
from vlaa_jax.pipeline.ledger import Reply
from vlaa_jax.pipeline.prompts import fill
from vlaa_jax.pipeline.request import Request
from vlaa_jax.pipeline.sample import Drop, Sample
from vlaa_jax.pipeline.steps.caption import make_caption
from vlaa_jax.pipeline.steps.difficulty import make_difficulty
from vlaa_jax.pipeline.steps.distil import make_distil
from vlaa_jax.pipeline.steps.replies import Trace, parse_trace
from vlaa_jax.pipeline.steps.rewrite import edit_gap, length_gap, make_rewrite
from vlaa_jax.pipeline.steps.verify import make_verify, read_verdict
from vlaa_jax.settings.pipeline import (
    CaptionModel,
    CaptionSettings,
    DistilSettings,
    RewriteSettings,
    ServedModel,
    SplitSettings,
    VerifySettings,
)

BASE = Sample("id", "arxivqa", "Which?\nA) x\nB) y", "B", "mcq", "arxivqa/a.png", "00")
TRACED = replace(BASE, thought="I see.", answer="B", distilled="<think>\nI see.\n</think>\n\nB")


def through(step, sample, *replies):
    """What a step makes of a sample when the model says ``replies``; and what it was asked."""
    left, asked = list(replies), []

    async def ask(request):
        asked.append(request)
        reply = left.pop(0)
        return reply if isinstance(reply, Reply) else Reply(reply, finish_reason="stop")

    return asyncio.run(step(sample, ask)), asked


async def unscored(sample, completion):
    return math.nan


@pytest.mark.parametrize(
    ("text", "reasoning", "expected"),
    [
        ("<think>\na\n</think>\n\nb", "", Trace("a", "b")),
        ("a</think>b", "", Trace("a", "b")),  # the opening tag was part of the prompt
        ("b", "a", Trace("a", "b")),
        ("<think>a</think>b", "a", Trace("a", "b")),  # in both places
        ("<think>a</think><answer> b </answer>", "", Trace("a", "b")),
        ("<answer>b</answer>", "a", Trace("a", "b")),
        ("b", "", "no think block"),
        ("<think>a", "", "no think block"),
        ("<think></think>b", "", "thought empty"),
        ("<think>a</think> ", "", "answer empty"),
        ("<think>a</think>b</think>c", "", "tags in the wrong place"),
        ("<think>a<think>b</think>c", "", "tags in the wrong place"),
        ("<think>a</think><answer>b</answer><answer>c</answer>", "", "tags in the wrong place"),
        ("<think>a <answer>b</answer></think>c", "", "tags in the wrong place"),
    ],
)
def test_a_trace_is_taken_apart_or_refused(text, reasoning, expected):
    assert parse_trace(text, reasoning) == expected


def test_the_caption_prompt_holds_the_context_and_the_image():
    sample = replace(BASE, context="Two lines cross.")
    settings = CaptionSettings(CaptionModel("http://a", "eye"))
    result, (asked,) = through(make_caption(settings), sample, " A plot. ")
    assert "Two lines cross." in asked.text and "$" not in asked.text
    assert (asked.image, asked.digest) == ("arxivqa/a.png", "00")
    assert (result.caption, result.caption_model) == ("A plot.", "eye")


@pytest.mark.parametrize(
    "sample",
    [
        replace(BASE, caption="own"),
        replace(BASE, source="math_puma"),
        replace(BASE, uses=("rl",)),
    ],
)
def test_no_caption_is_asked_where_none_is_wanted(sample):
    assert through(make_caption(CaptionSettings()), sample) == (sample, [])


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply("A long", finish_reason="length"), "reply cut at max_tokens"),
        (Reply("No", finish_reason="content_filter"), "refused by the model"),
        (Reply("  "), "reply empty"),
    ],
)
def test_useless_replies_drop_the_sample_with_a_reason(reply, reason):
    result, _ = through(make_caption(CaptionSettings()), BASE, reply)
    assert result == Drop("caption", reason)


def test_distilling_reads_the_caption_and_what_the_source_knows():
    sample = replace(BASE, caption="A plot.", context="$question")
    result, (asked,) = through(make_distil(DistilSettings()), sample, Reply("B", "I see."))
    assert "A plot.\n\n$question" in asked.text  # a value that looks like a name is left alone
    assert asked.text.count(BASE.question) == 1 and not asked.image
    assert (result.thought, result.answer) == ("I see.", "B")
    assert result.distilled == "<think>\nI see.\n</think>\n\nB"


def test_distilling_keeps_the_sources_own_trace_and_needs_something_to_read():
    own = replace(BASE, thought="t", answer="a")
    assert through(make_distil(DistilSettings()), own) == (own, [])
    result, _ = through(make_distil(DistilSettings()), BASE)
    assert result == Drop("distil", "nothing is known of the image")


def test_the_two_gaps_disagree_as_they_should():
    before = "the caption says two cats"
    assert length_gap(before, "the image shows two cats") == 0
    assert edit_gap(before, "the image shows two cats") == 2
    assert length_gap(before, "two cats") == edit_gap(before, "two cats") == 3


def padded(words):
    return f"<think>\nI see. {'more ' * words}\n</think>\n\nB"


@pytest.mark.parametrize(("words", "kept"), [(0, True), (15, True), (16, False), (40, False)])
def test_the_rewrite_filter_is_more_than_fifteen_words(words, kept):
    result, (asked,) = through(make_rewrite(RewriteSettings()), TRACED, padded(words))
    assert TRACED.distilled in asked.text
    assert isinstance(result, Sample) is kept
    if not kept:
        assert result.reason == "length gap over 15 words" and result.detail == f"{words} words"


def test_the_filter_by_edits_sees_exchanged_words():
    trace = "I go " + " ".join(f"w{i}" for i in range(20))
    sample = replace(TRACED, thought=trace)
    other = f"<think>\n{trace.replace('w', 'v')}\n</think>\n\nB"
    assert isinstance(through(make_rewrite(RewriteSettings()), sample, other)[0], Sample)
    by_edits = make_rewrite(RewriteSettings(gap="edit"))
    assert through(by_edits, sample, other)[0].reason == "edit gap over 15 words"


def test_a_rewrite_that_lost_its_think_block_is_dropped():
    result, _ = through(make_rewrite(RewriteSettings()), TRACED, "I see. B")
    assert result == Drop("rewrite", "no think block")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Yes", True),
        ("yes.", True),
        ("**No**", False),
        ('"No."', False),
        ("Answer: Yes", True),
        ("Yes or no?", None),
        ("I think so", None),
        ("", None),
        ("Yesterday", None),
        ("nothing", None),
    ],
)
def test_a_verdict_is_yes_or_no_and_nothing_else(text, verdict):
    assert read_verdict(text) is verdict


def test_the_judge_sees_gold_and_answer_only():
    result, (asked,) = through(make_verify(VerifySettings(), unscored), TRACED, "Yes")
    assert result.verdict == "judge"
    assert "I see." not in asked.text and "Which?" not in asked.text
    assert "Reference answer:\nB\n\nAnswer:\nB\n" in asked.text
    result, _ = through(make_verify(VerifySettings(), unscored), TRACED, "No")
    assert result == Drop("verify", "answer wrong", "B")


@pytest.mark.parametrize(
    ("verifier_type", "gold", "answer", "right"),
    [
        ("mcq", "B", "B", True),
        ("mcq", "B", "A", False),
        ("digit", "3", "3", True),
        ("digit", "3", "4", False),
        ("math", "$x+1$", "$1+x$", True),
        ("math", "$x+1$", "$x-1$", False),
    ],
)
def test_the_verifier_decides_where_golds_can_be_checked(
    scorer, verifier_type, gold, answer, right
):
    sample = replace(TRACED, verifier_type=verifier_type, gt=gold, answer=answer)
    step = make_verify(VerifySettings(how="verifier"), scorer)
    result, asked = through(step, sample)
    assert not asked
    assert (result.verdict == "verifier") if right else (result.reason == "answer wrong")
    auto = make_verify(VerifySettings(how="auto"), scorer)
    result, asked = through(auto, sample, "Yes")
    assert (result.verdict, len(asked)) == (("verifier", 0) if right else ("judge", 1))


def test_the_verifier_leaves_open_answers_to_the_judge(scorer):
    sample = replace(TRACED, verifier_type="open_ended", gt="a dog", answer="A dog")
    result, asked = through(make_verify(VerifySettings(how="verifier"), scorer), sample, "Yes")
    assert (result.verdict, len(asked)) == ("judge", 1)


def test_pass_rate_is_the_mean_over_several_answers(scorer):
    step = make_difficulty(SplitSettings(rule="pass_rate", samples=4), scorer)
    said = ["<answer>B</answer>", "<answer>A</answer>", "B", "<think>x</think><answer>B</answer>"]
    result, asked = through(step, TRACED, *said)
    assert result.difficulty == {"pass_rate": 0.5, "pass_rate_n": 4.0}
    assert sorted(request.salt for request in asked) == [0, 1, 2, 3]
    assert all(request.image and request.system for request in asked)


def test_a_failed_try_fails_the_pass_rate_when_all_tries_are_through(scorer):
    step = make_difficulty(SplitSettings(rule="pass_rate", samples=3), scorer)
    through_ = []

    async def ask(request):
        if request.salt == 0:
            raise CallFailed("difficulty", "server", "HTTP 500")
        await asyncio.sleep(0.01)
        through_.append(request.salt)
        return Reply("B")

    with pytest.raises(CallFailed):
        asyncio.run(step(TRACED, ask))
    assert sorted(through_) == [1, 2]  # nobody is left behind, asking a client that is closed


def test_tries_of_one_question_differ_in_what_is_sent(tmp_path):
    model = ServedModel("http://a", "m")
    bodies = [
        Request("difficulty", "id", "text", salt=salt).body(model, tmp_path) for salt in (0, 1, 2)
    ]
    assert bodies[0] != bodies[1] != bodies[2] and "seed" not in bodies[0]


def test_a_caption_that_was_only_thought_is_no_caption():
    settings = CaptionSettings(CaptionModel("http://a", "eye"))
    result, _ = through(make_caption(settings), BASE, Reply("", "I see a plot.", "stop"))
    assert result == Drop("caption", "reply empty")


def test_a_pass_rate_that_cannot_be_scored_is_no_zero(scorer):
    step = make_difficulty(SplitSettings(rule="pass_rate", samples=2), scorer)
    sample = replace(TRACED, verifier_type="open_ended")
    assert through(step, sample, "x", "y")[0].difficulty == {"pass_rate_n": 0.0}


def test_perplexity_is_that_of_the_target_after_the_question():
    step = make_difficulty(SplitSettings(rule="perplexity"), unscored)
    result, (asked,) = through(step, TRACED, Reply("", value=math.log(7.0)))
    assert result.difficulty["perplexity"] == pytest.approx(7.0)
    assert asked.prefix.startswith(TRACED.question) and asked.text == TRACED.target
    body = {"text_offset": [0, 3, 5, 9], "token_logprobs": [None, -9.0, -1.0, -3.0]}
    read = replace(asked, prefix="12345").read({"choices": [{"logprobs": body}]})
    assert read.value == 2.0  # the mean of 1 and 3; what begins in the prefix is not counted


def test_filling_leaves_values_and_unknown_names_alone():
    assert fill("$text costs $5, $other", text="$other") == "$other costs $5, $other"
