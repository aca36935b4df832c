"""One reward per sample: the record's verifier type picks the verifier, nothing is weighted.

format is implicit     no valid answer: reward 0, whatever the verifier
broken is not wrong    a scorer that fails yields NaN with a reason, never 0
raw before shaped      ``parts["raw"]`` is the verifier's word; options are added on top
"""

import importlib
import math
from collections.abc import Hashable, Sequence

from vlaa_jax.rewards.extract import extract_answer, has_strict_structure
from vlaa_jax.rewards.metrics import check_failed, reward_metrics
from vlaa_jax.rewards.open_ended import AnswerScorer
from vlaa_jax.rewards.shaping import overlong_penalty, repetition_penalty
from vlaa_jax.rewards.verifier import Finish, Item, Setup, Verdict, Verifier, reason
from vlaa_jax.schema import VERIFIER_TYPES, Score, ScoreRequest, UserError
from vlaa_jax.settings.rewards import RewardSettings

__all__ = ["MixedReward", "RewardSettings", "check_failed", "reward_metrics"]


class MixedReward:
    """Scores model outputs; thread-safe, so that scoring can overlap device work.

    It holds a verifier for each row of ``schema.VERIFIER_TYPES``: ``make`` of the module of that
    name.

    Args:
        settings: all knobs.
        open_ended: a scorer to use instead of the one the settings name, e.g. the in-process
            reward head, which lives with the models.

    Raises:
        UserError: the settings name a backend that cannot be made from them.
    """

    def __init__(
        self, settings: RewardSettings | None = None, open_ended: AnswerScorer | None = None
    ) -> None:
        self.settings = settings or RewardSettings()
        setup = Setup(self.settings, open_ended)
        self._verifiers: dict[str, Verifier] = {
            name: importlib.import_module(f"vlaa_jax.rewards.{name}").make(setup)
            for name in VERIFIER_TYPES
        }
        self._held = [*self._verifiers.values()]

    @property
    def uses_devices(self) -> bool:
        """Whether ``score`` computes on the trainer's devices, as a reward head does.

        Then it must not overlap other work on the same mesh: with several devices, programs with
        collectives have to be dispatched in one order on all of them.
        """
        return any(verifier.uses_devices for verifier in self._verifiers.values())

    def start(self) -> None:
        """Begin what is slow to start, in the background; otherwise the first use waits."""
        for verifier in self._verifiers.values():
            verifier.start()

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
        answers = [extract_answer(request.response).answer for request in requests]
        verdicts = self._verdicts(requests, answers)
        scores = []
        for i, (request, answer, verdict) in enumerate(
            zip(requests, answers, verdicts, strict=True)
        ):
            parts = {"raw": verdict.reward, "format": float(answer is not None), **verdict.parts}
            reward = verdict.reward
            if shaped:
                said = tokens[i] if tokens is not None else None
                length = lengths[i] if lengths is not None else 0
                reward = self._shape(request.response, parts, length, max_length or 0, said)
            scores.append(Score(reward, request.verifier_type, answer, parts, verdict.error))
        return scores

    def gold_problems(self, requests: Sequence[ScoreRequest]) -> list[str | None]:
        """Why each request's gold cannot be scored, in words for the user; None where it can.

        For use when data is built: such a record is to be dropped there, with this reason, and
        never reaches training. A maths gold must parse, and be found equal to itself in time.

        Raises:
            UserError: the worker processes failed, so that nothing is known about the golds.
        """
        problems = [_unknown(r) or (None if r.gt.strip() else "gold is empty") for r in requests]
        for name, verifier in self._verifiers.items():
            sound = (i for i, problem in enumerate(problems) if problem is None)
            places = [i for i in sound if requests[i].verifier_type == name]
            if places:
                found = verifier.gold_problems([requests[i] for i in places])
                for i, problem in zip(places, found, strict=True):
                    problems[i] = problem
        return problems

    def close(self) -> None:
        """End worker processes and backends; once is enough, and twice does no harm."""
        held, self._held = self._held, []
        for verifier in held:
            verifier.close()

    def __enter__(self) -> "MixedReward":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _verdicts(
        self, requests: Sequence[ScoreRequest], answers: Sequence[str | None]
    ) -> list[Verdict]:
        """What the verifiers say; an output without an answer earns 0 from all of them."""
        problems = map(_unknown, requests)
        verdicts = [Verdict(error=problem) if problem else Verdict(0.0) for problem in problems]
        finishing: list[tuple[list[int], Finish]] = []
        for name, verifier in self._verifiers.items():
            asked = {
                i: Item(request, answer)
                for i, (request, answer) in enumerate(zip(requests, answers, strict=True))
                if answer and request.verifier_type == name
            }
            if asked:
                finishing.append(([*asked], _guarded(verifier, [*asked.values()])))
        # All have begun, so processes and servers are at work while rules score here.
        for places, finish in finishing:
            for i, verdict in zip(places, finish(), strict=True):
                verdicts[i] = verdict
        return verdicts

    def _shape(
        self,
        response: str,
        parts: dict[str, float],
        length: int,
        max_length: int,
        tokens: Sequence[Hashable] | None,
    ) -> float:
        """The reward with the options that are on; their values are added to ``parts``."""
        settings, reward = self.settings, parts["raw"]
        if weight := settings.format_weight:
            parts["structure"] = float(has_strict_structure(response))
            reward = (1 - weight) * reward + weight * parts["structure"]
        if settings.overlong_weight:
            parts["overlong"] = overlong_penalty(length, max_length, settings.overlong_buffer)
            reward += settings.overlong_weight * parts["overlong"]
        if settings.repetition_weight:
            said = response.split() if tokens is None else tokens
            parts["repetition"] = repetition_penalty(said, settings.repetition_ngram)
            reward += settings.repetition_weight * parts["repetition"]
        return reward

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


def _guarded(verifier: Verifier, items: Sequence[Item]) -> Finish:
    """Begin a batch; whatever a verifier raises is a failure of its items and of no others."""
    try:
        finish = verifier.begin(items)
    except Exception as error:
        failed = [Verdict(error=reason(error))] * len(items)
        return lambda: failed

    def finished() -> list[Verdict]:
        try:
            verdicts = finish()
            if len(verdicts) != len(items):
                raise ValueError(f"{len(items)} answers, but {len(verdicts)} verdicts")
        except Exception as error:
            return [Verdict(error=reason(error))] * len(items)
        return [_sound(verdict) for verdict in verdicts]

    return finished


def _sound(verdict: Verdict) -> Verdict:
    """A verdict whose error is set exactly when its reward is NaN."""
    if verdict.error is not None:
        return Verdict(math.nan, verdict.error, verdict.parts)
    if math.isfinite(verdict.reward):
        return verdict
    return Verdict(error=f"the score is {verdict.reward}", parts=verdict.parts)


def _unknown(request: ScoreRequest) -> str | None:
    if request.verifier_type in VERIFIER_TYPES:
        return None
    return f"verifier_type {request.verifier_type!r} is not one of {', '.join(VERIFIER_TYPES)}"
