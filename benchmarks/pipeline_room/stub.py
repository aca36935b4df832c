"""A provider with long-tailed latency, errors and broken replies, all decided by the request."""

import asyncio
import hashlib
import json
import math
import random
import statistics
import time
from collections import Counter

from vlaa_jax.pipeline.local_server import Answer, Call, LocalServer

MEDIAN_S, SIGMA, TAIL_S = 0.05, 0.3, 5.0
TAIL, ERRORS, MALFORMED = 0.01, 0.02, 0.005


class Provider:
    """Handler of a LocalServer.

    What a request meets is drawn from its digest and the number of times it was tried, so that a
    run which was killed meets the same as one that was not.

    Args:
        scale: of all latencies.
        allowed: requests at once; more are answered with 429 at once. 0: any number.
        retry_after: header of a 429.
    """

    def __init__(self, scale: float = 1.0, allowed: int = 0, retry_after: str = "") -> None:
        self.scale, self.allowed, self.retry_after = scale, allowed, retry_after
        self.tries: Counter[bytes] = Counter()
        self.answered: Counter[bytes] = Counter()
        self.statuses: Counter[int] = Counter()
        self.busy_s = 0.0
        self.in_flight = self.most = 0
        self.log: list[tuple[float, int]] = []

    async def __call__(self, call: Call) -> Answer:
        if call.path.endswith("/stats"):
            return Answer(self.stats())
        digest = hashlib.sha256(call.body).digest()
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            answer = await self._answer(digest, call)
        finally:
            self.in_flight -= 1
        self.statuses[answer.status] += 1
        return answer

    async def _answer(self, digest: bytes, call: Call) -> Answer:
        if self.allowed and self.in_flight > self.allowed:
            headers = {"retry-after": self.retry_after} if self.retry_after else {}
            return Answer({"error": "too many requests"}, 429, headers)
        self.log.append((time.monotonic(), self.in_flight))
        self.tries[digest] += 1
        draw = random.Random(digest + bytes([min(self.tries[digest], 255)]))
        first = self.tries[digest] == 1
        latency = TAIL_S if draw.random() < TAIL else MEDIAN_S * math.exp(draw.gauss(0, SIGMA))
        self.busy_s += latency * self.scale
        await asyncio.sleep(latency * self.scale)
        fate = draw.random()
        if first and fate < ERRORS:
            return Answer({"error": "upstream"}, 500)
        if first and fate < ERRORS + MALFORMED:
            return Answer(b'{"choices": [{"mess')
        self.answered[digest] += 1
        return Answer(reply(digest, call.json()))

    def stats(self) -> dict[str, object]:
        served = self.log[len(self.log) // 2 : len(self.log) * 9 // 10]
        late = [count for _, count in served]
        return {
            "busy_s": self.busy_s,
            "in_flight": self.in_flight,
            "most_in_flight": self.most,
            "requests": sum(self.tries.values()),
            "answered": sum(self.answered.values()),
            "asked_again": sum(count - 1 for count in self.answered.values()),
            "statuses": dict(self.statuses),
            "in_flight_second_half": statistics.mean(late) if late else 0.0,
        }


def reply(digest: bytes, request: dict) -> dict:
    """What the model of the step says; the step shows in the prompt."""
    content = request["messages"][-1]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    number = int.from_bytes(digest[:4], "big")
    if text.startswith("Write a caption"):
        said = f"Picture {number} with some shapes in it. " + "It shows more. " * 20
    elif text.startswith("Below are"):
        cue = "Wait, let me check." if number % 2 else "So it is."
        thought = f"The picture {number} shows it. {'It follows. ' * 60}{cue}"
        said = f"<think>\n{thought}\n</think>\n\nB, as {number} shows"
    elif text.startswith("The text below"):
        said = text[text.index("<think>") :]
    else:
        said = "No" if number % 20 == 0 else "Yes"
    usage = {"prompt_tokens": len(text) // 4, "completion_tokens": len(said) // 4}
    message = {"role": "assistant", "content": said}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}


def add_arguments(parser) -> None:
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--allowed", type=int, default=0)
    parser.add_argument("--retry-after", default="")


def run(args) -> None:
    provider = Provider(args.scale, args.allowed, args.retry_after)
    server = LocalServer(provider, args.port)
    print(json.dumps({"url": server.url}), flush=True)
    while True:
        time.sleep(3600)
