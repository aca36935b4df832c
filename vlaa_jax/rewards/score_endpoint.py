"""S from a server that scores batches of texts, such as one around InternLM-XComposer2.5-Reward.

The contract, version 1 (also in docs/rewards.md, with a reference server):

    POST {url}/score
    {"model": "...", "items": [{"id": "0", "question": "...", "answer": "...", "images": [URL]}]}
    200
    {"results": [{"id": "0", "score": 1.25}, ...]}       or {"id": "0", "error": "why not"}

Exactly one result per item, in any order, each with a finite number or an error. Anything else is
a failure of the batch, which is then asked in halves, so that one bad item takes no other with it;
so is a batch whose retries end in server errors. A batch and all its parts have one turn among the
requests in flight, one request at a time, and one deadline that starts with that turn.
"""

import asyncio
import math
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from vlaa_jax.endpoint import Endpoint, EndpointError, EndpointSettings, image_data_url
from vlaa_jax.loop_thread import LoopThread
from vlaa_jax.rewards.open_ended import AnswerItem, AnswerScorer, Judged
from vlaa_jax.schema import UserError, printable
from vlaa_jax.settings.rewards import RewardSettings

_SPLITTABLE = ("refused", "malformed", "server")


class EndpointScorer(AnswerScorer):
    """An ``AnswerScorer`` whose requests run on a thread with an event loop of its own."""

    contract: str
    """What is agreed with the server, as a part of the identity."""
    path: str
    """Of a request, below the address."""

    def __init__(self, settings: RewardSettings) -> None:
        self._settings = settings
        self._thread = LoopThread(self.name)
        self._endpoint = self._thread.run(_make(self._address()))
        where, images = self._endpoint.settings, settings.endpoint_images
        self.identity = f"{self.contract} {where.url} {where.model} images={images}"

    def score_answers(self, items: Sequence[AnswerItem]) -> list[Judged]:
        """One Judged per item, in order; a failed request fails its items only."""
        return self._thread.run(self._score(items))

    def close(self) -> None:
        """Close the connections and the thread."""
        self._thread.run(self._endpoint.aclose())
        self._thread.close()

    @abstractmethod
    async def _score(self, items: Sequence[AnswerItem]) -> list[Judged]:
        """What the server says of the items."""

    def _address(self) -> EndpointSettings:
        settings = self._settings
        return EndpointSettings(
            settings.endpoint_url.rstrip("/").removesuffix(f"/{self.path}"),  # ours to add
            model=settings.endpoint_model,
            key_env=settings.endpoint_key_env,
            concurrency=settings.endpoint_concurrency,
            timeout_s=settings.endpoint_timeout_s,
            retries=settings.endpoint_retries,
            backoff_s=settings.endpoint_backoff_s,
        )

    def _shown(self, item: AnswerItem) -> tuple[str, ...]:
        """The images that travel with an item."""
        return item.images if self._settings.endpoint_images else ()


class ScoreEndpoint(EndpointScorer):
    """An ``AnswerScorer`` that speaks the score contract."""

    name, contract, path = "score_endpoint", "score/1", "score"

    async def _score(self, items: Sequence[AnswerItem]) -> list[Judged]:
        judged: dict[str, Judged] = {}
        wire: list[dict[str, Any]] = []
        for index, item in enumerate(items):
            said = {"id": str(index), "question": item.question, "answer": item.answer}
            try:
                wire.append(said | {"images": [image_data_url(path) for path in self._shown(item)]})
            except UserError as error:
                judged[str(index)] = Judged(error=str(error))
        size = self._settings.endpoint_batch
        batches = [wire[i : i + size] for i in range(0, len(wire), size)]
        for results in await asyncio.gather(*map(self._ask, batches)):
            judged |= results
        return [judged[str(index)] for index in range(len(items))]

    async def _ask(self, batch: list[dict[str, Any]]) -> dict[str, Judged]:
        """Results by id, of a batch that is asked in halves where it fails as a whole."""
        judged: dict[str, Judged] = {}
        parts: deque[tuple[list[dict[str, Any]], int | None]] = deque([(batch, None)])
        async with self._endpoint.turn() as deadline:
            while parts:
                # Breadth first: the good half does not wait until the bad one is taken apart.
                part, retries = parts.popleft()
                ids = [item["id"] for item in part]
                try:
                    scores = await self._endpoint.post(
                        self.path,
                        {"model": self._endpoint.settings.model, "items": part},
                        partial(read_results, ids=ids, quote=self._endpoint.quote),
                        deadline=deadline,
                        retries=retries,
                    )
                except EndpointError as error:
                    scores = [Judged(error=str(error))] * len(part)
                    if error.kind in _SPLITTABLE and len(part) > 1:
                        parts.extend(_halves(part, error.kind))
                        continue
                judged |= zip(ids, scores, strict=True)
        return judged


def _halves(part: list[dict[str, Any]], kind: str) -> list[tuple[list[dict[str, Any]], int | None]]:
    """Both halves of a batch, with the retries each has; None means as many as are set.

    Retries of the whole have just shown that a server error stays: a half is asked once, to find
    the item behind it, and only a single item again with all retries.
    """
    middle = len(part) // 2
    return [
        (half, 0 if kind == "server" and len(half) > 1 else None)
        for half in (part[:middle], part[middle:])
    ]


def read_results(
    reply: Any, ids: Sequence[str], quote: Callable[[str], str] = printable
) -> list[Judged]:
    """Results in the order of ``ids``.

    Args:
        reply: what the server said.
        ids: of the items that were sent.
        quote: makes text of the server fit for a message.

    Raises:
        ValueError: not exactly one result per id, or a score that is not a finite number.
        KeyError, TypeError, AttributeError: the reply does not have the agreed form.
        OverflowError: a score has more digits than a float.
    """
    results = reply["results"]
    if len(results) != len(ids):
        raise ValueError(f"{len(ids)} items were sent, {len(results)} results came back")
    by_id = {str(result["id"]): result for result in results}
    if set(by_id) != set(ids):
        raise ValueError("the results are not for the items that were sent")
    return [_judged(by_id[name], quote) for name in ids]


def _judged(result: Any, quote: Callable[[str], str]) -> Judged:
    if result.get("error"):
        return Judged(error=quote(str(result["error"])))
    score = result["score"]
    if type(score) not in (int, float):
        raise ValueError(f"score {str(score)[:40]!r} is not a number")
    value = float(score)  # an OverflowError for hundreds of digits
    if not math.isfinite(value):
        raise ValueError(f"score {value!r} is not a finite number")
    return Judged(value)


async def _make(settings: EndpointSettings) -> Endpoint:
    return Endpoint(settings)
