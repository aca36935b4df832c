"""Sampling and scoring a step's groups; with dynamic sampling, only the useful ones stay.

Dynamic sampling (DAPO, arXiv 2503.14476): a group whose completions all got the same reward has no
advantage and teaches nothing. Such groups are replaced by groups of further prompts, until the
batch is full or a cap on extra rollouts is met. Usefulness is judged by the unshaped reward.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from vlaa_jax.models.qwen_vl.model import PromptInputs
from vlaa_jax.rewards.mixed import check_failed
from vlaa_jax.rollout.engine import Rollout
from vlaa_jax.schema import Score
from vlaa_jax.train.groups import Groups, concatenate, varied
from vlaa_jax.train.metrics import StepClock
from vlaa_jax.train.prompts import Prompt
from vlaa_jax.train.run import Run
from vlaa_jax.train.scoring import requests_for, score_completions, texts_of

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

    def wait(self, run: Run, step: int) -> Groups:
        """The groups with their scores.

        Raises:
            UserError: more scores failed than rewards.max_failed_frac allows.
        """
        completions = self.rollout.length_PG.shape[1]
        texts: list[list[str]] = [[]] * len(self.prompts)
        by_prompt: list[list[Score]] = [[]] * len(self.prompts)
        for share in self.shares:
            scores = share.scoring.result()
            for number, place in enumerate(share.places):
                texts[place] = share.texts[number]
                by_prompt[place] = scores[number * completions :][:completions]
        flat = [score for group in by_prompt for score in group]
        check_failed(flat, run.reward.settings.max_failed_frac, where=f"step {step}")
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


def sample(run: Run, step: int, round_: int, scorer: Executor, clock: StepClock) -> Pending:
    """Draws a batch of prompts and its completions, and has these scored while others still grow.

    A reward head computes on the same devices: it waits, and works when they are free.
    """
    prompts = next(run.loader)
    clock.lap("data")
    limit = run.settings.rollout.max_new_tokens
    shares: list[Share] = []

    def score(places: list[int], part: Rollout) -> None:
        texts = texts_of(run.checkpoint.chat, part)
        requests = requests_for(
            [prompts[i] for i in places], texts, run.checkpoint.processor, run.image_root
        )
        job = scorer.submit(score_completions, run.reward, requests, part, limit)
        shares.append(Share(places, texts, job))

    alone = run.reward.uses_devices
    rollout = run.engine.generate(
        run.params,
        _parts(run, prompts),
        run.keys(step, round_ * len(prompts), len(prompts)),
        prefix_length=run.collate_on_mesh.prompt_bucket(prompts),
        on_finished=None if alone else score,
    )
    clock.lap("rollout")
    if alone:
        score(list(range(len(prompts))), rollout)
    return Pending(prompts, rollout, shares)


def _parts(run: Run, prompts: Sequence[Prompt]) -> Iterator[PromptInputs]:
    size = run.prefill_prompts
    # The trainer will want the same arrays where it takes as many prompts at once.
    shared = size == run.micro_prompts and not run.settings.algo.dynamic_sampling
    for start in range(0, len(prompts), size):
        part = prompts[start : start + size]
        yield run.place(part) if shared else run.collate(part)[0]


def refill(run: Run, step: int, first: Groups, scorer: Executor, clock: StepClock) -> Gathered:
    """Replaces groups that teach nothing, as far as algo.dynamic_sampling allows."""
    clock.lap("reward")
    wanted, groups, rounds = len(first.prompts), first, 1
    useful = varied(groups.raw_PG)
    while useful.sum() < wanted and rounds <= run.settings.algo.dynamic_sampling:
        more = sample(run, step, rounds, scorer, clock).wait(run, step)
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
