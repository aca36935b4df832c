"""The recorded verdicts and tables of VLMEvalKit, and a judge that replies as recorded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlaa_jax.evaluate.nouns import Question

_HERE = Path(__file__).parent


class ScriptedJudge:
    """Gives the recorded replies in order and checks that they are asked for as recorded."""

    def __init__(self, script: list[dict[str, Any]]) -> None:
        self.left = list(script)

    async def ask(self, question: Question) -> str | None:
        assert self.left, f"the original does not ask here: {question.stage}"
        expected = self.left.pop(0)
        assert question.stage == expected["stage"]
        assert question.temperature == expected["temperature"]
        return expected["reply"]


def cases() -> Iterator[dict[str, Any]]:
    with (_HERE / "vlmevalkit_verdicts.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def tables() -> list[dict[str, Any]]:
    return json.loads((_HERE / "vlmevalkit_tables.json").read_text(encoding="utf-8"))
