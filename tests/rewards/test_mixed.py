import math
import subprocess
import sys
import threading

import pytest

from vlaa_jax.rewards.mixed import MixedReward, RewardSettings, check_failed, reward_metrics
from vlaa_jax.rewards.open_ended import AnswerScorer, Judged
from vlaa_jax.rewards.verifier import RuleVerifier
from vlaa_jax.schema import Score, ScoreRequest, UserError

GOLDS = {
    "digit": ("4", "4", "5"),
    "mcq": ("B", "(B)", "C"),
    "math": ("2\\sqrt{5}", "\\sqrt{20}", "\\sqrt{21}"),
    "iou": ("[0.1, 0.1, 0.5, 0.5]", "[0.1, 0.1, 0.5, 0.5]", "[0.6, 0.6, 0.9, 0.9]"),
    "open_ended": ("a red car", "A red car.", "a blue bus"),
}


def said(answer):
    return f"<think>hm</think><answer>{answer}</answer>"


@pytest.mark.parametrize("verifier_type", GOLDS)
def test_each_type_knows_right_from_wrong_from_unanswered(mixed, verifier_type):
    gold, right, wrong = GOLDS[verifier_type]
    outputs = [said(right), said(wrong), right, "", said(right) + said(right), "<answer>" + right]
    scores = mixed.score([ScoreRequest(verifier_type, gold, output) for output in outputs])
    assert scores[0].reward > 0.85
    assert [score.reward for score in scores[1:]] == [0.0] * 5
    assert [score.extracted for score in scores] == [right, wrong] + [None] * 4
    assert [score.parts["format"] for score in scores] == [1.0, 1.0] + [0.0] * 4
    assert not any(score.failed for score in scores)


def test_order_is_kept_over_a_mixture(mixed):
    requests = []
    for i in range(60):
        name = list(GOLDS)[i % 5]
        gold, right, wrong = GOLDS[name]
        requests.append(ScoreRequest(name, gold, said(right if i % 3 else wrong), id=str(i)))
    scores = mixed.score(requests)
    assert [score.verifier_type for score in scores] == [r.verifier_type for r in requests]
    assert [score.reward > 0.5 for score in scores] == [i % 3 != 0 for i in range(60)]


def test_threads_may_share_it(mixed):
    results = {}

    def use(name):
        gold, right, wrong = GOLDS[name]
        requests = [ScoreRequest(name, gold, said(right if i % 2 else wrong)) for i in range(20)]
        results[name] = [score.reward > 0.5 for score in mixed.score(requests)]

    threads = [threading.Thread(target=use, args=(name,)) for name in GOLDS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {name: [i % 2 == 1 for i in range(20)] for name in GOLDS}


BAD_GOLDS = [
    ("digit", "many", "not exactly one number"),
    ("mcq", "A or B", "does not name exactly one option"),
    ("math", "the length", "words, not mathematics"),
    ("iou", "[1, 2, 3]", "holds no box"),
    ("iou", "[0.9, 0.9, 0.1, 0.1]", "inverted"),
    ("open_ended", "  ", "empty"),
    ("poetry", "roses", "is not one of digit, mcq"),
]


@pytest.mark.parametrize(("verifier_type", "gold", "reason"), BAD_GOLDS)
def test_a_bad_gold_is_nan_with_a_reason_and_found_beforehand(mixed, verifier_type, gold, reason):
    request = ScoreRequest(verifier_type, gold, said("4"))
    assert reason in mixed.gold_problems([request])[0]
    (score,) = mixed.score([request])
    assert math.isnan(score.reward)
    assert math.isnan(score.parts["raw"])
    assert reason in score.error


def test_a_gold_box_outside_its_image_is_found_beforehand(mixed):
    gold = "[500, 20, 600, 60]"
    assert mixed.gold_problems([ScoreRequest("iou", gold, "")]) == [None]
    request = ScoreRequest("iou", gold, said("[1, 2, 3, 4]"), image_size=(400, 200))
    (problem,) = mixed.gold_problems([request])
    (score,) = mixed.score([request])
    assert "outside the image" in problem
    assert score.error == problem


def test_good_golds_have_no_problem(mixed):
    requests = [ScoreRequest(name, gold, "") for name, (gold, *_) in GOLDS.items()]
    assert mixed.gold_problems(requests) == [None] * len(GOLDS)


def test_golds_are_put_to_the_parser_when_data_is_built(mixed):
    golds = {"x+1": None, "6": None, "B": None, "\\frac{1}{": "cannot parse", "the side": "words"}
    requests = [ScoreRequest("math", gold, "") for gold in golds]
    requests.append(ScoreRequest("digit", "many", ""))
    problems = mixed.gold_problems(requests)
    for problem, expected in zip(problems, [*golds.values(), "exactly one"], strict=True):
        assert (problem is None) == (expected is None)
        assert expected is None or expected in problem


def test_a_verifier_that_breaks_is_nan_not_zero(mixed, monkeypatch):
    def broken(*arguments):
        raise KeyError("bug")

    rule = RuleVerifier(broken, broken)
    begins = RuleVerifier(lambda request, answer: 1.0, broken)
    begins.begin = broken
    short = RuleVerifier(lambda request, answer: 1.0, broken)
    short.begin = lambda items: lambda: []
    for verifier, reason in ((rule, "KeyError"), (begins, "KeyError"), (short, "0 verdicts")):
        monkeypatch.setitem(mixed._verifiers, "digit", verifier)
        wrong, right = mixed.score(
            [ScoreRequest("digit", "4", said("4")), ScoreRequest("mcq", "B", said("B"))]
        )
        assert wrong.failed
        assert reason in wrong.error
        assert right.reward == 1.0


def test_error_is_set_exactly_when_the_reward_is_nan(mixed):
    requests = [ScoreRequest(t, g, o) for t, g, _ in BAD_GOLDS for o in (said("4"), "no answer")]
    requests += [ScoreRequest(t, GOLDS[t][0], said(a)) for t in GOLDS for a in GOLDS[t]]
    for score in mixed.score(requests):
        assert (score.error is not None) == math.isnan(score.reward) == score.failed


FINE = Score(1.0, "digit", "4", {"raw": 1.0, "format": 1.0})
NONE = Score(0.0, "mcq", None, {"raw": 0.0, "format": 0.0})
TIMED_OUT = Score(math.nan, "math", "9!", {"raw": math.nan, "format": 1.0}, "timed out after 5 s")


def test_too_many_failures_stop_the_run_with_the_reasons():
    check_failed([FINE] * 9 + [TIMED_OUT], 0.1)
    check_failed([], 0.0)
    with pytest.raises(UserError) as caught:
        check_failed([FINE] * 8 + [TIMED_OUT] * 2, 0.1, "step 7")
    assert str(caught.value) == (
        "step 7: 2 of 10 answers could not be scored (math 2), more than rewards.max_failed_frac"
        " = 0.1. Reasons: 2 x timed out after 5 s"
    )
    with pytest.raises(UserError):
        check_failed([TIMED_OUT], 0.0)


def test_metrics_leave_failures_out_of_the_means():
    metrics = reward_metrics([FINE, FINE, NONE, TIMED_OUT])
    assert metrics == {
        "reward/mean": pytest.approx(2 / 3),
        "reward/digit": 1.0,
        "reward/mcq": 0.0,
        "reward/extracted_frac": 0.75,
        "reward/failed_frac": 0.25,
        "reward/failed/math": 1.0,
    }
    assert reward_metrics([]) == {}
    assert "reward/mean" not in reward_metrics([TIMED_OUT])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("open_ended", "oracle"), ("beta", 0), ("beta", math.nan), ("beta", "0.2"),
        ("math_workers", 0), ("math_timeout_s", 0), ("math_timeout_s", math.inf),
        ("max_failed_frac", 1.5), ("format_weight", -0.1), ("answer_box_space", "inches"),
        ("endpoint_concurrency", 0), ("endpoint_max_tokens", 0), ("repetition_ngram", 0),
        ("math_workers", True), ("head_max_pixels", -1), ("head_max_tokens", 0),
    ],
)  # fmt: skip
def test_settings_are_checked_at_the_door(field, value):
    with pytest.raises(UserError, match=rf"rewards\.{field}"):
        RewardSettings(**{field: value})


