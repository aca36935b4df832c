"""One reward per sample: the record's verifier type picks the verifier, nothing is weighted.

format is implicit     no valid answer: reward 0, whatever the verifier
broken is not wrong    a scorer that fails yields NaN with a reason, never 0
raw before shaped      ``parts["raw"]`` is the verifier's word; options are added on top
"""

import math
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from vlaa_jax.rewards.backends import make_open_ended
from vlaa_jax.rewards.digit import digit_gold_problem, score_digit
from vlaa_jax.rewards.extract import extract_answer, has_strict_structure
from vlaa_jax.rewards.gold_check import parser_problems
from vlaa_jax.rewards.iou import iou_gold_problem, score_iou
from vlaa_jax.rewards.math import TASK as MATH_TASK
from vlaa_jax.rewards.math import math_gold_problem, prepare_case
from vlaa_jax.rewards.mcq import mcq_gold_problem, score_mcq
from vlaa_jax.rewards.open_ended import (
    MAX_ANSWER,
    Margin,
    OpenEndedScorer,
    OpenItem,
    reference_reward,
)
from vlaa_jax.rewards.pool import KillablePool, Outcome
from vlaa_jax.rewards.shaping import overlong_penalty, repetition_penalty
from vlaa_jax.schema import Score, ScoreRequest, UserError
from vlaa_jax.settings.rewards import RewardSettings

__all__ = [
    "MixedReward",
    "RewardSettings",
    "check_failed",
    "gold_problem",
    "reward_metrics",
]


Rule = Callable[[ScoreRequest, str, RewardSettings], float]
GoldCheck = Callable[[ScoreRequest], str | None]


@dataclass(frozen=True)
class Verifier:
    """How answers of one type are scored, and golds of that type are checked."""

    gold_problem: GoldCheck
    """Why the request's gold cannot be scored; None when it can."""
    rule: Rule | None = None
    """Scores one extracted answer, raising ValueError for a bad gold; None: scored in batches."""


def _iou(request: ScoreRequest, answer: str, settings: RewardSettings) -> float:
    return score_iou(
        answer,
        request.gt,
        box_space=request.box_space,
        answer_space=settings.answer_box_space,
        image_size=request.image_size,
        resized_size=request.resized_size,
    )


VERIFIERS: Mapping[str, Verifier] = {
    "digit": Verifier(
        lambda request: digit_gold_problem(request.gt),
        lambda request, answer, settings: score_digit(answer, request.gt),
    ),
    "mcq": Verifier(
        lambda request: mcq_gold_problem(request.gt, request.question),
        lambda request, answer, settings: score_mcq(answer, request.gt, request.question),
    ),
    "iou": Verifier(
        lambda request: iou_gold_problem(
            request.gt, request.box_space, request.image_size, request.resized_size
        ),
        _iou,
    ),
    "math": Verifier(lambda request: math_gold_problem(request.gt)),
    "open_ended": Verifier(lambda request: None if request.gt.strip() else "gold is empty"),
}
"""A new verifier is one file, one row here, and one table of tests; see docs/rewards.md."""


@dataclass
class _Row:
    """A request on its way to a Score."""

    request: ScoreRequest
    answer: str | None = None
    reward: float = 0.0
    error: str | None = None
    parts: dict[str, float] | None = None

    def fail(self, reason: str) -> None:
        self.reward, self.error = math.nan, reason


