"""S from a server that scores batches of texts, such as one around InternLM-XComposer2.5-Reward.

The contract, version 1 (also in docs/rewards.md, with a reference server):

    POST {url}/score
    {"model": "...", "items": [{"id": "0", "question": "...", "answer": "...", "images": [URL]}]}
    200
    {"results": [{"id": "0", "score": 1.25}, ...]}       or {"id": "0", "error": "why not"}

Exactly one result per item, in any order, each with a finite number or an error. Anything else is
a failure of the batch, which is then asked in halves, so that one bad item takes no other with it.
"""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from vlaa_jax.endpoint import (
    Endpoint,
    EndpointError,
    EndpointSettings,
    LoopThread,
    image_data_url,
)
from vlaa_jax.rewards.open_ended import AnswerItem, Judged
from vlaa_jax.schema import UserError

_SPLITTABLE = ("refused", "malformed")


class ScoreEndpoint:
    """An ``AnswerScorer`` that speaks the score contract.

    Args:
        settings: address, concurrency, deadlines, retries.
        batch: items per request.
        send_images: whether images travel with the texts.
    """

    name = "score_endpoint"

    def __init__(
        self, settings: EndpointSettings, *, batch: int = 8, send_images: bool = True
    ) -> None:
        self.identity = f"score/1 {settings.url} {settings.model} images={send_images}"
        self._batch, self._send_images = batch, send_images
        self._model = settings.model
        self._thread = LoopThread(self.name)
        self._endpoint = self._thread.run(_make(settings))

    def score_answers(self, items: Sequence[AnswerItem]) -> list[Judged]:
        """One Judged per item, in order; a failed request fails its items only."""
        return self._thread.run(self._score(items))

    def close(self) -> None:
        """Close the connections and the thread."""
        self._thread.run(self._endpoint.aclose())
        self._thread.close()

    async def _score(self, items: Sequence[AnswerItem]) -> list[Judged]:
        judged: list[Judged] = [Judged(error="not scored")] * len(items)
        wire: list[tuple[int, dict[str, Any]]] = []
        for index, item in enumerate(items):
            try:
                wire.append((index, self._wire_item(index, item)))
            except UserError as error:
                judged[index] = Judged(error=str(error))
        batches = [wire[i : i + self._batch] for i in range(0, len(wire), self._batch)]
        for results in await asyncio.gather(*(self._ask(batch) for batch in batches)):
            for index, result in results.items():
                judged[index] = result
        return judged

    def _wire_item(self, index: int, item: AnswerItem) -> dict[str, Any]:
        images = [image_data_url(path) for path in item.images] if self._send_images else []
        return {
            "id": str(index),
            "question": item.question,
            "answer": item.answer,
            "images": images,
        }

    async def _ask(self, batch: Sequence[tuple[int, dict[str, Any]]]) -> dict[int, Judged]:
        payload = {"model": self._model, "items": [item for _, item in batch]}
        try:
            scores = await self._endpoint.post(
                "score",
                payload,
                lambda reply: read_results(reply, [item["id"] for _, item in batch]),
            )
        except EndpointError as error:
            if error.kind in _SPLITTABLE and len(batch) > 1:
                middle = len(batch) // 2
                halves = await asyncio.gather(self._ask(batch[:middle]), self._ask(batch[middle:]))
                return {**halves[0], **halves[1]}
            return {index: Judged(error=str(error)) for index, _ in batch}
        return {index: judged for (index, _), judged in zip(batch, scores, strict=True)}


def read_results(reply: Any, ids: Sequence[str]) -> list[Judged]:
    """Results in the order of ``ids``.

    Raises:
        ValueError: not exactly one result per id, or a score that is not a finite number.
        KeyError, TypeError: the reply does not have the agreed form.
    """
    results = reply["results"]
    if len(results) != len(ids):
        raise ValueError(f"{len(ids)} items were sent, {len(results)} results came back")
    by_id = {str(result["id"]): result for result in results}
    if set(by_id) != set(ids):
        raise ValueError("the results are not for the items that were sent")
    return [_judged(by_id[name]) for name in ids]


def _judged(result: Any) -> Judged:
    if result.get("error"):
        return Judged(error=" ".join(str(result["error"]).split())[:200])
    score = result["score"]
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        raise ValueError(f"score {score!r} is not a finite number")
    return Judged(float(score))


async def _make(settings: EndpointSettings) -> Endpoint:
    return Endpoint(settings)
