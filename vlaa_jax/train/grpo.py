"""The GRPO loop: batch, rollout, reward, advantage, update, log, save (arXiv 2402.03300)."""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import jax.numpy as jnp
import numpy as np

from vlaa_jax.algos import kl, losses
from vlaa_jax.models.qwen_vl.flops import group_flops
from vlaa_jax.parallel.peak import peak_flops
from vlaa_jax.rewards.mixed import reward_metrics
from vlaa_jax.rollout.engine import Rollout
from vlaa_jax.schema import UserError
from vlaa_jax.train.gather import Gathered, Groups, refill, sample, scoring_threads
from vlaa_jax.train.metrics import StepClock
from vlaa_jax.train.prompts import Prompt
from vlaa_jax.train.rollout_log import write_rollouts
from vlaa_jax.train.run import Run
from vlaa_jax.train.scoring import rewards_array
from vlaa_jax.train.step import KL_ESTIMATORS, GroupBatch, Totals

Metrics = dict[str, float]


def train(run: Run) -> None:
    """Runs GRPO from wherever the run stands to its last step."""
    settings = run.settings
    with scoring_threads() as scorer:
        for step in range(run.progress.step, settings.run.steps):
            clock = StepClock()
            run.new_step()
            pending = sample(run, step, 0, scorer, clock)
            early = None
            # Where every group stays, work while they are scored; a reward head needs the devices.
            if not (settings.algo.dynamic_sampling or run.reward.uses_devices):
                early = score_logprobs(run, pending.prompts, pending.rollout)
                clock.lap("score")
            gathered = refill(run, step, pending.wait(run, step), scorer, clock)
            clock.lap("reward")
            groups = gathered.groups
            old_PGT, ref_PGT = early or score_logprobs(run, groups.prompts, groups.rollout)
            clock.lap("score")

            advantages_PG = advantages(run, groups, old_PGT, ref_PGT)
            update = apply_updates(run, groups, advantages_PG, old_PGT, ref_PGT)
            clock.lap("update")

            metrics = {**reward_metrics(gathered.scores), **group_metrics(gathered), **update}
            metrics |= rollout_metrics(gathered, clock) | run.batch_metrics()
            metrics |= speed_metrics(run, groups, clock)
            if run.evaluates(step):
                metrics |= run.evaluate(step + 1)
            if run.logs_rollouts(step):
                write_rollouts(run.workdir, step, groups, advantages_PG)
            run.report(step, metrics, clock)
            # Only now is the step done: whatever interrupts it before makes it be done again.
            run.progress = run.progress._replace(
                step=step + 1, loader=run.loader.get_state(), kl_coef=float(run.kl.coef)
            )
            if run.saves(step):
                run.save()


def chunks(run: Run, count: int, size: int) -> Iterator[slice]:
    """Slices of `size` prompts; 0 takes all of `count` at once."""
    size = size or count
    yield from (slice(start, start + size) for start in range(0, count, size))


