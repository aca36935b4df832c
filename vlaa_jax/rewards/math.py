"""Mathematical expressions: equivalence by Math-Verify, in worker processes (section 4.1, "math").

The host side reads both texts first. Plain numbers, letters and the few words that are answers are
compared here and never reach a parser that would read ``None`` as a product of four variables. What
is left goes to Math-Verify as (gold, prediction), the gold wrapped in dollar signs, because a bare
``2\\sqrt{3}`` is read as 2.
"""

import re
from dataclasses import dataclass

from vlaa_jax.rewards.exact.decide import decide
from vlaa_jax.rewards.expression import (
    MAX_EXPRESSION,
    Reading,
    read_expression,
    with_decimal_comma,
)
from vlaa_jax.rewards.extract import strip_answer_tags
from vlaa_jax.rewards.mcq import chosen_letter

TASK = "vlaa_jax.rewards.math_judge:judge"
"""What a ``KillablePool`` runs for this verifier."""


@dataclass(frozen=True)
class MathCase:
    """A comparison: decided here, or left to a worker."""

    verdict: bool | None = None
    item: dict[str, str] | None = None
    """JSON item for ``math_judge.judge``; None when ``verdict`` is set."""


def prepare_case(answer: str, gold: str) -> MathCase:
    """Decide a comparison on the host where that is exact, else prepare it for a worker.

    Raises:
        ValueError: the gold is not mathematics that could be compared.
    """
    problem = math_gold_problem(gold)
    if problem:
        raise ValueError(problem)
    target = read_expression(strip_answer_tags(gold), is_gold=True)
    if target.letter is not None:
        return MathCase(verdict=_letter(answer) == target.letter)
    said = read_expression(answer)
    if target.literal is not None or said.literal is not None:
        return MathCase(verdict=target.literal == said.literal)
    if target.unit and said.unit and target.unit != said.unit:
        return MathCase(verdict=False)
    if target.number is not None:
        number = said.number
        if number is None:
            number = with_decimal_comma(answer)
        if number is not None and (number == target.number or (target.exact and said.exact)):
            return MathCase(verdict=number == target.number)
        if number is not None and said.latex is None:
            return MathCase(verdict=number == target.number)
    if said.latex is None or target.latex is None:
        return MathCase(verdict=False)
    if _squeezed(said.latex) == _squeezed(target.latex):
        return MathCase(verdict=True)
    verdict = _decided(target.latex, said.latex)
    if verdict is not None:
        return MathCase(verdict=verdict)
    return MathCase(item={"gold": target.latex, "answer": said.latex})


def self_check_item(gold: str) -> dict[str, str] | None:
    """The item by which a worker tells whether a gold parses; None where no parser is needed."""
    reading = read_expression(strip_answer_tags(gold), is_gold=True)
    if reading.latex is None or reading.number is not None:
        return None
    return {"gold": reading.latex, "answer": reading.latex}


def _decided(gold: str, answer: str) -> bool | None:
    """The exact verdict on ordinary algebra; None where Math-Verify is needed."""
    inner = [text[1:-1] for text in (gold, answer) if text[:1] == text[-1:] == "$"]
    if len(inner) < 2 or "$" in inner[0] + inner[1]:
        return None
    return decide(inner[0], inner[1])


def _squeezed(latex: str) -> str:
    return re.sub(r"\\[,;: ]|\s+(?![A-Za-z])", "", latex)


def math_gold_problem(gold: str) -> str | None:
    """Why no answer can be compared with this gold, as far as can be told without a parser."""
    reading = read_expression(strip_answer_tags(gold), is_gold=True)
    if not gold.strip():
        return "gold is empty"
    if len(gold) > MAX_EXPRESSION:
        return f"gold has {len(gold)} characters, more than {MAX_EXPRESSION}"
    if reading == Reading():
        return f"gold {gold[:60]!r} is words, not mathematics"
    return None


def _letter(answer: str) -> str | None:
    return chosen_letter(re.sub(r"\\(?:text|mathrm|textbf)\s*\{([^{}]*)\}", r"\1", answer))
