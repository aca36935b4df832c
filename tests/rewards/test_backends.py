"""The score endpoint against a server that misbehaves: nothing becomes 0, nothing is lost."""

import time
from collections import Counter

import pytest

from misbehaving_server import MisbehavingServer
from open_ended_cases import expected_reward, goodness, requests_for, score_reply, settings
from vlaa_jax.rewards.mixed import MixedReward, RewardSettings
from vlaa_jax.rewards.score_endpoint import read_results
from vlaa_jax.schema import ScoreRequest, UserError

PNG = b"\x89PNG\r\n\x1a\n0000"


def check(scores, requests):
    """Each score is right or failed with a reason; returns how many failed."""
    assert len(scores) == len(requests)
    for score, request in zip(scores, requests, strict=True):
        answer = request.response.split("<answer>")[1].removesuffix("</answer>").strip()
        assert score.extracted == answer
        if score.failed:
            assert score.error.startswith("score_endpoint: ")
        else:
            assert score.reward == pytest.approx(expected_reward(answer, request.gt))
            assert score.parts["response_score"] == goodness(answer)
    return sum(score.failed for score in scores)


@pytest.mark.parametrize(
    ("script", "requests"),
    [
        ([], 4),
        (["slow"] * 3, 4),
        ([500, 503, 429], 7),
        (["close", "reset", "half", "noise"], 8),
        (["html", "slow", 500, "close"], 7),
        (["half", "half", "half"], 7),
        (["close", 500, "half", 500], 8),
        ([("say", b'{"results": []}')], 5),
        ([("say", b'{"results": [{"id": "0", "score": NaN}]}')], 5),
    ],
)
def test_passing_troubles_change_nothing(script, requests):
    asked = requests_for(14)
    with MisbehavingServer(score_reply, script) as server, MixedReward(settings(server)) as mixed:
        assert check(mixed.score(asked), asked) == 0
        # 14 texts in batches of 4; each trouble costs one request more, of a batch that has no
        # scores yet, and no text is sent in two different requests.
        assert len(server.requests) == requests
        keys = Counter(headers["idempotency-key"] for _, headers, _ in server.requests)
        assert len(keys) == 4
        assert sum(keys.values()) == 4 + sum(trouble != "slow" for trouble in script)
        firsts = {headers["idempotency-key"]: body for _, headers, body in server.requests}
        sent = Counter(item["answer"] for body in firsts.values() for item in body["items"])
        assert set(sent.values()) == {1}
        assert len(sent) == 14
        # Once answered, an item is never asked again.
        assert sum(server.times_answered().values()) == 14
        assert set(server.times_answered().values()) == {1}


def test_no_text_is_asked_twice_and_the_reference_once():
    asked = requests_for(9) + requests_for(9)
    with MisbehavingServer(score_reply) as server, MixedReward(settings(server)) as mixed:
        assert check(mixed.score(asked), asked) == 0
        assert check(mixed.score(asked), asked) == 0
        counts = server.times_asked()
    # "blue" is the reference and, trimmed, one of the answers.
    assert len(counts) == 9
    assert set(counts.values()) == {1}


@pytest.mark.parametrize(
    "bad",
    [
        {"results": []},
        {"results": [{"id": "0", "score": 1.0}]},
        {"results": "no"},
        {"scores": [1.0, 2.0]},
        [1.0, 2.0],
        None,
    ],
)
def test_a_lasting_wrong_shape_is_a_failure_of_all_and_never_a_zero(bad):
    asked = requests_for(6)
    # A one-item reply would be right for one item; ids beyond it make that impossible here.
    with (
        MisbehavingServer(lambda request: bad) as server,
        MixedReward(settings(server, endpoint_batch=2)) as mixed,
    ):
        scores = mixed.score(asked)
    assert all(score.failed or score.parts["response_score"] == 1.0 for score in scores)
    assert sum(score.failed for score in scores) >= 5