class MixedReward:
    """Scores model outputs; thread-safe, so that scoring can overlap device work.

    Args:
        settings: all knobs.
        open_ended: a scorer to use instead of the one the settings name, e.g. the in-process
            reward head, which lives with the models.

    Raises:
        UserError: the settings name a backend that cannot be made from them.
    """

    def __init__(
        self, settings: RewardSettings | None = None, open_ended: OpenEndedScorer | None = None
    ) -> None:
        self.settings = settings or RewardSettings()
        self._open_ended = open_ended or make_open_ended(self.settings)  # None: not chosen
        self._open_lock = threading.Lock()
        self._pool = KillablePool(
            MATH_TASK,
            workers=self.settings.math_workers,
            timeout_s=self.settings.math_timeout_s,
        )

    @property
    def uses_devices(self) -> bool:
        """Whether ``score`` computes on the trainer's devices, as a reward head does.

        Then it must not overlap other work on the same mesh: with several devices, programs with
        collectives have to be dispatched in one order on all of them.
        """
        return self._open_ended is not None and self._open_ended.uses_devices

    def start(self) -> None:
        """Begin importing the maths parser in the background; otherwise the first use waits."""
        self._pool.start()

    def score(
        self,
        requests: Sequence[ScoreRequest],
        *,
        lengths: Sequence[int] | None = None,
        max_length: int | None = None,
        tokens: Sequence[Sequence[Hashable]] | None = None,
        shaped: bool = True,
    ) -> list[Score]:
        """Scores in the order of the requests.

        Args:
            requests: what to score.
            lengths: completion lengths in tokens, for the soft overlong penalty.
            max_length: completion limit in tokens, for the same.
            tokens: completion tokens for the repetition penalty; None counts words.
            shaped: False leaves the options out, whatever the settings say: rewards are raw.

        Raises:
            UserError: an option is on but what it needs was not given.
        """
        if shaped:
            self._check_shaping(len(requests), lengths, max_length, tokens)
        rows = [_Row(request) for request in requests]
        by_type: dict[str, list[_Row]] = {"math": [], "open_ended": []}
        for row in rows:
            row.answer = extract_answer(row.request.response).answer
            by_type.setdefault(row.request.verifier_type, []).append(row)
        # Maths goes to the workers first, so that they compute while we score the rest here.
        finish_math = self._begin_math(by_type.pop("math"))
        open_rows = by_type.pop("open_ended")
        for name, group in by_type.items():
            for row in group:
                self._apply_rule(name, row)
        self._score_open_ended(open_rows)
        finish_math()
        if not shaped:
            return [_score(row, row.reward, _parts(row)) for row in rows]
        return [
            self._shaped(
                row,
                lengths[index] if lengths is not None else None,
                max_length,
                tokens[index] if tokens is not None else None,
            )
            for index, row in enumerate(rows)
        ]

    def gold_problems(self, requests: Sequence[ScoreRequest]) -> list[str | None]:
        """``gold_problem`` for each request, with maths golds also put to the parser.

        A maths gold must parse, and be found equal to itself before the timeout.

        Raises:
            UserError: the worker processes failed, so that nothing is known about the golds.
        """
        problems = [_gold_problem(request) for request in requests]
        maths = [
            index
            for index, request in enumerate(requests)
            if request.verifier_type == "math" and problems[index] is None
        ]
        found = parser_problems(self._pool, [requests[index].gt for index in maths])
        for index, problem in zip(maths, found, strict=True):
            problems[index] = problem
        return problems

    def close(self) -> None:
        """End the worker processes and the open-ended backend."""
        self._pool.close()
        if self._open_ended is not None:
            self._open_ended.close()

    def __enter__(self) -> "MixedReward":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _apply_rule(self, name: str, row: _Row) -> None:
        rule = VERIFIERS[name].rule if name in VERIFIERS else None
        if rule is None:
            row.fail(_unknown(name))
        elif row.answer is not None:
            try:
                row.reward = rule(row.request, row.answer, self.settings)
            except Exception as error:  # a verifier's own fault must not look like a wrong answer
                row.fail(_reason(error))

    def _begin_math(self, rows: Sequence[_Row]) -> Callable[[], None]:
        """Decide what the host can, send the rest to the pool; returns how to collect it."""
        waiting = []
        asked: dict[tuple[str, str], Future[Outcome]] = {}
        for row in rows:
            if row.answer is None:
                continue
            try:
                case = prepare_case(row.answer, row.request.gt)
            except Exception as error:
                row.fail(_reason(error))
                continue
            if case.verdict is not None:
                row.reward = float(case.verdict)
            else:
                # Completions of a group often agree; equal pairs are compared once.
                key = (case.item["gold"], case.item["answer"]) if case.item else ("", "")
                if key not in asked:
                    asked[key] = self._pool.submit(case.item)
                waiting.append((row, asked[key]))

        def finish() -> None:
            for row, future in waiting:
                outcome = future.result()
                if outcome.error is not None:
                    row.fail(f"maths: {outcome.error}")
                elif "gold_problem" in outcome.value:
                    row.fail(outcome.value["gold_problem"])
                else:
                    row.reward = float(outcome.value["equal"])

        return finish

    def _score_open_ended(self, rows: Sequence[_Row]) -> None:
        asked = []
        for row in rows:
            if row.answer is None:
                continue
            problem = VERIFIERS["open_ended"].gold_problem(row.request)
            if problem:
                row.fail(problem)
            elif self._open_ended is None:
                row.fail("no open-ended backend: choose rewards.open_ended")
            elif len(row.answer) <= MAX_ANSWER:
                asked.append(row)
        if not asked or self._open_ended is None:
            return
        backend = self._open_ended
        items = [
            OpenItem(r.request.question, r.answer or "", r.request.gt, r.request.images)
            for r in asked
        ]
        try:
            with self._open_lock:
                margins = backend.margins(items)
            if len(margins) != len(items):
                raise ValueError(f"{len(items)} answers were sent, {len(margins)} scores came back")
        except Exception as error:
            margins = [Margin(error=_reason(error))] * len(items)
        for row, margin in zip(asked, margins, strict=True):
            if margin.error is not None:
                row.fail(f"{backend.name}: {margin.error}")
                continue
            try:
                row.reward = reference_reward(margin.response, margin.reference, self.settings.beta)
            except ValueError as error:
                row.fail(f"{backend.name}: {error}")
                continue
            row.parts = {"response_score": margin.response, "reference_score": margin.reference}

    def _shaped(
        self,
        row: _Row,
        length: int | None,
        max_length: int | None,
        tokens: Sequence[Hashable] | None,
    ) -> Score:
        settings = self.settings
        parts = _parts(row)
        reward = row.reward
        if settings.format_weight:
            parts["structure"] = float(has_strict_structure(row.request.response))
            reward = (1 - settings.format_weight) * reward + settings.format_weight * parts[
                "structure"
            ]
        if settings.overlong_weight and length is not None and max_length is not None:
            parts["overlong"] = overlong_penalty(length, max_length, settings.overlong_buffer)
            reward += settings.overlong_weight * parts["overlong"]
        if settings.repetition_weight:
            said = tokens if tokens is not None else row.request.response.split()
            parts["repetition"] = repetition_penalty(said, settings.repetition_ngram)
            reward += settings.repetition_weight * parts["repetition"]
        return _score(row, reward, parts)

    def _check_shaping(
        self,
        count: int,
        lengths: Sequence[int] | None,
        max_length: int | None,
        tokens: Sequence[Sequence[Hashable]] | None,
    ) -> None:
        if self.settings.overlong_weight and (lengths is None or max_length is None):
            raise UserError("rewards.overlong_weight is set: pass lengths and max_length (tokens)")
        for name, given in (("lengths", lengths), ("tokens", tokens)):
            if given is not None and len(given) != count:
                raise ValueError(f"{count} requests but {len(given)} {name}")


