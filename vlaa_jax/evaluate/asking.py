"""Asking a judge until a reply can be used, and the words it is asked in."""

import functools
import re
from collections.abc import Callable
from pathlib import Path

from vlaa_jax.evaluate.nouns import Judge, NoJudge, Question, Row, Verdict
from vlaa_jax.evaluate.scoring.options import FAILURE_TEXT
from vlaa_jax.evaluate.scoring.profiles import Profile
from vlaa_jax.evaluate.scoring.storage import Cell, as_text, stored

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
        if reply is not None and f"{FAILURE_TEXT}." not in reply and usable(reply):
            return reply, attempt + 1
    return None, attempts


async def extract_and_compare(
    row: Row,
    output: Cell,
    judge: Judge | None,
    profile: Profile,
    *,
    by_rule: str | None,
    right: Callable[[Cell], bool],
) -> Verdict:
    """The verdict where rules extract or else the judge, and rules compare.

    Args:
        row: the question.
        output: what is scored.
        judge: asked where rules did not extract.
        profile: how an extraction is stored before it is compared.
        by_rule: what rules extracted.
        right: whether a stored extraction is right.
    """
    if by_rule:
        return Verdict(right(stored(by_rule, profile)), "rule", by_rule)
    question, response = as_text(row["question"]), as_text(output)
    prompt = judge_prompt("extract_answer", question=question, response=response)
    reply, asked = await first_usable(judge, "extract", prompt)
    cell = stored(reply or "", profile)
    said = None if cell is None else str(cell)
    return Verdict(right(cell), "failed" if reply is None else "judge", said, asked=asked)


def judge_prompt(name: str, **fields: str) -> str:
    """A prompt of ``prompts/`` with its fields filled in; what is filled in is not read again."""
    return _FIELD.sub(lambda match: fields[match[1]], _template(name))


@functools.cache
def _template(name: str) -> str:
    return (_PROMPTS / f"{name}.txt").read_text(encoding="utf-8")
