"""GRPO: batch, rollout, reward, advantage, update, log, save (arXiv 2402.03300)."""

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.flops import group_flops
from vlaa_jax.parallel import hosts
from vlaa_jax.parallel.mesh import data_shards, make_mesh, replicated
from vlaa_jax.parallel.peak import flop_metrics
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.policy.groups import Groups
from vlaa_jax.policy.heldout import Heldout
from vlaa_jax.policy.logprobs import GroupLogprobs
from vlaa_jax.policy.micro import MicroPlan
from vlaa_jax.policy.pretrained import Pretrained, open_pretrained
from vlaa_jax.policy.prompts import Collator, Encoder, Placed, Prompt
from vlaa_jax.policy.reward_head import with_head
from vlaa_jax.policy.sampler import Sampler
from vlaa_jax.policy.scoring import CompletionScorer
from vlaa_jax.policy.spread import Deal
from vlaa_jax.rewards.mixed import reward_metrics
from vlaa_jax.rollout.engine import Rollout
from vlaa_jax.schema import Summary, UserError
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.train.console import header
from vlaa_jax.train.gather import Gathered, Gatherer, scoring_threads
from vlaa_jax.train.grpo_data import PromptData, open_data
from vlaa_jax.train.grpo_loss import grpo_loss
from vlaa_jax.train.grpo_update import Metrics, PolicyUpdate
from vlaa_jax.train.inputs import inputs, same_inputs
from vlaa_jax.train.learner import Learner
from vlaa_jax.train.metrics import StepClock
from vlaa_jax.train.opening import Opened
from vlaa_jax.train.rundir import RunDir
from vlaa_jax.train.validation import Benchmarks, Measure, Validation


def run(
    settings: GrpoSettings,
    found: Opened,
    console: Console,
    benchmarks: Benchmarks | None = None,
) -> Summary:
    """Trains a policy in a run directory, from wherever that stands to the last step.

    Args:
        settings: of the run.
        found: its directory and its records.
        console: where people read along.
        benchmarks: what to measure beside the held-out records, if anything.

    Raises:
        UserError: a checkpoint cannot be used, or weights do not fit the mesh.
    """
    began = time.monotonic()
    with RunDir(found.claim, console) as rundir:
        mesh = make_mesh(**dataclasses.asdict(settings.mesh))
        _check_shards(settings, data_shards(mesh))
        assert found.reward is not None
        reward = with_head(found.reward, settings.rewards, mesh, settings.model.dtype)
        rundir.closes(reward).start()
        pretrained = open_pretrained(settings.model, settings.data, mesh, reading=found.reading)
        deal = Deal(mesh, settings.rollout.at_once)
        data = open_data(settings, found, Encoder(pretrained, settings.data), rundir, deal)
        distribution = _distribution(settings, pretrained, mesh)
        learner = _learner(settings, pretrained, distribution, mesh)
        _begin(rundir, pretrained, data, learner)
        console.print(_header(settings, rundir.path, data, learner, mesh), highlight=False)

        sampler, held_sampler = _samplers(settings, pretrained, data, mesh)
        placed = Placed(sampler.collator)
        limit = settings.rollout.max_new_tokens
        scorer = CompletionScorer(reward, pretrained.chat, pretrained.processor, data.images, limit)
        measure = benchmarks(pretrained, mesh) if benchmarks else None
        validation = _validation(settings, data, held_sampler, scorer, deal, rundir, measure)
        allowed_V = jax.device_put(pretrained.allowed_V, replicated(mesh))
        plan = _plan(settings)
        logprobs = GroupLogprobs(distribution, placed, allowed_V, plan)
        coef = rundir.progress.task.get("kl_coef")
        update = PolicyUpdate(settings, learner, placed, plan, allowed_V, coef)

        if data.heldout:
            console.print(
                f"sampling {len(data.heldout)} held-out records (the first batch compiles)"
            )
        validation.measure(learner.params, "before")
        console.print(f"ready after {time.monotonic() - began:.0f} s")
        saving = rundir.saving(learner, settings.algo.updates_per_step)
        with scoring_threads() as threads, saving:
            gatherer = Gatherer(settings, data.loader, sampler, scorer, placed, threads, deal)
            parts = Parts(learner, gatherer, logprobs, update, pretrained.config, mesh)
            train(settings, rundir, parts, validation)
        after = validation.measure(learner.params, "after")
        validation.summary()
        return rundir.summary(after)


