"""S from an OpenAI-compatible chat model that grades with a fixed rubric, 0 to 10.

Response and reference are graded apart, each without sight of the other, so S has the same meaning
for both. The grade must come back as one JSON object; prose is a failure, not a grade.
"""

import asyncio
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from vlaa_jax.endpoint import EndpointError, image_part
from vlaa_jax.foreign import parse_json
from vlaa_jax.rewards.open_ended import AnswerItem, Judged
from vlaa_jax.rewards.score_endpoint import EndpointScorer
from vlaa_jax.schema import UserError

MAX_GRADE = 10
RUBRIC = resources.files("vlaa_jax.rewards").joinpath("judge_rubric.txt").read_text()
_OBJECT = re.compile(r"(?:```(?:json)?\s*)?(\{[^{}]*\})(?:\s*```)?", re.IGNORECASE)


class ChatJudge(EndpointScorer):
    """An ``AnswerScorer`` that asks a chat model for a grade."""

    name, contract, path = "chat_judge", "judge", "chat/completions"

    async def _score(self, items: Sequence[AnswerItem]) -> list[Judged]:
        return list(await asyncio.gather(*(self._grade(item) for item in items)))

    async def _grade(self, item: AnswerItem) -> Judged:
        try:
            payload = {
                "model": self._endpoint.settings.model,
                "messages": self._messages(item),
                "temperature": 0,
                "max_tokens": self._settings.endpoint_max_tokens,
            }
            grade = await self._endpoint.post(
                self.path,
                payload,
                lambda reply: read_grade(reply["choices"][0]["message"]["content"]),
            )
        except (EndpointError, UserError) as error:
            return Judged(error=str(error))
        return Judged(grade)

    def _messages(self, item: AnswerItem) -> list[dict[str, Any]]:
        images = [image_part(path) for path in self._shown(item)]
        material = json.dumps({"question": item.question, "answer": item.answer})
        return [
            {"role": "system", "content": RUBRIC},
            {"role": "user", "content": [*images, {"type": "text", "text": material}]},
        ]


def read_grade(text: Any) -> float:
    """The grade in a judge's reply; null, as a judge that ran out of tokens sends, is none.

    Raises:
        ValueError: the reply is not one JSON object with a whole number from 0 to 10.
    """
    match = _OBJECT.fullmatch(text.strip()) if isinstance(text, str) else None
    if not match:
        raise ValueError(f"not a grade: {str(text)[:60]!r}")
    grade = parse_json(match[1]).get("score")
    if type(grade) is not int or not 0 <= grade <= MAX_GRADE:
        raise ValueError(f"grade {grade!r} is not a whole number from 0 to {MAX_GRADE}")
    return float(grade)
