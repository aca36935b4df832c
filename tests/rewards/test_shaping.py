import pytest

from vlaa_jax.rewards.mixed import MixedReward, RewardSettings
from vlaa_jax.rewards.shaping import overlong_penalty, repetition_penalty
from vlaa_jax.schema import ScoreRequest, UserError

RIGHT = ScoreRequest("digit", "4", "<think>t</think><answer>4</answer>")
WRONG = ScoreRequest("digit", "4", "<think>t</think><answer>5</answer>")
LOOSE = ScoreRequest("digit", "4", "<answer>4</answer>")
EMPTY = ScoreRequest("digit", "4", "four")
BROKEN = ScoreRequest("digit", "many", "<answer>4</answer>")


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, 0.0), (60, 0.0), (61, -0.025), (80, -0.5), (90, -0.75), (100, -1.0), (101, -1.0),
     (10**6, -1.0)],
)  # fmt: skip
def test_overlong_is_a_ramp_with_a_floor(length, expected):
    assert overlong_penalty(length, max_length=100, buffer=40) == pytest.approx(expected)


@pytest.mark.parametrize("buffer", [0, -1, 101])
def test_a_senseless_buffer_is_refused(buffer):
    with pytest.raises(ValueError, match="buffer"):
        overlong_penalty(5, 100, buffer)


@pytest.mark.parametrize(
    ("tokens", "ngram", "expected"),
    [
        ([], 2, 0.0),
        ([7], 2, 0.0),
        ([7, 8, 9], 2, 0.0),
        ([7, 7, 7, 7], 1, -0.75),
        ([7, 8, 7, 8, 7], 2, -0.5),  # 4 bigrams, 2 distinct
        ([7, 8, 9, 7, 8, 9, 7], 3, -0.4),  # 5 trigrams, 3 distinct
        (list("ababa"), 2, -0.5),
    ],
)
def test_repetition(tokens, ngram, expected):
    assert repetition_penalty(tokens, ngram) == pytest.approx(expected)


def shaped(requests, settings, **given):
    with MixedReward(RewardSettings(**settings)) as mixed:
        return mixed.score(requests, **given)


def test_everything_is_off_by_default():
    for score in shaped([RIGHT, WRONG, LOOSE, EMPTY], {}, lengths=[1, 2, 3, 4], max_length=4):
        assert score.reward == score.parts["raw"]
        assert set(score.parts) == {"raw", "format"}


def test_the_format_term_is_a_share_apart_from_the_raw_reward():
    scores = shaped([RIGHT, WRONG, LOOSE, EMPTY], {"format_weight": 0.1})
    assert [score.reward for score in scores] == pytest.approx([1.0, 0.1, 0.9, 0.0])
    assert [score.parts["raw"] for score in scores] == [1.0, 0.0, 1.0, 0.0]
    assert [score.parts["structure"] for score in scores] == [1.0, 1.0, 0.0, 0.0]
    assert [score.parts["format"] for score in scores] == [1.0, 1.0, 1.0, 0.0]


def test_the_overlong_penalty_leaves_the_raw_reward_alone():
    settings = {"overlong_weight": 0.5, "overlong_buffer": 10}
    scores = shaped([RIGHT] * 3 + [WRONG], settings, lengths=[80, 95, 200, 100], max_length=100)
    assert [score.parts["overlong"] for score in scores] == pytest.approx([0, -0.5, -1, -1])
    assert [score.reward for score in scores] == pytest.approx([1.0, 0.75, 0.5, -0.5])
    assert [score.parts["raw"] for score in scores] == [1, 1, 1, 0]


def test_the_repetition_penalty_counts_tokens_or_else_words():
    settings = {"repetition_weight": 1.0, "repetition_ngram": 1}
    (by_token,) = shaped([RIGHT], settings, tokens=[[5, 5, 5, 5]])
    assert by_token.parts["repetition"] == -0.75
    (by_word,) = shaped([ScoreRequest("digit", "4", "a a a <answer>4</answer>")], settings)
    assert by_word.parts["repetition"] == -0.5
    assert by_word.reward == 0.5


def test_shaping_never_hides_a_failure():
    settings = {"format_weight": 0.5, "repetition_weight": 1.0}
    (score,) = shaped([BROKEN], settings)
    assert score.failed
    assert score.error


def test_an_option_without_what_it_needs_is_a_user_error():
    with pytest.raises(UserError, match="max_length"):
        shaped([RIGHT], {"overlong_weight": 1.0})
    with pytest.raises(ValueError, match="1 requests but 2 lengths"):
        shaped([RIGHT], {"overlong_weight": 1.0}, lengths=[1, 2], max_length=5)