def score_logprobs(
    run: Run, prompts: Sequence[Prompt], rollout: Rollout
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities under the sampling policy and under the reference, [P, G, T] each.

    With one update per rollout the trainer's own first pass is the old policy; the sampler's
    numbers stand in for it here and are only used for the KL in the reward.
    """
    algo = run.settings.algo
    old = [rollout.logprobs_PGT]
    ref = [np.zeros_like(rollout.logprobs_PGT)]
    if algo.updates_per_rollout > 1:
        old = list(_logprobs(run, run.params, prompts, rollout))
    if algo.kl_coef:
        ref = list(_logprobs(run, run.reference, prompts, rollout))
    return np.concatenate(old), np.concatenate(ref)


def _logprobs(
    run: Run, params: Mapping[str, Any], prompts: Sequence[Prompt], rollout: Rollout
) -> Iterator[np.ndarray]:
    for part in chunks(run, len(prompts), run.micro_prompts):
        inputs = run.place(prompts[part])
        tokens = run.put(rollout.tokens_PGT[part])
        yield np.asarray(run.steps.score(params, inputs, tokens, run.allowed_V))


def advantages(run: Run, groups: Groups, old_PGT: np.ndarray, ref_PGT: np.ndarray) -> np.ndarray:
    """Group advantages [P, G]; computed on the device."""
    algo, mask_PGT = run.settings.algo, groups.rollout.mask_PGT
    rewards_PG = rewards_array(groups.scores, groups.rollout.length_PG.shape)
    valid_PG = ~np.isnan(rewards_PG)
    if algo.kl_coef and algo.kl_in_reward:
        penalty = KL_ESTIMATORS[algo.kl_estimator](old_PGT, ref_PGT, jnp.asarray(mask_PGT))
        paid_PG = jnp.asarray(rewards_PG)
        rewards_PG = np.asarray(
            kl.kl_penalised_rewards(paid_PG, penalty, jnp.asarray(mask_PGT), coef=run.kl.coef)
        )
    return np.asarray(run.steps.advantages(run.put(rewards_PG), run.put(valid_PG)))


def group_metrics(gathered: Gathered) -> Metrics:
    """What the sampled groups looked like and how many rollouts they took."""
    return {
        "group/zero_variance_frac": gathered.constant_frac,
        "group/rollouts": float(gathered.rounds),
    }


def apply_updates(
    run: Run,
    groups: Groups,
    advantages_PG: np.ndarray,
    old_PGT: np.ndarray,
    ref_PGT: np.ndarray,
) -> Metrics:
    """All optimizer updates of a step, each over its share of the prompts."""
    algo, prompts, rollout = run.settings.algo, groups.prompts, groups.rollout
    mask_PGT = rollout.mask_PGT
    if algo.mask_truncated:
        mask_PGT = mask_PGT & ~rollout.truncated_PG[..., None]
    reports: list[losses.Diagnostics] = []
    norms, loss = [], 0.0
    per_update = len(prompts) // algo.updates_per_rollout
    for start in range(0, len(prompts), per_update):
        share = slice(start, start + per_update)
        own = mask_PGT[share]
        totals = Totals(jnp.float32(own.sum()), jnp.float32(own.any(-1).sum()))
        grads, own_reports = None, []
        for part in chunks(run, per_update, run.micro_prompts):
            rows = slice(start + part.start, start + part.stop)
            arrays = (
                rollout.tokens_PGT,
                mask_PGT,
                advantages_PG,
                old_PGT,
                ref_PGT,
                rollout.logprobs_PGT,
            )
            batch = GroupBatch(run.place(prompts[rows]), *(run.put(a[rows]) for a in arrays))
            more, (part_loss, report) = run.steps.gradients(
                run.state.trainable, run.frozen, batch, totals, run.kl.coef, run.allowed_V
            )
            grads = more if grads is None else run.steps.add(grads, more)
            own_reports.append(report)
            loss += float(part_loss)
        run.state, norm = run.steps.apply(run.state, grads)
        norms.append(float(norm))
        reports.append(reduce(losses.merge_diagnostics, own_reports))
        _steer_kl(run, reports[-1], int(own.any(-1).sum()))
    _stop_when_skipping(run)
    summary = losses.summarise_diagnostics(reduce(losses.merge_diagnostics, reports))
    return _update_metrics(run, summary, loss / algo.updates_per_rollout, norms)


def _steer_kl(run: Run, report: losses.Diagnostics, sequences: int) -> None:
    # An update without a single token has measured nothing; its 0 is no small divergence.
    if sequences and run.settings.algo.kl_coef and run.settings.algo.kl_target:
        mean = losses.summarise_diagnostics(report)["kl"]
        run.kl = kl.adaptive_kl(run.kl, mean, sequences)


def _stop_when_skipping(run: Run) -> None:
    skipped, most = int(run.state.skipped), run.settings.optimizer.max_skipped
    if skipped > most:
        raise UserError(
            f"{skipped} updates had non-finite gradients (optimizer.max_skipped={most}); "
            "lower optimizer.lr or look at the last rollouts"
        )


def _update_metrics(
    run: Run, summary: Mapping[str, Any], loss: float, norms: Sequence[float]
) -> Metrics:
    applied = int(run.state.updates) - int(run.state.skipped)
    divergence = {"policy/kl": float(summary["kl"]), "policy/kl_coef": float(run.kl.coef)}
    return {
        **(divergence if run.settings.algo.kl_coef else {}),
        "train/loss": loss,
        "train/grad_norm": float(np.mean(norms)),
        "train/lr": float(run.schedule(max(applied - 1, 0))),
        "train/skipped": float(run.state.skipped),
        "policy/entropy": float(summary["entropy"]),
        "policy/ratio_clip_frac": float(summary["clip_frac"]),
        "policy/logprob_gap_mean": float(summary["logprob_gap"]),
        "policy/logprob_gap_max": float(summary["logprob_gap_max"]),
    }


def speed_metrics(run: Run, groups: Groups, clock: StepClock) -> Metrics:
    """FLOP/s of the update, of real tokens and patches alone, and their share of the peak (MFU).

    Counted as three forward passes, a backward pass being two: with frozen parts or LoRA some of
    that work is not done, and the figure is an upper bound.
    """
    encoded = [prompt.encoded for prompt in groups.prompts]
    forward = group_flops(
        run.checkpoint.config,
        [sample.length for sample in encoded],
        groups.rollout.length_PG.tolist(),
        [grid for sample in encoded for grid in sample.grids],
    )
    speed = 3 * forward / clock.seconds["update"]
    devices = run.mesh.devices.reshape(-1).tolist()
    peak = peak_flops(devices[0])
    share = {"train/mfu": speed / (peak * len(devices))} if peak else {}
    return {"train/tflop_per_s": speed / 1e12, **share}


def rollout_metrics(gathered: Gathered, clock: StepClock) -> Metrics:
    """Lengths and speed: of the groups trained on, and of everything that was sampled."""
    rollout = gathered.groups.rollout
    tokens = float(rollout.length_PG.sum())
    return {
        "rollout/length_mean": float(rollout.length_PG.mean()),
        "rollout/truncated_frac": float(rollout.truncated_PG.mean()),
        "rollout/tokens_per_s": gathered.sampled_tokens / clock.seconds["rollout"],
        "train/tokens_per_s": tokens / clock.seconds["update"],
        "padding/completion_frac": 1.0 - tokens / rollout.tokens_PGT.size,
    }
