"""Puts maths golds to the parser, telling a gold that is bad from a checker that is broken."""

from collections.abc import Sequence
from typing import Any

from vlaa_jax.rewards.pool import KillablePool, Outcome
from vlaa_jax.schema import UserError


def parser_problems(
    pool: KillablePool, checks: Sequence[tuple[str, dict[str, Any] | None]]
) -> list[str | None]:
    """Why the parser cannot use each gold; None where it parses and equals itself in time.

    A gold that fails, be it by a timeout or by the death of its worker, is tried once more after
    the others and alone: what a busy machine does to one gold is not that gold's problem.

    Args:
        pool: runs ``math.TASK``.
        checks: golds, each with the item that compares it with itself; None where it needs none.

    Raises:
        UserError: the pool failed, so that nothing is known about the golds.
    """
    problems: list[str | None] = [None] * len(checks)
    asked = {i: pool.submit(item) for i, (_, item) in enumerate(checks) if item is not None}
    outcomes = {i: _sound(future.result()) for i, future in asked.items()}
    for i, outcome in outcomes.items():
        gold, item = checks[i]
        again = outcome.error is not None
        problems[i] = _problem(gold, _sound(pool.submit(item).result()) if again else outcome)
    return problems


def _sound(outcome: Outcome) -> Outcome:
    if outcome.pool_failed:
        reason = " ".join((outcome.error or "the pool failed").split())
        raise UserError(f"golds could not be checked: {reason}; run the command again")
    return outcome


def _problem(gold: str, outcome: Outcome) -> str | None:
    if outcome.error is not None:
        return f"gold {gold[:60]!r}: {outcome.error}"
    if outcome.value.get("equal"):
        return None
    problem: str = outcome.value.get("gold_problem", f"gold {gold[:60]!r} is not equal to itself")
    return problem
