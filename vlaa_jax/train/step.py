"""The jitted parts of a GRPO step: scoring log-probabilities, gradients, update.

The loss of an update is normalised by totals of the whole global mini-batch that are known before
the first micro-batch, so gradient accumulation is exact.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from vlaa_jax.algos import advantages, kl, losses
from vlaa_jax.algos.logprobs import token_logprobs
from vlaa_jax.models.qwen_vl.lora import has_adapters
from vlaa_jax.models.qwen_vl.model import PromptInputs, QwenVL, completion_inputs
from vlaa_jax.settings.grpo import AlgoSettings
from vlaa_jax.train.state import TrainState, merge

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


class Totals(NamedTuple):
    """Counts over the whole mini-batch of an update."""

    tokens: Array
    sequences: Array


@dataclass(frozen=True)
class Policy:
    """The distribution that sampler and trainer share. Static under jit.

    Attributes:
        graphdef: structure of the model.
        temperature: divides the logits.
        chunk: tokens whose logits exist at the same time.
        row_shards: data shards of the mesh.
    """

    graphdef: nnx.GraphDef
    temperature: float
    chunk: int
    row_shards: int
    base_graphdef: nnx.GraphDef | None = None
    """Structure for parameters without LoRA branches, where `graphdef` has some."""

    def logprobs(
        self,
        params: Mapping[str, Any],
        prompt: PromptInputs,
        tokens_PGT: Array,
        allowed_V: Array,
        *,
        entropy_gradient: bool = False,
    ) -> tuple[Array, Array]:
        """Log-probability of each completion token and the entropy there, float32 [P, G, T]."""
        graphdef = self.graphdef
        if self.base_graphdef is not None and not has_adapters(params):
            graphdef = self.base_graphdef
        model: QwenVL = nnx.merge(graphdef, params)
        hidden = model.hidden_groups(prompt, completion_inputs(prompt, tokens_PGT))
        logprobs_N, entropy_N = token_logprobs(
            hidden.reshape(-1, hidden.shape[-1]),
            # The sampler multiplies in the activation dtype too: one policy, one head.
            model.head_kernel_DV.astype(model.dtype),
            tokens_PGT.reshape(-1),
            temperature=self.temperature,
            allowed_V=allowed_V,
            chunk=self.chunk or None,
            row_shards=self.row_shards,
            entropy_gradient=entropy_gradient,
        )
        return logprobs_N.reshape(tokens_PGT.shape), entropy_N.reshape(tokens_PGT.shape)


class Steps:
    """The compiled functions of a GRPO run."""

    def __init__(
        self,
        policy: Policy,
        algo: AlgoSettings,
        optimizer: optax.GradientTransformation,
        *,
        max_new_tokens: int,
    ) -> None:
        loss_fn = partial(_loss, policy, algo, max_new_tokens)

        def gradients(
            trainable: Any,
            frozen: Any,
            batch: GroupBatch,
            totals: Totals,
            coef: Array,
            allowed: Any,
        ) -> tuple[Any, tuple[Array, losses.Diagnostics]]:
            grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
            (loss, diagnostics), grads = grad_fn(trainable, frozen, batch, totals, coef, allowed)
            return grads, (loss, diagnostics)

        def score(params: Any, prompt: PromptInputs, tokens_PGT: Array, allowed: Any) -> Array:
            return policy.logprobs(params, prompt, tokens_PGT, allowed)[0]

        self.score = jax.jit(score)
        self.gradients = jax.jit(gradients)
        self.add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0)
        self.apply = jax.jit(partial(_apply, optimizer), donate_argnums=(0,))
        self.advantages = jax.jit(ADVANTAGES[algo.advantage])

    @property
    def compile_count(self) -> int:
        """Programs compiled so far."""
        jitted = (self.score, self.gradients, self.add, self.apply, self.advantages)
        return sum(f._cache_size() for f in jitted)  # type: ignore[attr-defined]


def _loss(
    policy: Policy,
    algo: AlgoSettings,
    max_new_tokens: int,
    trainable: Any,
    frozen: Any,
    batch: GroupBatch,
    totals: Totals,
    kl_coef: Array,
    allowed_V: Array,
) -> tuple[Array, losses.Diagnostics]:
    """Surrogate + KL penalty - entropy bonus of one micro-batch (arXiv 2402.03300, equation 3)."""
    mask = batch.mask_PGT
    logprobs, entropy = policy.logprobs(
        merge(trainable, frozen),
        batch.prompt,
        batch.tokens_PGT,
        allowed_V,
        entropy_gradient=algo.entropy_coef != 0,
    )
    # With one update per rollout the old policy *is* the current one; no second pass is needed.
    on_policy = algo.updates_per_rollout == 1
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
            per_token += kl_coef * penalty
    if algo.entropy_coef:
        per_token -= algo.entropy_coef * entropy
    loss = _aggregate(algo, per_token, mask, totals, max_new_tokens)
    diagnostics = _diagnose(algo, batch, logprobs, old, entropy, penalty)
    return loss, diagnostics


def _surrogate(
    algo: AlgoSettings, logprobs: Array, old: Array, advantages_PG: Array, mask: Array
) -> Array:
    clip = {"clip_low": algo.clip_low, "clip_high": algo.clip_high}
    if algo.loss == "gspo":
        return losses.gspo_surrogate(logprobs, old, advantages_PG, mask, **clip)
    if algo.loss == "cispo":
        return losses.cispo_surrogate(logprobs, old, advantages_PG, mask, **clip)
    dual = algo.dual_clip or None
    return losses.clipped_surrogate(logprobs, old, advantages_PG, mask, dual_clip=dual, **clip)


def _aggregate(
    algo: AlgoSettings, per_token: Array, mask: Array, totals: Totals, max_new_tokens: int
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
    ratio = figures(
        logprobs,
        old,
        batch.advantages_PG,
        mask,
        clip_low=algo.clip_low,
        clip_high=algo.clip_high,
    )
    # The gap is between two computations with the *same* weights.
    gap = losses.logprob_gap(old, batch.sampler_logprobs_PGT, mask)
    merged = [
        {k: v for d in (own, ratio, gap) for k, v in getattr(d, kind).items()}
        for kind in ("sums", "denominators", "maxima")
    ]
    return jax.lax.stop_gradient(losses.Diagnostics(*merged))


def _apply(
    optimizer: optax.GradientTransformation, state: TrainState, grads: Any
) -> tuple[TrainState, Array]:
    """One optimizer update; left out, and counted, when the gradient is not finite."""
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)

    def keep(new: Array, old: Array) -> Array:
        return jnp.where(finite, new, old)

    return (
        TrainState(
            jax.tree.map(keep, trainable, state.trainable),
            jax.tree.map(keep, opt_state, state.opt_state),
            state.updates + 1,
            state.skipped + ~finite,
        ),
        norm,
    )