def test_boxes_answered_in_another_space_are_converted():
    request = ScoreRequest(
        "iou", "[0.25, 0.25, 0.75, 0.75]", said("[50, 25, 150, 75]"), box_space="normalized",
        image_size=(400, 200), resized_size=(200, 100),
    )  # fmt: skip
    with MixedReward(RewardSettings(answer_box_space="resized_pixels")) as mixed:
        assert mixed.score([request])[0].reward == pytest.approx(1.0)
    with MixedReward() as mixed:
        assert mixed.score([request])[0].reward == 0.0


def test_open_ended_answers_wait_for_a_backend_to_be_chosen():
    assert RewardSettings().open_ended == "none"
    requests = [
        ScoreRequest("open_ended", "a red car", output)
        for output in (said("a red car"), "no answer at all")
    ]
    with MixedReward() as mixed:
        asked, unanswered = mixed.score([*requests])
        assert mixed.gold_problems(requests) == [None, None]
    assert math.isnan(asked.reward)
    assert asked.error == "no open-ended backend: choose rewards.open_ended"
    assert (unanswered.reward, unanswered.error) == (0.0, None)


def test_unshaped_scores_need_nothing_that_shaping_needs():
    settings = RewardSettings(format_weight=0.5, overlong_weight=1.0, repetition_weight=1.0)
    requests = [ScoreRequest("digit", "4", "<answer>4</answer>")]
    with MixedReward(settings) as mixed:
        with pytest.raises(UserError, match="overlong_weight"):
            mixed.score(requests)
        (score,) = mixed.score(requests, shaped=False)
    assert score.reward == 1.0
    assert score.parts == {"raw": 1.0, "format": 1.0}


class Head(AnswerScorer):
    name, identity, uses_devices = "reward_head", "constant", True

    def score_answers(self, items):
        return [Judged(1.0)] * len(items)


def test_it_says_whether_scoring_needs_the_devices():
    with MixedReward(open_ended=Head()) as mixed:
        assert mixed.uses_devices
    endpoint = RewardSettings(open_ended="score_endpoint", endpoint_url="http://localhost:1")
    for settings in (RewardSettings(), RewardSettings(open_ended="text_similarity"), endpoint):
        with MixedReward(settings) as mixed:
            assert not mixed.uses_devices


def test_the_room_starts_without_an_array_framework_or_an_http_client():
    code = (
        "import sys, vlaa_jax.rewards.cli; "
        "heavy = ('jax', 'torch', 'numpy', 'sympy', 'mpmath', 'pint', 'httpx'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
