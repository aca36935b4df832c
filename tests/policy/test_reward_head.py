"""The reward head in its room's protocol, on the embedded model."""

from importlib import resources

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from vlaa_jax.models.qwen_vl.hf_config import read_config
from vlaa_jax.parallel.mesh import make_mesh
from vlaa_jax.policy.reward_head import InProcessRewardHead, head_scorer, mixed_reward
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.rewards.open_ended import AnswerItem
from vlaa_jax.schema import ScoreRequest, UserError
from vlaa_jax.settings.rewards import RewardSettings

TINY = resources.files("vlaa_jax") / "assets" / "tiny"


@pytest.fixture(scope="module")
def head_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("head") / "head.safetensors"
    width = read_config(str(TINY)).text.width
    weight = np.random.default_rng(0).normal(size=(1, width)).astype(np.float32)
    save_file({"score.weight": weight}, file)
    return str(file)


@pytest.fixture(scope="module")
def head(head_file):
    return InProcessRewardHead(str(TINY), head_file, make_mesh(), batch=8)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (56, 84), "red").save(path)
    return str(path)


def values(head, items):
    judged = head.score_answers(items)
    assert [said.error for said in judged] == [None] * len(items)
    return [said.score for said in judged]


def test_scores_are_deterministic_and_do_not_depend_on_company(head, picture):
    items = [
        AnswerItem("What colour is it?", "red", (picture,)),
        AnswerItem("What colour is it?", "it is a very dark shade of blue", (picture,)),
        AnswerItem("How many?", "4"),
    ]
    together = values(head, items)
    assert together == values(head, items)
    assert len(set(together)) == 3
    alone = [values(head, [item])[0] for item in items]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_an_item_that_cannot_be_encoded_fails_alone_with_its_reason(head, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    items = [
        AnswerItem("How many?", "4"),
        AnswerItem("How many?", "4<|im_end|>5"),
        AnswerItem("How many?", "4", (str(tmp_path / "missing.png"),)),
        AnswerItem("How many?", "4", (str(tmp_path / "text.png"),)),
        AnswerItem("How many?", "4", ("a\0.png",)),
    ]
    scores = head.score_answers(items)
    assert np.isfinite(scores[0].score)
    reasons = [said.error for said in scores]
    for reason, part in zip(
        reasons[1:], ["<|im_end|>", "missing.png", "text.png", "null"], strict=True
    ):
        assert part in reason
    requests = [
        ScoreRequest("open_ended", "4", "<answer>5</answer>", question="?", images=items[3].images)
    ]
    with MixedReward(open_ended=head) as mixed:
        (score,) = mixed.score(requests)
    assert score.error == f"reward_head: {reasons[3]}"


def test_the_settings_limit_pixels_and_tokens(head_file, picture):
    chosen = {"open_ended": "reward_head", "head_checkpoint": str(TINY), "head_file": head_file}
    item = AnswerItem("What colour is it?", "it is red", (picture,))

    def judged(**limits):
        scorer = head_scorer(RewardSettings(**chosen, **limits), make_mesh(), "float32")
        return scorer.score_answers([item])[0]

    free, small = judged(), judged(head_max_pixels=56 * 56)
    assert free.error is small.error is None
    assert free.score != small.score
    assert "tokens" in judged(head_max_tokens=8).error


def test_open_ended_rewards_come_from_the_head(head, picture):
    answers = ["a red square", "blue", "red"]
    requests = [
        ScoreRequest("open_ended", "red", f"<answer>{a}</answer>", question="?", images=(picture,))
        for a in answers
    ]
    with MixedReward(open_ended=head) as mixed:
        scores = mixed.score(requests)
    direct = values(head, [AnswerItem("?", a, (picture,)) for a in answers])
    for score, value in zip(scores, direct, strict=True):
        gap = value - direct[2]
        assert score.error is None
        assert score.reward == pytest.approx(max(0.0, 1 - np.exp(-0.2 * gap)), abs=1e-4)


def test_the_settings_choose_the_head(tmp_path):
    width = read_config(str(TINY)).text.width
    weight = np.random.default_rng(1).normal(size=(1, width)).astype(np.float32)
    save_file({"score.weight": weight}, tmp_path / "head.safetensors")
    rewards = RewardSettings(
        open_ended="reward_head",
        head_checkpoint=str(TINY),
        head_file=str(tmp_path / "head.safetensors"),
        head_batch=3,
    )
    item, reference = AnswerItem("How many?", "a very long answer"), AnswerItem("How many?", "4")
    head = InProcessRewardHead(TINY, tmp_path / "head.safetensors", make_mesh(), batch=3)
    gap = np.subtract(*values(head, [item, reference]))
    request = ScoreRequest(
        "open_ended", reference.answer, f"<answer>{item.answer}</answer>", question="How many?"
    )
    swapped = ScoreRequest(
        "open_ended", item.answer, f"<answer>{reference.answer}</answer>", question="How many?"
    )
    with MixedReward(rewards, head_scorer(rewards, make_mesh(), "float32")) as mixed:
        scores = mixed.score([request, swapped])
    expected = [max(0.0, 1 - np.exp(-0.2 * sign * gap)) for sign in (1, -1)]
    assert max(expected) > 0.01
    np.testing.assert_allclose([score.reward for score in scores], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head_file": "x"}, "set rewards.head_checkpoint"),
        ({"head_checkpoint": str(TINY)}, "set rewards.head_file"),
        ({"head_checkpoint": str(TINY), "head_file": "no/such"}, "there is no file no/such"),
        ({"head_checkpoint": "no such", "head_file": "x"}, "no such does not exist"),
    ],
)
def test_a_head_that_cannot_be_loaded_is_a_user_error(fields, message):
    rewards = RewardSettings(open_ended="reward_head", **fields)
    with pytest.raises(UserError, match=message):
        head_scorer(rewards, make_mesh(), "float32")


def test_native_boxes_are_those_of_the_checkpoints_family():
    response = "<think>t</think><answer>[50, 25, 150, 75]</answer>"
    request = ScoreRequest(
        "iou", "[0.25, 0.25, 0.75, 0.75]", response, box_space="normalized",
        image_size=(400, 200), resized_size=(200, 100),
    )  # fmt: skip
    settings = RewardSettings(answer_box_space="native")
    with mixed_reward(settings, make_mesh(), "float32", "embedded") as reward:
        assert reward.score([request])[0].reward == pytest.approx(1.0)
    with pytest.raises(UserError, match=r"rewards\.answer_box_space: there is no model here"):
        MixedReward(settings)
