"""Puts golds to their verifiers before anything is trained on them.

The verifiers live in the rewards room; whoever puts rooms together hands over
``MixedReward.gold_problems``.
"""

from collections.abc import Callable, Sequence

from vlaa_jax.schema import Record, ScoreRequest

GoldProblems = Callable[[Sequence[ScoreRequest]], Sequence[str | None]]
"""Why the gold of each request cannot be scored, or None; asked for many at once, so that golds
which need a parser reach it side by side."""


def bad_golds(
    records: Sequence[Record],
    sizes: Sequence[tuple[int, int] | None],
    gold_problems: GoldProblems | None,
) -> list[str | None]:
    """What is wrong with the gold of each record; None where all is well or nobody can say.

    Args:
      records: those without a verifier or a gold (supervised ones) are never asked about.
      sizes: (width, height) of the first image of each record, None where it is not known.
      gold_problems: None leaves golds unchecked.
    """
    problems: list[str | None] = [None] * len(records)
    if gold_problems is None:
        return problems
    asked = [i for i, r in enumerate(records) if r.verifier_type is not None and r.gt is not None]
    found = gold_problems([_request(records[i], sizes[i]) for i in asked])
    for i, problem in zip(asked, found, strict=True):
        problems[i] = problem
    return problems


def _request(record: Record, size: tuple[int, int] | None) -> ScoreRequest:
    return ScoreRequest(
        record.verifier_type or "",
        record.gt or "",
        response="",
        id=record.id,
        question=record.question,
        image_size=size,
        box_space=record.box_space,
    )
