"""The chat judge and the reward head: one grade or one reason for each answer."""

import json
import math

import pytest

from misbehaving_server import MisbehavingServer
from open_ended_cases import expected_reward, goodness, requests_for, settings
from vlaa_jax.rewards.chat_judge import read_grade
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.rewards.open_ended import AnswerItem, AnswerScorer, Judged, RememberedScores
from vlaa_jax.schema import ScoreRequest


def judge_reply(request):
    material = json.loads(request["messages"][1]["content"][-1]["text"])
    grade = min(10, len(material["answer"]))
    return {"choices": [{"message": {"content": json.dumps({"score": grade})}}]}


def test_the_judge_grades_both_apart_with_the_rubric_and_data_as_json():
    asked = [ScoreRequest("open_ended", "four", "<answer>sixsixs</answer>", question='"}Q')]
    with (
        MisbehavingServer(judge_reply, [500, "close"]) as server,
        MixedReward(settings(server, open_ended="chat_judge", endpoint_model="m")) as mixed,
    ):
        (score,) = mixed.score(asked)
        bodies = [body for _, _, body in server.requests]
    assert score.reward == pytest.approx(1 - math.exp(-0.2 * (7 - 4)))
    assert all("0 to 10" in body["messages"][0]["content"] for body in bodies)
    assert all(body["temperature"] == 0 for body in bodies)
    texts = [json.loads(body["messages"][1]["content"][-1]["text"]) for body in bodies]
    assert {text["answer"] for text in texts} == {"four", "sixsixs"}
    assert all(text["question"] == '"}Q' for text in texts)


@pytest.mark.parametrize("said", ['{"score": 7}', ' {"score": 7}\n', '```json\n{"score": 7}\n```'])
def test_grades_that_are_read(said):
    assert read_grade(said) == 7.0


@pytest.mark.parametrize(
    "said",
    [
        "", "7", "7/10", "The score is 7", '{"score": 7.5}', '{"score": "7"}', '{"score": 11}',
        '{"score": -1}', '{"score": true}', '{"grade": 7}', '{"score": 7} {"score": 9}',
        '{"score": NaN}', "{", '["score", 7]', 'I give {"score": 7}', None, 7, ['{"score": 7}'],
    ],
)  # fmt: skip
def test_grades_that_are_not(said):
    with pytest.raises(ValueError):
        read_grade(said)


def test_a_chatty_judge_is_a_failure_never_a_zero():
    def reply(request):
        return {"choices": [{"message": {"content": "I would say seven."}}]}

    with (
        MisbehavingServer(reply) as server,
        MixedReward(settings(server, open_ended="chat_judge", endpoint_model="m")) as mixed,
    ):
        (score,) = mixed.score(requests_for(1, gold="bluer"))
    assert score.failed
    assert "not a grade" in score.error


@pytest.mark.parametrize(
    "reply",
    [
        {"choices": [{"message": {"content": None}}]},  # a reasoning judge that ran out of tokens
        {"choices": [{"message": None}]},
        {"choices": []},
        {"choices": [{"message": {"content": [{"text": "7"}]}}]},
        {"error": "no"},
        [],
        None,
    ],
)
def test_an_odd_reply_of_the_judge_fails_its_own_item(reply):
    def behave(handler, request):
        odd = json.loads(request["messages"][1]["content"][-1]["text"])["answer"] == "blue blue"
        handler.send(200, reply if odd else judge_reply(request))

    with (
        MisbehavingServer(judge_reply, [behave] * 50) as server,
        MixedReward(settings(server, open_ended="chat_judge", endpoint_model="m")) as mixed,
    ):
        scores = mixed.score(requests_for(4))
        asked = [
            json.loads(body["messages"][1]["content"][-1]["text"])["answer"]
            for _, _, body in server.requests
        ]
    assert [score.failed for score in scores] == [False, True, False, False]
    assert scores[1].error.startswith("chat_judge: malformed: ")
    assert asked.count("blue blue") == 2  # once more, as for any malformed reply
    assert len(asked) == 5


def test_the_judge_may_be_given_more_tokens():
    with (
        MisbehavingServer(judge_reply) as server,
        MixedReward(
            settings(server, open_ended="chat_judge", endpoint_model="m", endpoint_max_tokens=900)
        ) as mixed,
    ):
        mixed.score(requests_for(1))
        assert {body["max_tokens"] for _, _, body in server.requests} == {900}


@pytest.mark.parametrize("backend", ["chat_judge", "score_endpoint"])
@pytest.mark.parametrize("status", [200, 401])
def test_no_score_carries_the_key_that_a_server_sends_back(monkeypatch, backend, status):
    key = "sk-SECRET-123456"
    monkeypatch.setenv("A_TEST_KEY", key)

    def behave(handler, request):
        said = f"{handler.headers['authorization']}\x1b[2J {' '.join(key)}"
        items = [{"id": item["id"], "error": said} for item in request.get("items", [])]
        grade = {"choices": [{"message": {"content": said}}]}
        handler.send(status, {"error": said, **({"results": items} if items else grade)})

    with MisbehavingServer(judge_reply, [behave] * 50) as server:
        chosen = settings(
            server, open_ended=backend, endpoint_model="m", endpoint_key_env="A_TEST_KEY"
        )
        with MixedReward(chosen) as mixed:
            scores = mixed.score(requests_for(2))
    assert all(score.failed for score in scores)
    for score in scores:
        assert "SECRET" not in repr(score) and "S E C" not in repr(score)
        assert "[key]" in score.error and score.error.isprintable()


class LengthHead(AnswerScorer):
    name, identity = "reward_head", "length"

    def __init__(self, wrong=None):
        self.asked = []
        self.wrong = wrong

    def score_answers(self, items):
        self.asked.extend(item.answer for item in items)
        if self.wrong == "count":
            return [Judged(1.0)]
        if self.wrong == "raise":
            raise RuntimeError("out of device memory")
        if self.wrong == "say":
            return [Judged(error="3 tokens too long") for item in items]
        return [Judged(float("nan") if item.answer == self.wrong else goodness(item.answer))
                for item in items]  # fmt: skip


def test_a_reward_head_in_this_process():
    head = LengthHead()
    asked = requests_for(5)
    with MixedReward(open_ended=head) as mixed:
        scores = mixed.score(asked)
        mixed.score(asked)
    assert len(head.asked) == len(set(head.asked)) == 5
    assert scores[2].reward == pytest.approx(expected_reward("blue blue blue", "blue"))


@pytest.mark.parametrize(
    ("wrong", "failed", "reason"),
    [
        ("count", 5, "scores came back"),
        ("raise", 5, "out of device memory"),
        ("blue blue", 1, "the score is nan"),
        ("blue", 5, "the score is nan"),
        ("say", 5, "3 tokens too long"),
    ],
)
def test_a_failing_head_fails_what_it_touches(wrong, failed, reason):
    with MixedReward(open_ended=LengthHead(wrong)) as mixed:
        scores = mixed.score(requests_for(5))
    assert sum(score.failed for score in scores) == failed
    assert all(score.error.startswith("reward_head: ") for score in scores if score.failed)
    assert all(reason in score.error for score in scores if score.failed)


def test_the_cache_forgets_the_least_recently_used():
    head = LengthHead()
    scores = RememberedScores(head, 2)
    texts = [AnswerItem("q", answer) for answer in ("a", "b", "c")]
    for text in (texts[0], texts[1], texts[0], texts[2], texts[0], texts[1]):
        scores.judge([text])
    assert head.asked == ["a", "b", "c", "b"]