class Parts(NamedTuple):
    """What a step is made of."""

    learner: Learner
    gatherer: Gatherer
    logprobs: GroupLogprobs
    update: PolicyUpdate
    config: QwenVLConfig
    mesh: Mesh


def train(settings: GrpoSettings, rundir: RunDir, parts: Parts, validation: Validation) -> None:
    """The loop, from wherever the run stands to its last step."""
    learner, gatherer, update = parts.learner, parts.gatherer, parts.update
    for step in range(rundir.progress.step, rundir.steps):
        clock = StepClock()
        gatherer.placed.forget()
        pending = gatherer.sample(learner.params, step, 0, clock)
        early = None
        # Where every group stays, work while they are scored; a reward head needs the devices.
        if not (settings.algo.dynamic_sampling or gatherer.scorer.reward.uses_devices):
            early = old_and_reference(settings, parts, pending.prompts, pending.rollout)
            clock.lap("score")
        first = gatherer.wait(pending, step)
        hosts.leave_if_wanted(f"before the update of step {step + 1}")
        gathered = gatherer.refill(learner.params, step, first, clock)
        clock.lap("reward")
        groups = gathered.groups
        old_PGT, ref_PGT = early or old_and_reference(
            settings, parts, groups.prompts, groups.rollout
        )
        clock.lap("score")

        advantages_PG = update.advantages(groups, old_PGT, ref_PGT)
        metrics, figures = update(groups, advantages_PG, old_PGT, ref_PGT)
        clock.lap("update")

        metrics |= reward_metrics(gathered.scores) | rollout_metrics(gathered, clock)
        metrics |= gatherer.placed.padding() | speed_metrics(parts, groups, clock)
        if rundir.evaluates(step):
            metrics |= validation(learner.params, step + 1)
        if settings.run.logs_rollouts(step):
            rundir.rollouts.write(step, groups, advantages_PG, figures)
        rundir.report(step, metrics, clock, words(metrics))
        # Only now is the step done: whatever interrupts it before makes it be done again.
        position = rundir.progress._replace(
            step=step + 1, loader=gatherer.loader.get_state(), task={"kl_coef": update.kl_coef}
        )
        rundir.finish_step(position, learner)


