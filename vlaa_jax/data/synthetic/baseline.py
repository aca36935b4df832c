"""What a model that never looks could score: the best constant answer per verifier type."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vlaa_jax.schema import Record

_STEPS = (-0.1, -0.05, -0.02, 0.02, 0.05, 0.1)


@dataclass(frozen=True)
class Baseline:
    """The best constant answer for one verifier type."""

    answer: str
    score: float
    """Mean score of the answer over the records."""
    records: int
    candidates: int
    """How many constant answers were tried."""


def constant_baseline(
    records: Iterable[Record],
    score: Callable[[Record, str], float],
    *,
    max_candidates: int = 200,
) -> dict[str, Baseline]:
    """The best constant answer for each verifier type among ``records``.

    Tried are all distinct golds of the type; for boxes the best one is then improved by moving its
    sides, because the best constant box need not be anybody's gold.

    Args:
      records: with golds and verifier types.
      score: score of one answer text (without tags) for one record, in [0, 1].
      max_candidates: at most so many golds of a type are tried, the most frequent first.
    """
    by_type: dict[str, list[Record]] = {}
    for record in records:
        if record.verifier_type is not None and record.gt is not None:
            by_type.setdefault(record.verifier_type, []).append(record)
    result = {}
    for kind, group in sorted(by_type.items()):
        counts: dict[str, int] = {}
        for record in group:
            counts[record.gt or ""] = counts.get(record.gt or "", 0) + 1
        golds = sorted(counts, key=lambda gold: (-counts[gold], gold))[:max_candidates]
        scored = [(_mean(group, gold, score), gold) for gold in golds]
        tried = len(scored)
        best = max(scored)
        if kind == "iou" and _is_box(best[1]):
            best, extra = _improve_box(group, best, score)
            tried += extra
        result[kind] = Baseline(best[1], best[0], len(group), tried)
    return result


def _mean(group: Sequence[Record], answer: str, score: Callable[[Record, str], float]) -> float:
    return sum(score(record, answer) for record in group) / len(group)


def _is_box(answer: str) -> bool:
    """Whether an answer is one box in fractions; others are no places to start from."""
    try:
        box = [float(x) for x in answer.strip("[]").split(",")]
    except ValueError:
        return False
    return len(box) == 4 and all(0 <= x <= 1 for x in box)


def _improve_box(
    group: Sequence[Record], best: tuple[float, str], score: Callable[[Record, str], float]
) -> tuple[tuple[float, str], int]:
    """Climb from the best gold box by moving one side at a time until nothing improves."""
    tried, improved = 0, True
    while improved:
        improved = False
        for side in range(4):
            for step in _STEPS:
                box = [float(x) for x in best[1].strip("[]").split(",")]
                box[side] = min(1.0, max(0.0, box[side] + step))
                if box[0] >= box[2] or box[1] >= box[3]:
                    continue
                answer = "[" + ", ".join(f"{x:.2f}" for x in box) + "]"
                candidate = (_mean(group, answer, score), answer)
                tried += 1
                if candidate[0] > best[0] + 1e-6:
                    best, improved = candidate, True
    return best, tried