def _parts(row: _Row) -> dict[str, float]:
    return {"raw": row.reward, "format": float(row.answer is not None), **(row.parts or {})}


def _score(row: _Row, reward: float, parts: dict[str, float]) -> Score:
    return Score(reward, row.request.verifier_type, row.answer, parts, row.error)


def gold_problem(
    verifier_type: str,
    gt: str,
    *,
    question: str = "",
    box_space: str | None = None,
    image_size: tuple[int, int] | None = None,
) -> str | None:
    """Why a gold cannot be scored, in words for the user; None when it can.

    For use when data is built: such a record is to be dropped there, with this reason, and never
    reaches training. Cheap: maths is judged by its text, not by the parser; for that see
    ``MixedReward.gold_problems``.

    Args:
        verifier_type: one of ``schema.VERIFIER_TYPES``.
        gt: the gold.
        question: where options may be listed.
        box_space: one of ``schema.BOX_SPACES``, for boxes.
        image_size: (width, height) of the original image; None leaves out whether a box in its
            pixels lies on it.
    """
    return _gold_problem(
        ScoreRequest(
            verifier_type, gt, "", question=question, box_space=box_space, image_size=image_size
        )
    )


def _gold_problem(request: ScoreRequest) -> str | None:
    if request.verifier_type not in VERIFIERS:
        return _unknown(request.verifier_type)
    if not request.gt.strip():
        return "gold is empty"
    return VERIFIERS[request.verifier_type].gold_problem(request)


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
        "reward/extracted_frac": _mean([score.parts["format"] for score in scores]),
        "reward/failed_frac": _mean([float(score.failed) for score in scores]),
    }
    sound = [score for score in scores if not score.failed]
    if sound:
        metrics["reward/mean"] = _mean([score.parts["raw"] for score in sound])
    for name in sorted({score.verifier_type for score in scores}):
        raw = [score.parts["raw"] for score in sound if score.verifier_type == name]
        if raw:
            metrics[f"reward/{name}"] = _mean(raw)
        failed = sum(score.failed for score in scores if score.verifier_type == name)
        if failed:
            metrics[f"reward/failed/{name}"] = float(failed)
    for part in ("structure", "overlong", "repetition"):
        values = [score.parts[part] for score in scores if part in score.parts]
        if values:
            metrics[f"reward/part/{part}"] = _mean(values)
    return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _unknown(name: str) -> str:
    return f"verifier_type {name!r} is not one of {', '.join(VERIFIERS)}"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