def old_and_reference(
    settings: GrpoSettings, parts: Parts, prompts: Sequence[Prompt], rollout: Rollout
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities under the sampling policy and under the reference, [P, G, T] each.

    With one update per step the trainer's own first pass is the old policy; the sampler's
    numbers stand in for it here and are only used for the KL in the reward.
    """
    learner, algo = parts.learner, settings.algo
    old, ref = rollout.logprobs_PGT, np.zeros_like(rollout.logprobs_PGT)
    if algo.updates_per_step > 1:
        old = parts.logprobs(learner.params, prompts, rollout)
    if algo.kl_coef:
        ref = parts.logprobs(learner.reference, prompts, rollout)
    return old, ref


def words(metrics: Metrics) -> list[str]:
    """What the terminal says of a step."""
    reward = metrics.get("reward/mean", float("nan"))
    said = [f"reward {reward:.3f}", f"format {metrics['reward/extracted_frac']:.2f}"]
    if "policy/kl" in metrics:
        said.append(f"kl {metrics['policy/kl']:.4f}")
    said.append(f"length {metrics['rollout/length_mean']:.1f}")
    return [*said, f"{metrics['rollout/tokens_per_s']:.0f} tok/s"]


def speed_metrics(parts: Parts, groups: Groups, clock: StepClock) -> Metrics:
    """FLOP/s of the update, of real tokens and patches alone, and their share of the peak (MFU).

    Counted as three forward passes, a backward pass being two: with frozen parts or LoRA some of
    that work is not done, and the figure is an upper bound.
    """
    encoded = [prompt.encoded for prompt in groups.prompts]
    forward = group_flops(
        parts.config,
        [sample.length for sample in encoded],
        groups.rollout.length_PG.tolist(),
        [grid for sample in encoded for grid in sample.grids],
    )
    return flop_metrics(3 * forward / clock.seconds["update"], parts.mesh)


def rollout_metrics(gathered: Gathered, clock: StepClock) -> Metrics:
    """Lengths and speed: of the groups trained on, and of everything that was sampled."""
    rollout = gathered.groups.rollout
    tokens = float(rollout.length_PG.sum())
    return {
        "group/zero_variance_frac": gathered.constant_frac,
        "group/rollouts": float(gathered.rounds),
        "rollout/length_mean": float(rollout.length_PG.mean()),
        "rollout/truncated_frac": float(rollout.truncated_PG.mean()),
        "rollout/tokens_per_s": gathered.sampled_tokens / clock.seconds["rollout"],
        "train/tokens_per_s": tokens / clock.seconds["update"],
    }


def _begin(
    rundir: RunDir,
    pretrained: Pretrained,
    data: PromptData,
    learner: Learner,
) -> None:
    """Reads the weights and goes to where the run stands, if its inputs are still the same."""
    progress = learner.load(rundir.checkpoints) or rundir.progress
    held = [prompt.record for prompt in data.heldout]
    now = inputs(pretrained.path, data.images, data.records, held)
    rundir.begin(same_inputs(data.resume(progress), now), pretrained.sidecars)


def _header(
    settings: GrpoSettings, workdir: Path, data: PromptData, learner: Learner, mesh: Mesh
) -> str:
    kinds = Counter(record.verifier_type or "" for record in data.records)
    told = header(workdir, settings.model.checkpoint, *learner.count(), kinds, mesh)
    if settings.rollout.is_cut:
        told += (
            "\nnote       top_p, top_k or min_p cut the sampler's distribution, and the loss is "
            "taken of the whole one:\n           log-probabilities differ by more than rounding"
        )
    return told


def _plan(settings: GrpoSettings) -> MicroPlan:
    return MicroPlan.of(
        settings.rollout.prompts // settings.algo.updates_per_rollout,
        settings.micro_prompts,
        prompt=settings.data.max_prompt_tokens,
        answer=settings.rollout.max_new_tokens,
    )


def _distribution(settings: GrpoSettings, pretrained: Pretrained, mesh: Mesh) -> Distribution:
    return Distribution(
        pretrained.graphdef,
        temperature=settings.rollout.temperature,
        chunk=settings.algo.logprob_chunk,
        row_shards=data_shards(mesh),
        base_graphdef=pretrained.base_graphdef if settings.model.lora.rank else None,
    )


def _learner(
    settings: GrpoSettings, pretrained: Pretrained, distribution: Distribution, mesh: Mesh
) -> Learner:
    limit = settings.rollout.max_new_tokens
    return Learner(
        settings,
        pretrained,
        partial(grpo_loss, distribution, settings.algo, limit),
        updates=settings.run.steps * settings.algo.updates_per_step,
        mesh=mesh,
        keeps_reference=bool(settings.algo.kl_coef),
    )


def _samplers(
    settings: GrpoSettings, pretrained: Pretrained, data: PromptData, mesh: Mesh
) -> tuple[Sampler, Sampler | None]:
    """Of the prompts trained on, and of held-out ones where there are some."""
    collate = partial(Collator, pretrained, settings.data, mesh)
    make = partial(Sampler, pretrained, settings=settings.rollout, mesh=mesh, seed=settings.seed)
    own = make(collate(data.read))
    if not data.heldout:
        return own, None
    completions = settings.run.eval_completions
    return own, make(collate(data.read_heldout), completions=completions, like=own)


def _validation(
    settings: GrpoSettings,
    data: PromptData,
    sampler: Sampler | None,
    scorer: CompletionScorer,
    deal: Deal,
    rundir: RunDir,
    benchmarks: Measure | None,
) -> Validation:
    heldout = None
    if sampler is not None:
        heldout = Heldout(data.heldout, sampler, scorer, deal, seed=settings.seed)
    return Validation(heldout, rundir, data.images, benchmarks=benchmarks)


def _check_shards(settings: GrpoSettings, shards: int) -> None:
    sizes = {
        "rollout.prefill_prompts": settings.rollout.at_once,
        "algo.micro_prompts": settings.micro_prompts,
    }
    for name, size in sizes.items():
        if size % shards:
            raise UserError(
                f"{name}: {size} prompts at once cannot be dealt to {shards} data shards "
                "(mesh.data x mesh.fsdp); choose a multiple"
            )