@pytest.mark.parametrize(
    "bad", ["NaN", "Infinity", "-Infinity", "null", '"1.0"', "true", "[1]", "9" * 400]
)
def test_a_score_that_is_no_finite_number_fails_its_item_alone(bad):
    def reply(request):
        return score_reply(request)

    def poison(request):
        results = ", ".join(
            f'{{"id": "{i["id"]}", "score": '
            f"{bad if i['answer'].count('blue') == 3 else goodness(i['answer'])}}}"
            for i in request["items"]
        )
        return ("raw", f'{{"results": [{results}]}}')

    def behave(handler, request):
        handler.send_raw(200, poison(request)[1].encode())

    asked = requests_for(8)
    with (
        MisbehavingServer(reply, [behave] * 100) as server,
        MixedReward(settings(server)) as mixed,
    ):
        scores = mixed.score(asked)
        assert check(scores, asked) == 1
        assert scores[2].failed


def poisoned(status):
    """A behaviour that answers with a status whenever the five-fold blue is in the batch."""

    def behave(handler, request):
        if any(item["answer"].count("blue") == 5 for item in request["items"]):
            handler.send(status, {"error": "too blue"})
        else:
            handler.send(200, score_reply(request))

    return behave


def test_a_refused_item_takes_no_other_with_it():
    asked = requests_for(8)
    with (
        MisbehavingServer(score_reply, [poisoned(422)] * 100) as server,
        MixedReward(settings(server)) as mixed,
    ):
        scores = mixed.score(asked)
        assert check(scores, asked) == 1
        assert "422" in scores[4].error


def test_an_item_that_breaks_the_server_takes_no_other_with_it():
    asked = requests_for(8)
    with (
        MisbehavingServer(score_reply, [poisoned(500)] * 100) as server,
        MixedReward(settings(server, endpoint_batch=8)) as mixed,
    ):
        scores = mixed.score(asked)
        sizes = [len(body["items"]) for _, _, body in server.requests]
        counts = server.times_asked()
    assert check(scores, asked) == 1
    assert "HTTP 500" in scores[4].error
    # The whole batch with its three retries, each half once, the last one alone with retries again.
    assert sizes == [8] * 4 + [4, 4, 2, 2] + [1] * 5
    assert max(n for (_, answer), n in counts.items() if answer.count("blue") != 5) <= 7


def test_a_dead_server_is_not_asked_for_ever():
    asked = requests_for(8)
    with (
        MisbehavingServer(score_reply, [500] * 999) as server,
        MixedReward(settings(server, endpoint_batch=8, endpoint_retries=1)) as mixed,
    ):
        assert check(mixed.score(asked), asked) == 8
        assert len(server.requests) == 2 + 2 + 4 + 8 * 2


def test_one_deadline_covers_a_batch_and_its_parts():
    """Each request takes 0.15 s; with a new deadline for each half all 15 would be made."""

    def behave(handler, request):
        time.sleep(0.15)
        handler.send(422, {"error": "no"})

    asked = requests_for(8)
    with (
        MisbehavingServer(score_reply, [behave] * 99) as server,
        MixedReward(settings(server, endpoint_batch=8, endpoint_timeout_s=0.5)) as mixed,
    ):
        scores = mixed.score(asked)
        count = len(server.requests)
    assert check(scores, asked) == 8
    assert count <= 4  # of 15: a fourth begins at 0.45 s at the earliest
    assert any("no reply within 0.5 s" in score.error for score in scores)


def test_parts_of_a_batch_stay_within_the_concurrency():
    asked = requests_for(16)
    with (
        MisbehavingServer(score_reply, [422] * 2 + ["slow"] * 30) as server,
        MixedReward(settings(server, endpoint_batch=4, endpoint_concurrency=2)) as mixed,
    ):
        assert check(mixed.score(asked), asked) == 0
        assert len(server.requests) == 4 + 4
        assert server.most_in_flight == 2


def test_waiting_for_a_turn_does_not_count():
    asked = requests_for(20)
    with (
        MisbehavingServer(score_reply, ["slow"] * 99) as server,
        MixedReward(
            settings(server, endpoint_batch=1, endpoint_concurrency=1, endpoint_timeout_s=2.0)
        ) as mixed,
    ):
        assert check(mixed.score(asked), asked) == 0  # 20 calls of 0.15 s, one after another


