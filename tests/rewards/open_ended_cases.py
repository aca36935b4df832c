"""Open-ended requests with scores that are known in advance."""

import math

from vlaa_jax.rewards.mixed import RewardSettings
from vlaa_jax.schema import ScoreRequest


def goodness(text):
    """The score our server gives: known, finite, different for different texts."""
    return len(text) / 4


def score_reply(request):
    results = [{"id": i["id"], "score": goodness(i["answer"])} for i in request["items"]]
    return {"results": results[::-1]}  # any order is allowed


def expected_reward(answer, gold, beta=0.2):
    gap = goodness(answer) - goodness(gold)
    return 1 - math.exp(-beta * gap) if gap > 0 else 0.0


def settings(server, **fields):
    chosen = {
        "open_ended": "score_endpoint",
        "endpoint_url": server.url,
        "endpoint_timeout_s": 5.0,
        "endpoint_backoff_s": 0.01,
        "endpoint_batch": 4,
        **fields,
    }
    return RewardSettings(**chosen)


def requests_for(count, gold="blue"):
    return [
        ScoreRequest(
            "open_ended", gold, f"<think>x</think><answer>{'blue ' * (i + 1)}</answer>",
            id=str(i), question="What colour is it?",
        )
        for i in range(count)
    ]  # fmt: skip
