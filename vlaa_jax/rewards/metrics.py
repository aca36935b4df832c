"""Scores of a batch as metrics, and the stop when too many of them failed."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from vlaa_jax.schema import Score, UserError


def check_failed(scores: Sequence[Score], max_failed_frac: float, where: str = "") -> None:
    """Stop when more than a share of the scorers failed.

    Raises:
        UserError: says how many failed, of which verifier, and the most frequent reasons.
    """
    failed = [score for score in scores if score.failed]
    if not scores or len(failed) <= max_failed_frac * len(scores):
        return
    per_type = Counter(score.verifier_type for score in failed)
    reasons = Counter(score.error or "no reason given" for score in failed).most_common(3)
    raise UserError(
        f"{where + ': ' if where else ''}{len(failed)} of {len(scores)} answers could not be scored"
        f" ({', '.join(f'{name} {n}' for name, n in per_type.most_common())}), more than"
        f" rewards.max_failed_frac = {max_failed_frac:g}. Reasons: "
        + "; ".join(f"{n} x {reason}" for reason, n in reasons)
    )


def reward_metrics(scores: Sequence[Score]) -> dict[str, float]:
    """``reward/...`` metrics of a batch: raw rewards, failures left out of every mean.

    Keys: ``reward/mean``, ``reward/<verifier_type>``, ``reward/extracted_frac``,
    ``reward/failed_frac``, ``reward/failed/<verifier_type>``, and ``reward/part/<name>`` for each
    option that is on. Means over nothing are left out.
    """
    if not scores:
        return {}
    metrics = {
        "reward/extracted_frac": fmean([score.parts["format"] for score in scores]),
        "reward/failed_frac": fmean([float(score.failed) for score in scores]),
    }
    sound = [score for score in scores if not score.failed]
    if sound:
        metrics["reward/mean"] = fmean([score.parts["raw"] for score in sound])
    for name in sorted({score.verifier_type for score in scores}):
        raw = [score.parts["raw"] for score in sound if score.verifier_type == name]
        if raw:
            metrics[f"reward/{name}"] = fmean(raw)
        failed = sum(score.failed for score in scores if score.verifier_type == name)
        if failed:
            metrics[f"reward/failed/{name}"] = float(failed)
    for part in ("structure", "overlong", "repetition"):
        values = [score.parts[part] for score in scores if part in score.parts]
        if values:
            metrics[f"reward/part/{part}"] = fmean(values)
    return metrics