def test_the_server_may_fail_one_item_by_name():
    def reply(request):
        answer = score_reply(request)
        for result in answer["results"]:
            if result["score"] > 6:
                result.clear()
                result.update(id=next(
                    i["id"] for i in request["items"] if goodness(i["answer"]) > 6
                ), error="too long\nfor me")  # fmt: skip
        return answer

    asked = requests_for(6)
    with (
        MisbehavingServer(reply) as server,
        MixedReward(settings(server, endpoint_batch=1)) as mixed,
    ):
        scores = mixed.score(asked)
        assert check(scores, asked) == 1
        assert scores[5].error == "score_endpoint: too long for me"


@pytest.mark.parametrize("trouble", ["hang", "drip"])
def test_a_stuck_server_is_a_failure_within_the_deadline(trouble):
    asked = requests_for(3)
    with (
        MisbehavingServer(score_reply, [trouble] * 50) as server,
        MixedReward(settings(server, endpoint_timeout_s=0.4)) as mixed,
    ):
        scores = mixed.score(asked)
    assert check(scores, asked) == 3
    assert all("no reply within 0.4 s" in score.error for score in scores)


def test_a_failure_is_not_remembered():
    asked = requests_for(3)
    with (
        MisbehavingServer(score_reply, [500] * 5) as server,  # the batch, two parts, two of one
        MixedReward(settings(server, endpoint_retries=0)) as mixed,
    ):
        assert check(mixed.score(asked), asked) == 3
        assert check(mixed.score(asked), asked) == 0


def test_images_travel_and_are_part_of_the_cache_key(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    asked = [ScoreRequest("open_ended", "b", "<answer>blue</answer>", images=(str(path),))]
    with MisbehavingServer(score_reply) as server, MixedReward(settings(server)) as mixed:
        mixed.score(asked)
        assert server.requests[0][2]["items"][0]["images"][0].startswith("data:image/png;base64,")
        before = len(server.requests)
        mixed.score(asked)
        assert len(server.requests) == before
        path.write_bytes(PNG + b"other")
        mixed.score(asked)
        assert len(server.requests) > before


@pytest.mark.parametrize("name", ["no.png", "no\0.png", "no.png" * 99])
def test_a_missing_image_fails_its_own_item(tmp_path, name):
    good = requests_for(2)
    bad = ScoreRequest("open_ended", "b", "<answer>x</answer>", images=(str(tmp_path / name),))
    with MisbehavingServer(score_reply) as server, MixedReward(settings(server)) as mixed:
        scores = mixed.score([good[0], bad, good[1]])
    assert [score.failed for score in scores] == [False, True, False]
    assert "image" in scores[1].error
    assert "no" in scores[1].error


def test_results_must_match_the_items():
    good = {"results": [{"id": "b", "score": 2}, {"id": "a", "score": 1.5}]}
    assert [judged.score for judged in read_results(good, ["a", "b"])] == [1.5, 2.0]
    for ids in (["a"], ["a", "b", "c"], ["a", "x"], []):
        with pytest.raises(ValueError):
            read_results(good, ids)
    twice = {"results": [{"id": "a", "score": 2}, {"id": "a", "score": 1.5}]}
    with pytest.raises(ValueError):
        read_results(twice, ["a", "b"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"open_ended": "score_endpoint"}, "endpoint_url"),
        ({"open_ended": "chat_judge", "endpoint_url": "http://x"}, "endpoint_model"),
        ({"open_ended": "reward_head"}, "only a training run loads one"),
        ({"open_ended": "score_endpoint", "endpoint_url": "x:1"}, "http"),
    ],
)
def test_a_backend_without_what_it_needs_is_a_user_error(fields, message):
    with pytest.raises(UserError, match=message):
        MixedReward(RewardSettings(**fields))


def test_a_reward_may_be_closed_by_everybody_who_holds_it():
    with MixedReward(RewardSettings(open_ended="score_endpoint", endpoint_url="http://h:1")) as one:
        one.close()
