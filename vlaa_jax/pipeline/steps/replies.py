"""What makes a reply useless in any step, and where a trace ends and its answer begins."""

import re
from dataclasses import dataclass

from vlaa_jax.pipeline.ledger import Reply

_OPEN, _CLOSE = "<think>", "</think>"
_ANSWER_TAGS = re.compile(r"\A<answer>(.*)</answer>\Z", re.DOTALL)
_TAGS = (_OPEN, _CLOSE, "<answer>", "</answer>")


def problem_of(reply: Reply) -> str | None:
    """Why a reply cannot be used, or None."""
    if reply.finish_reason in ("length", "model_length"):
        return "reply cut at max_tokens"
    if reply.finish_reason == "content_filter":
        return "refused by the model"
    if not reply.text.strip() and not reply.reasoning.strip():
        return "reply empty"
    return None


@dataclass(frozen=True)
class Trace:
    """A think block and the answer behind it, both stripped and without tags."""

    thought: str
    answer: str


def parse_trace(text: str, reasoning: str = "") -> Trace | str:
    """Take a trace apart; a text says what is wrong with it.

    The thought is what the server put into a field of its own, or what stands before the only
    ``</think>``; the opening tag may be part of the prompt. An answer may stand in answer tags.
    """
    text = text.strip()
    if reasoning.strip():
        thought, answer = reasoning, text
        if text.startswith(_OPEN):  # some servers send the thought in both places
            thought, _, answer = text.removeprefix(_OPEN).partition(_CLOSE)
    else:
        if _CLOSE not in text:
            return "no think block"
        thought, _, answer = text.removeprefix(_OPEN).partition(_CLOSE)
    answer = answer.strip()
    if match := _ANSWER_TAGS.match(answer):
        answer = match[1].strip()
    thought = thought.strip()
    if any(tag in thought or tag in answer for tag in _TAGS):
        return "tags in the wrong place"
    if not thought:
        return "thought empty"
    return Trace(thought, answer) if answer else "answer empty"
