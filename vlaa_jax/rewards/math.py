"""Mathematical expressions (section 4.1, "math"): equality of value, in worker processes.

The host finds the value that each text commits to (``reading``). Plain numbers, letters and the few
words that are answers are compared here; expressions go to ``math_judge`` in a process that can be
killed.
"""

import re
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from vlaa_jax.rewards.extract import strip_answer_tags
from vlaa_jax.rewards.latex import same_shape
from vlaa_jax.rewards.mcq import chosen_letter
from vlaa_jax.rewards.pool import KillablePool, Outcome
from vlaa_jax.rewards.reading import (
    MAX_EXPRESSION,
    Reading,
    factors_between,
    read_answer,
    read_gold,
    with_decimal_comma,
)
from vlaa_jax.rewards.text import plain
from vlaa_jax.rewards.verifier import Finish, Item, Setup, Verdict, Verifier, reason
from vlaa_jax.schema import ScoreRequest, UserError

TASK = "vlaa_jax.rewards.math_judge:judge"
"""What a ``KillablePool`` runs for this verifier."""


@dataclass(frozen=True)
class MathCase:
    """A comparison: decided here, or left to a worker."""

    verdict: bool | None = None
    item: dict[str, Any] | None = None
    """JSON item for ``math_judge.judge``; None when ``verdict`` is set."""


def prepare_case(answer: str, gold: str) -> MathCase:
    """Decide a comparison on the host where that is exact, else prepare it for a worker.

    Raises:
        ValueError: the gold is not mathematics that could be compared.
    """
    target = _target(gold)
    if target is None:
        raise ValueError(math_gold_problem(gold) or "the gold is no mathematics")
    if target.letter is not None:
        return MathCase(verdict=chosen_letter(plain(answer)) == target.letter)
    if _verbatim(answer) == _verbatim(strip_answer_tags(gold)):
        return MathCase(verdict=True)
    said = read_answer(answer)
    if target.number is not None and with_decimal_comma(answer) == target.number:
        return MathCase(verdict=True)
    if said is None or target.literal is not None or said.literal is not None:
        return MathCase(verdict=said is not None and said.literal == target.literal is not None)
    factors = factors_between(target, said)
    if target.number is not None and said.number is not None:
        return MathCase(verdict=any(_close(target, said, factor) for factor in factors))
    if not factors or same_shape(said.latex, target.latex):
        return MathCase(verdict=1 in factors)
    item: dict[str, Any] = {"gold": target.latex, "answer": said.latex}
    if factors != [1]:
        item["factors"] = [str(factor) for factor in factors]
    return MathCase(item=item)


def self_check_item(gold: str) -> dict[str, Any] | None:
    """The item by which a worker tells whether a gold parses; None where no parser is needed."""
    reading = _target(gold)
    if reading is None or reading.number is not None or not reading.latex:
        return None
    return {"gold": reading.latex, "answer": reading.latex}


def math_gold_problem(gold: str) -> str | None:
    """Why no answer can be compared with this gold, as far as can be told without a parser."""
    if not gold.strip():
        return "gold is empty"
    if len(gold) > MAX_EXPRESSION:
        return f"gold has {len(gold)} characters, more than {MAX_EXPRESSION}"
    if _target(gold) is None:
        return f"gold {gold[:60]!r} is words, not mathematics"
    return None


@lru_cache(maxsize=4096)  # a gold is compared with a whole group of answers
def _target(gold: str) -> Reading | None:
    return read_gold(strip_answer_tags(gold))


def _close(gold: Reading, answer: Reading, factor: Fraction) -> bool:
    """Whether two numbers are one: exactly, or as a decimal that is a value's rounding."""
    ours, said = gold.number or Fraction(0), (answer.number or Fraction(0)) * factor
    if ours == said:
        return True
    if factor != 1 and factor.denominator > 10**6:  # a conversion that is no round number
        return abs(ours - said) <= max(abs(ours), abs(said)) / 10**9
    if all("." not in reading.latex for reading in (gold, answer)):
        return False
    return abs(ours - said) <= min(Fraction(1), max(abs(ours), abs(said))) / 2_000_000


