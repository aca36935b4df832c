"""What constant answers would get: the bar in the held-out table."""

import math

import pytest

from vlaa_jax.policy.heldout import constant_scores, free_types
from vlaa_jax.rewards.mixed import MixedReward, RewardSettings
from vlaa_jax.schema import Record, ScoreRequest

COUNTS = [
    Record(str(i), "How many?", (), gt=gold, verifier_type="digit") for i, gold in enumerate("3345")
]
SHAPED = RewardSettings(format_weight=0.5, overlong_weight=1.0, repetition_weight=1.0)


def sizeless(record, response):
    return ScoreRequest(record.verifier_type, record.gt, response, box_space=record.box_space)


@pytest.mark.parametrize("settings", [RewardSettings(), SHAPED])
def test_the_bar_is_the_most_frequent_answer_and_unshaped(settings):
    with MixedReward(settings) as reward:
        assert constant_scores(COUNTS, reward, sizeless) == {"mean": 0.5, "digit": 0.5}


def test_requests_may_bring_what_a_record_lacks():
    record = Record("a", "Where?", (), gt="[0.25, 0.25, 0.75, 0.75]", verifier_type="iou",
                    box_space="normalized_square")  # fmt: skip

    def request(record, response):
        return ScoreRequest(
            "iou", record.gt, response, box_space=record.box_space, image_size=(400, 200)
        )

    with MixedReward(RewardSettings(answer_box_space="normalized")) as reward:
        # The picture fills the middle half of its square: the gold is the middle half of the
        # picture, and moving sides finds it from the gold's own figures.
        assert constant_scores([record], reward, request)["iou"] == pytest.approx(1.0)
        assert math.isnan(constant_scores([record], reward, sizeless)["iou"])


@pytest.mark.parametrize("gold", ["[10, 20, 300, 400]", "[[0.1, 0.1, 0.2, 0.2], [0.3, 0.3, 1, 1]]"])
def test_boxes_that_are_no_place_to_start_from_are_tried_as_they_are(gold):
    spaces = "original_pixels" if gold.startswith("[1") else "normalized"
    records = [Record("a", "Where?", (), gt=gold, verifier_type="iou", box_space=spaces)]

    def request(record, response):
        size = {"image_size": (500, 500)}
        return ScoreRequest("iou", record.gt, response, box_space=record.box_space, **size)

    with MixedReward(RewardSettings()) as reward:
        assert constant_scores(records, reward, request)["iou"] == pytest.approx(1.0)


def test_no_judge_is_asked_for_the_bar():
    assert "open_ended" in free_types("text_similarity")
    assert free_types("chat_judge") == free_types("none") == {"digit", "mcq", "math", "iou"}
