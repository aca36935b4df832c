"""Puts golds to their verifiers before anything is trained on them.

The verifiers live in the rewards room; whoever puts rooms together hands over
``MixedReward.gold_problems``.
"""

from collections.abc import Callable, Sequence

from vlaa_jax.schema import Record, ScoreRequest, UserError

GoldProblems = Callable[[Sequence[ScoreRequest]], Sequence[str | None]]
"""Why the gold of each request cannot be scored, or None; asked for many at once, so that golds
which need a parser reach it side by side."""
Resized = Callable[[int, int], tuple[int, int]]
"""(width, height) that the model sees of an image: ``ImageProcessor.resized``."""


def bad_golds(
    records: Sequence[Record],
    sizes: Sequence[tuple[int, int] | None],
    gold_problems: GoldProblems | None,
    *,
    resized: Resized | None = None,
    only_resized: bool = False,
) -> list[str | None]:
    """What is wrong with the gold of each record; None where all is well or nobody can say.

    Args:
      records: those without a verifier or a gold (supervised ones) are never asked about.
      sizes: (width, height) of the first image of each record, None where it is not known.
      gold_problems: None leaves golds unchecked.
      resized: None leaves boxes in resized pixels without an image to lie on.
      only_resized: ask about boxes in resized pixels alone, the only golds that an earlier check
        at other pixel limits does not settle.
    """
    problems: list[str | None] = [None] * len(records)
    if gold_problems is None:
        return problems
    asked = [
        i
        for i, record in enumerate(records)
        if record.verifier_type is not None
        and record.gt is not None
        and (record.box_space == "resized_pixels" or not only_resized)
    ]
    found = gold_problems([_request(records[i], sizes[i], resized) for i in asked])
    for i, problem in zip(asked, found, strict=True):
        problems[i] = problem
    return problems


def _request(record: Record, size: tuple[int, int] | None, resized: Resized | None) -> ScoreRequest:
    return ScoreRequest(
        record.verifier_type or "",
        record.gt or "",
        response="",
        id=record.id,
        question=record.question,
        image_size=size,
        resized_size=None if size is None or resized is None else _resized(size, resized),
        box_space=record.box_space,
    )


def _resized(size: tuple[int, int], resized: Resized) -> tuple[int, int] | None:
    try:
        return resized(*size)
    except UserError:  # too narrow: the image is refused for that, not the gold
        return None
