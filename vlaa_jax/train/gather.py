"""Sampling and scoring a step's groups; with dynamic sampling, only the useful ones stay.

Dynamic sampling (DAPO, arXiv 2503.14476): a group whose completions all got the same reward has no
advantage and teaches nothing. Such groups are replaced by groups of further prompts, until the
batch is full or a cap on extra rollouts is met. Usefulness is judged by the unshaped reward.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vlaa_jax.data.loaders.loader import Loader
from vlaa_jax.parallel import hosts
from vlaa_jax.policy.groups import Groups, concatenate, varied
from vlaa_jax.policy.prompts import Placed, Prompt
from vlaa_jax.policy.sampler import Sampler
from vlaa_jax.policy.scoring import CompletionScorer
from vlaa_jax.policy.spread import Deal, exchange, taken
from vlaa_jax.rewards.mixed import check_failed
from vlaa_jax.rollout.engine import Rollout
from vlaa_jax.schema import Score
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.train.metrics import StepClock

SCORING_THREADS = 4


class Gathered(NamedTuple):
    """What a step trains on, and what it took to get there.

    Attributes:
        groups: as many groups as the batch has.
        scores: of everything that was sampled, kept or not.
        constant_frac: share of sampled groups whose completions were all paid the same.
        rounds: rollouts that were needed.
        sampled_tokens: tokens of everything that was sampled.
    """

    groups: Groups
    scores: list[Score]
    constant_frac: float
    rounds: int
    sampled_tokens: int


class Share(NamedTuple):
    """Some prompts of a batch, by their places in it, and what is known of their completions."""

    places: list[int]
    texts: list[list[str]]
    scoring: "Future[list[Score]]"


class Pending(NamedTuple):
    """Groups whose scores are still being computed in a thread."""

    prompts: list[Prompt]
    rollout: Rollout
    shares: list[Share]

    def wait(self, max_failed_frac: float, step: int) -> Groups:
        """The groups with the scores of all hosts, and the texts of this one.

        Raises:
            UserError: more scores failed than rewards.max_failed_frac allows.
        """
        completions = self.rollout.length_PG.shape[1]
        texts: list[list[str]] = [[]] * len(self.prompts)
        own: dict[int, list[Score]] = {}
        for share in self.shares:
            scores = share.scoring.result()
            for number, place in enumerate(share.places):
                texts[place] = share.texts[number]
                own[place] = scores[number * completions :][:completions]
        flat = [score for group in exchange(own, len(self.prompts)) for score in group]
        check_failed(flat, max_failed_frac, where=f"step {step}")
        return Groups(self.prompts, self.rollout, texts, flat)


@contextmanager
def scoring_threads() -> Iterator[Executor]:
    """Threads that score what has ended while the device goes on.

    Several, so that a hanging formula or a slow judge in one share does not hold up the next. After
    an interrupt nothing that waits is begun any more: finished steps are to be saved at once.
    """
    pool = ThreadPoolExecutor(SCORING_THREADS, thread_name_prefix="scoring")
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


@dataclass(frozen=True)
class Gatherer:
    """Draws batches of prompts, their completions, and what these are paid.

    Attributes:
        settings: of the run.
        loader: gives the prompts.
        sampler: draws the completions.
        scorer: reads and scores them.
        placed: the step's prompts on the devices.
        threads: score while the device goes on.
        deal: which host scores which completions; None where there is one.
    """

    settings: GrpoSettings
    loader: Loader[list[Prompt]]
    sampler: Sampler
    scorer: CompletionScorer
    placed: Placed
    threads: Executor
    deal: Deal | None = None

    def sample(
        self, params: Mapping[str, Any], step: int, round_: int, clock: StepClock
    ) -> Pending:
        """Draws a batch and its completions, and has these scored while others still grow.

        A reward head computes on the same devices: it waits, and works when they are free.
        """
        prompts = next(self.loader)
        clock.lap("data")
        shares: list[Share] = []
        owner_P = self.deal.owner_P(len(prompts)) if self.deal and hosts.count() > 1 else None

        def score(places: list[int], part: Rollout) -> None:
            if owner_P is not None:
                own = np.flatnonzero(owner_P[places] == hosts.index()).tolist()
                places, part = [places[n] for n in own], taken(part, own)
                if not own:
                    return
            texts = self.scorer.texts(part)
            job = self.threads.submit(self.scorer.score, [prompts[i] for i in places], texts, part)
            shares.append(Share(places, texts, job))

        alone = self.scorer.reward.uses_devices
        weights = self.sampler.weights(params)
        clock.lap("reshard")
        rollout = self.sampler(
            weights,
            prompts,
            self.sampler.keys(step, round_ * len(prompts), len(prompts)),
            place=self.placed if self._shares_parts else None,
            on_finished=None if alone else score,
        )
        clock.lap("rollout")
        if alone:
            score(list(range(len(prompts))), rollout)
        return Pending(prompts, rollout, shares)

    @property
    def _shares_parts(self) -> bool:
        """Whether the update will want the same arrays: where it takes as many prompts at once."""
        settings = self.settings
        same = self.sampler.at_once == settings.micro_prompts
        return same and not settings.algo.dynamic_sampling

    def wait(self, pending: Pending, step: int) -> Groups:
        """The groups with their scores."""
        groups = pending.wait(self.settings.rewards.max_failed_frac, step)
        if hosts.count() > 1 and hosts.is_writer():  # what is written down is read whole
            groups = groups._replace(texts=self.scorer.texts(groups.rollout))
        return groups

    def refill(
        self, params: Mapping[str, Any], step: int, first: Groups, clock: StepClock
    ) -> Gathered:
        """Replaces groups that teach nothing, as far as algo.dynamic_sampling allows."""
        clock.lap("reward")
        wanted, groups, rounds = len(first.prompts), first, 1
        useful = varied(groups.raw_PG)
        while useful.sum() < wanted and rounds <= self.settings.algo.dynamic_sampling:
            more = self.wait(self.sample(params, step, rounds, clock), step)
            clock.lap("reward")
            groups = concatenate(groups, more)
            useful = varied(groups.raw_PG)
            rounds += 1
        scores, share = groups.scores, float(np.mean(~useful))
        tokens = int(groups.rollout.length_PG.sum())
        if rounds > 1:
            # The useful ones first, as they were drawn; the rest fills what the cap left open.
            groups = groups.take(np.argsort(~useful, kind="stable")[:wanted].tolist())
        return Gathered(groups, scores, share, rounds, tokens)
