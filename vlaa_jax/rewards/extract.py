"""Finding the one answer in a model output: the implicit format reward of VLAA-Thinker.

A model thinks in ``<think>...</think>`` and answers in ``<answer>...</answer>``. Nothing that is
thought is ever scored, and an output without exactly one answer has reward 0 whatever its verifier
would say (arXiv 2504.11468, section 4.1).
"""

import re
from dataclasses import dataclass

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

_BLOCK = r"((?:(?!</?(?:think|answer)>).)*)"
_STRICT = re.compile(
    rf"\s*<think>{_BLOCK}</think>\s*<answer>{_BLOCK}</answer>(?:<\|im_end\|>|<\|endoftext\|>|</s>|\s)*",
    re.DOTALL,
)


@dataclass(frozen=True)
class Extraction:
    """The answer text, or why there is none."""

    answer: str | None
    """Stripped content of the answer block; None when there is no valid answer."""
    reason: str | None = None
    """Why ``answer`` is None."""
    span: tuple[int, int] | None = None
    """Where the answer stands in the response: first character and the one behind the last."""


def extract_answer(response: str) -> Extraction:
    """Cut the thinking, then take exactly one non-empty answer block.

    Everything through the last ``</think>`` is thought and is cut; the opening tag may live in the
    prompt. What is left must hold one ``<answer>`` followed by one ``</answer>`` and no thought
    that is still open. An answer block that stands outside every think block before the cut is an
    answer too, so "answer, think again, answer" counts as two answers.
    """
    if _answers_before_last_thought(response):
        return Extraction(None, "more than one answer block")
    begin = response.rfind(THINK_CLOSE) + len(THINK_CLOSE) if THINK_CLOSE in response else 0
    said = response[begin:]
    if THINK_OPEN in said:
        return Extraction(None, "the think block is not closed")
    blocks = max(said.count(ANSWER_OPEN), said.count(ANSWER_CLOSE))
    if blocks != 1:
        return Extraction(None, f"{'more than one' if blocks else 'no'} answer block")
    before, _, rest = said.partition(ANSWER_OPEN)
    block, closed, _ = rest.partition(ANSWER_CLOSE)
    if not closed:
        return Extraction(None, "the answer block is not closed")
    answer = block.strip()
    if not answer:
        return Extraction(None, "the answer block is empty")
    first = begin + len(before + ANSWER_OPEN) + len(block) - len(block.lstrip())
    return Extraction(answer, span=(first, first + len(answer)))


def has_strict_structure(response: str) -> bool:
    """One non-empty think block, then one non-empty answer block, and nothing else.

    White space around the blocks and end-of-turn tokens after them are allowed. This is what the
    optional explicit format term pays for; the reward itself only needs ``extract_answer``.
    """
    match = _STRICT.fullmatch(response)
    return match is not None and all(block.strip() for block in match.groups())


def strip_answer_tags(gold: str) -> str:
    """Gold text without surrounding answer tags, which some data sets carry."""
    gold = gold.strip()
    if gold.startswith(ANSWER_OPEN) and gold.endswith(ANSWER_CLOSE):
        gold = gold[len(ANSWER_OPEN) : -len(ANSWER_CLOSE)].strip()
    return gold


def _answers_before_last_thought(response: str) -> bool:
    """Whether an answer block stands outside every think block before the last ``</think>``."""
    segments = response.split(THINK_CLOSE)[:-1]
    for index, segment in enumerate(segments):
        outside, opened, _ = segment.partition(THINK_OPEN)
        # The first segment without an opening tag is thought whose tag was part of the prompt;
        # later ones without it are text between two closing tags, which nobody is thinking.
        if ANSWER_OPEN in outside and (opened or index > 0):
            return True
    return False
