"""Asking a judge until a reply can be used, and the words it is asked in."""

import functools
import re
from collections.abc import Callable
from pathlib import Path

from vlaa_jax.evaluate.nouns import Judge, NoJudge, Question
from vlaa_jax.evaluate.scoring.options import FAILURE_TEXT

_PROMPTS = Path(__file__).parent / "prompts"
_FIELD = re.compile(r"\{(\w+)\}")


async def first_usable(
    judge: Judge | None,
    stage: str,
    prompt: str,
    *,
    usable: Callable[[str], bool] = lambda reply: True,
    attempts: int = 5,
    warmer: bool = True,
    max_tokens: int = 128,
) -> tuple[str | None, int]:
    """The first usable reply, None where none of the attempts gave one; and how many were asked.

    Args:
        judge: whom to ask.
        stage: of the benchmark.
        prompt: whole prompt.
        usable: whether a reply ends the attempts; no reply never does.
        attempts: at most.
        warmer: temperature 0, then half a degree more each time; else that of the settings.
        max_tokens: of a reply.

    Raises:
        NoJudge: there is none to ask.
    """
    if judge is None:
        raise NoJudge(f"its rules need the judge to {stage}")
    for attempt in range(attempts):
        temperature = 0.5 * attempt if warmer else None
        reply = await judge.ask(Question(stage, prompt, attempt, temperature, max_tokens))
        if reply is not None and FAILURE_TEXT not in reply and usable(reply):
            return reply, attempt + 1
    return None, attempts


def judge_prompt(name: str, **fields: str) -> str:
    """A prompt of ``prompts/`` with its fields filled in; what is filled in is not read again."""
    return _FIELD.sub(lambda match: fields[match[1]], _template(name))


@functools.cache
def _template(name: str) -> str:
    return (_PROMPTS / f"{name}.txt").read_text(encoding="utf-8")