def _verbatim(text: str) -> str:
    """A text without the spaces that say nothing: those between digits stay."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", plain(text))


class MathVerifier(Verifier):
    """Compares on the host what it can, and the rest in a pool of processes.

    Args:
        workers: number of processes.
        timeout_s: CPU seconds that one comparison may take.
    """

    def __init__(self, workers: int, timeout_s: float) -> None:
        self._pool = KillablePool(TASK, workers=workers, timeout_s=timeout_s)

    def start(self) -> None:
        """Begin starting the processes."""
        self._pool.start()

    def begin(self, items: Sequence[Item]) -> Finish:
        """Send what the host cannot decide to the processes; equal pairs are compared once."""
        asked: dict[str, Future[Outcome]] = {}
        waiting: list[Verdict | Future[Outcome]] = []
        for item in items:
            try:
                case = prepare_case(item.answer, item.request.gt)
            except Exception as error:
                waiting.append(Verdict(error=reason(error)))
                continue
            if case.item is None:
                waiting.append(Verdict(float(bool(case.verdict))))
                continue
            key = repr(case.item)
            if key not in asked:
                asked[key] = self._pool.submit(case.item)
            waiting.append(asked[key])
        return lambda: [
            told if isinstance(told, Verdict) else _verdict(told.result()) for told in waiting
        ]

    def gold_problems(self, requests: Sequence[ScoreRequest]) -> list[str | None]:
        """Texts are judged here, the rest by ``parser_problems``; errors as of that."""
        problems = [math_gold_problem(request.gt) for request in requests]
        items = [None if problems[i] else self_check_item(r.gt) for i, r in enumerate(requests)]
        asked = [i for i, item in enumerate(items) if item]
        found = parser_problems(self._pool, [(requests[i].gt, items[i] or {}) for i in asked])
        for i, problem in zip(asked, found, strict=True):
            problems[i] = problem
        return problems

    def close(self) -> None:
        """End the processes."""
        self._pool.close()


def parser_problems(
    pool: KillablePool, checks: Sequence[tuple[str, dict[str, Any]]]
) -> list[str | None]:
    """Why the parser cannot use each gold; None where it parses and equals itself in time.

    A gold that fails, be it by a timeout or by the death of its worker, is tried once more after
    the others and alone: what a busy machine does to one gold is not that gold's problem.

    Args:
        pool: runs ``TASK``.
        checks: golds, each with the item that compares it with itself.

    Raises:
        UserError: the pool failed, so that nothing is known about the golds.
    """
    problems: list[str | None] = []
    futures = [pool.submit(item) for _, item in checks]
    outcomes = [_about_a_gold(future.result()) for future in futures]
    for (gold, item), outcome in zip(checks, outcomes, strict=True):
        if outcome.error is not None:
            outcome = _about_a_gold(pool.submit(item).result())
        if outcome.error is not None:
            problems.append(f"gold {gold[:60]!r}: {outcome.error}")
        else:
            unequal = f"gold {gold[:60]!r} is not equal to itself"
            said = outcome.value
            problems.append(None if said.get("equal") else said.get("gold_problem", unequal))
    return problems


def _about_a_gold(outcome: Outcome) -> Outcome:
    if outcome.pool_failed:
        why = " ".join((outcome.error or "the pool failed").split())
        raise UserError(f"golds could not be checked: {why}; run the command again")
    return outcome


def _verdict(outcome: Outcome) -> Verdict:
    if outcome.error is not None:
        return Verdict(error=f"maths: {outcome.error}")
    if "gold_problem" in outcome.value:
        return Verdict(error=outcome.value["gold_problem"])
    return Verdict(float(outcome.value["equal"]))


def make(setup: Setup) -> Verifier:
    """The verifier of mathematical expressions."""
    return MathVerifier(setup.settings.math_workers, setup.settings.math_timeout_s)
