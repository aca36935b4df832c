"""What constant answers would get: the bar in the held-out table."""

import math

import pytest

from vlaa_jax.policy.heldout import constant_scores
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
