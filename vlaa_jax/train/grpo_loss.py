"""The GRPO loss of a micro-batch, as settings put it together (arXiv 2402.03300, equation 3).

It is normalised by totals of the whole global mini-batch that are known before the first
micro-batch, so gradient accumulation is exact.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vlaa_jax.algos import advantages, kl, losses
from vlaa_jax.models.qwen_vl.model import PromptInputs
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.settings.grpo import AlgoSettings

Array = jax.Array

ADVANTAGES: dict[str, Callable[..., Array]] = {
    "grpo": advantages.grpo_advantages,
    "mean_only": advantages.mean_only_advantages,
    "leave_one_out": advantages.leave_one_out_advantages,
    "batch_std": advantages.batch_std_advantages,
}
KL_ESTIMATORS: dict[str, Callable[..., Array]] = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3}


class GroupBatch(NamedTuple):
    """P prompts with G completions each, ready for the loss.

    Attributes:
        prompt: the prompts.
        tokens_PGT: completion tokens.
        mask_PGT: True on tokens that take part in the loss.
        advantages_PG: one number per completion; 0 for failed scores.
        old_logprobs_PGT: of the policy that sampled.
        ref_logprobs_PGT: of the reference model; zeros where there is none.
        sampler_logprobs_PGT: as the sampler computed them.
    """

    prompt: PromptInputs
    tokens_PGT: Array
    mask_PGT: Array
    advantages_PG: Array
    old_logprobs_PGT: Array
    ref_logprobs_PGT: Array
    sampler_logprobs_PGT: Array


class Context(NamedTuple):
    """What every micro-batch of an update shares.

    Attributes:
        tokens: float32, tokens of the whole mini-batch that take part in the loss.
        sequences: float32, completions with such tokens.
        kl_coef: float32, current KL coefficient.
        allowed_V: bool, ids that are sampled at all.
    """

    tokens: Array
    sequences: Array
    kl_coef: Array
    allowed_V: Array


class Report(NamedTuple):
    """What the loss of a micro-batch says besides its value.

    Attributes:
        diagnostics: sums over tokens.
        logprobs_PGT: of the policy before the update, as the loss computed them.
        entropy_PGT: of the distribution each token was drawn from, in nats.
    """

    diagnostics: losses.Diagnostics
    logprobs_PGT: Array
    entropy_PGT: Array


def grpo_loss(
    distribution: Distribution,
    algo: AlgoSettings,
    max_new_tokens: int,
    params: Any,
    batch: GroupBatch,
    context: Context,
) -> tuple[Array, Report]:
    """Surrogate + KL penalty - entropy bonus of one micro-batch.

    Args:
        distribution: the policy's.
        algo: which surrogate, aggregation and terms.
        max_new_tokens: the constant of ``constant_length``.
        params: all parameters.
        batch: the micro-batch.
        context: totals and coefficients of the update it is part of.

    Returns:
        Its share of the update's loss, and what there is to say of it.
    """
    mask = batch.mask_PGT
    logprobs, entropy = distribution.completion_logprobs(
        params,
        batch.prompt,
        batch.tokens_PGT,
        context.allowed_V,
        entropy_gradient=algo.entropy_coef != 0,
    )
    # With one update per rollout the old policy *is* the current one; no second pass is needed.
    on_policy = algo.updates_per_step == 1
    old = jax.lax.stop_gradient(logprobs) if on_policy else batch.old_logprobs_PGT
    per_token = _surrogate(algo, logprobs, old, batch.advantages_PG, mask)
    if algo.importance_cap:
        per_token *= losses.truncated_importance_weights(
            old, batch.sampler_logprobs_PGT, mask, cap=algo.importance_cap
        )
    penalty = jnp.zeros_like(logprobs)
    if algo.kl_coef:
        penalty = KL_ESTIMATORS[algo.kl_estimator](logprobs, batch.ref_logprobs_PGT, mask)
        if not algo.kl_in_reward:
            per_token += context.kl_coef * penalty
    if algo.entropy_coef:
        per_token -= algo.entropy_coef * entropy
    loss = _aggregate(algo, per_token, mask, context, max_new_tokens)
    diagnostics = _diagnose(algo, batch, logprobs, old, entropy, penalty)
    return loss, Report(diagnostics, *jax.lax.stop_gradient((logprobs, entropy)))


def _surrogate(
    algo: AlgoSettings, logprobs: Array, old: Array, advantages_PG: Array, mask: Array
) -> Array:
    clip = losses.Clip(algo.clip_low, algo.clip_high)
    if algo.loss == "gspo":
        return losses.gspo_surrogate(logprobs, old, advantages_PG, mask, clip=clip)
    if algo.loss == "cispo":
        return losses.cispo_surrogate(logprobs, old, advantages_PG, mask, clip=clip)
    return losses.clipped_surrogate(
        logprobs, old, advantages_PG, mask, clip=clip, dual_clip=algo.dual_clip or None
    )


def _aggregate(
    algo: AlgoSettings, per_token: Array, mask: Array, totals: Context, max_new_tokens: int
) -> Array:
    if algo.aggregation == "token_mean":
        return losses.token_mean(per_token, mask, totals.tokens)
    if algo.aggregation == "constant_length":
        return losses.constant_length(per_token, mask, totals.sequences, length=max_new_tokens)
    return losses.sequence_mean(per_token, mask, totals.sequences)


def _diagnose(
    algo: AlgoSettings,
    batch: GroupBatch,
    logprobs: Array,
    old: Array,
    entropy: Array,
    penalty: Array,
) -> losses.Diagnostics:
    mask = batch.mask_PGT
    tokens = losses.count_tokens(mask)
    own = losses.Diagnostics(
        {
            "entropy": jnp.sum(jnp.where(mask, entropy, 0.0)),
            "kl": jnp.sum(jnp.where(mask, penalty, 0.0)),
        },
        {"entropy": tokens, "kl": tokens},
        {},
    )
    figures = losses.sequence_ratio_diagnostics
    if algo.loss != "gspo":
        figures = partial(
            losses.ratio_diagnostics,
            dual_clip=algo.dual_clip or None,
            clips_weights=algo.loss == "cispo",
        )
    clip = losses.Clip(algo.clip_low, algo.clip_high)
    ratio = figures(logprobs, old, batch.advantages_PG, mask, clip=clip)
    # The gap is between two computations with the *same* weights.
    gap = losses.logprob_gap(old, batch.sampler_logprobs_PGT, mask)
    merged = [
        {k: v for d in (own, ratio, gap) for k, v in getattr(d, kind).items()}
        for kind in ("sums", "denominators", "maxima")
    ]
    return jax.lax.stop_gradient(losses.Diagnostics(*merged))
