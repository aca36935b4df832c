"""Policy losses over sampled tokens: a surrogate per token, then an aggregation to a scalar.

Shapes: S stands for the leading axes of a batch of sequences: [P, G] or [B]. Log-probabilities are
[*S, T], advantages one per sequence [*S] (or per token [*S, T]), masks bool [*S, T].

Surrogates share the signature (logprobs, old_logprobs, advantages, mask) -> loss [*S, T], to be
minimised; aggregations share (loss, mask, total) -> scalar. So a recipe is one function of each.
Where the mask is False every per-token result is exactly 0 with gradient exactly 0, whatever stands
there (-inf and NaN included): inputs are replaced before arithmetic, not multiplied by 0 after it.

``total`` is always given from outside, counted over the whole global mini-batch. A mini-batch cut
into micro-batches, or spread over devices, then gives the same loss and gradient by plain
addition. Averaging per micro-batch would weigh tokens by how they happened to be cut.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

MAX_LOG_RATIO = 20.0
"""|log ratio| is held below this before exp. Beyond it (a factor of 5e8) the gradient is zero."""


def _masked(mask: Array, *arrays: Array) -> tuple[Array, ...]:
    """float32 copies with 0 where the mask is False."""
    for array in arrays:
        if array.shape != mask.shape:
            raise ValueError(f"values {array.shape} and mask {mask.shape} must agree in shape")
    return tuple(jnp.where(mask, array.astype(jnp.float32), 0.0) for array in arrays)


def _log_ratio(logprobs: Array, other_logprobs: Array, mask: Array) -> Array:
    logprobs, other_logprobs = _masked(mask, logprobs, other_logprobs)
    return jnp.clip(logprobs - other_logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def _per_token(advantages: Array, mask: Array) -> Array:
    """Advantages [*S] or [*S, T] as float32 [*S, T], 0 where masked."""
    if advantages.ndim == mask.ndim - 1:
        advantages = advantages[..., None]
    if advantages.ndim != mask.ndim or advantages.shape[:-1] != mask.shape[:-1]:
        raise ValueError(
            f"advantages {advantages.shape} fit neither sequences nor tokens of {mask.shape}"
        )
    return jnp.where(mask, advantages.astype(jnp.float32), 0.0)


class Clip(NamedTuple):
    """How far a ratio may move before it pulls no more: to 1 - low and 1 + high."""

    low: ArrayLike
    high: ArrayLike


PPO_CLIP, GSPO_CLIP, CISPO_CLIP = Clip(0.2, 0.2), Clip(3e-4, 4e-4), Clip(1.0, 4.0)


def _clipped(ratio: Array, advantages: Array, clip: Clip) -> Array:
    """-min(ratio A, clip(ratio) A)."""
    clipped_ratio = jnp.clip(ratio, 1.0 - clip.low, 1.0 + clip.high)
    return -jnp.minimum(ratio * advantages, clipped_ratio * advantages)


# ---------------------------------------------------------------------------- surrogates


def clipped_surrogate(
    logprobs: Float[Array, "*S T"],
    old_logprobs: Float[Array, "*S T"],
    advantages: Float[Array, "..."],
    mask: Bool[Array, "*S T"],
    *,
    clip: Clip = PPO_CLIP,
    dual_clip: float | None = None,
) -> Float[Array, "*S T"]:
    """PPO's clipped token ratio, arXiv 1707.06347, eq. 7, as in GRPO, arXiv 2402.03300, eq. 3.

    ``clip.high`` above ``clip.low`` is DAPO's clip-higher (arXiv 2503.14476, section 3.1: 0.2 and
    0.28). ``dual_clip`` c > 1 bounds the loss of a negative advantage by c |A| (arXiv 1912.09729;
    3 is usual): without it the ratio of a token that has become likely is unbounded.

    Raises ValueError for a dual_clip of 1 or less, or advantages of an unfitting shape.
    """
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip must be greater than 1, not {dual_clip}")
    advantages = _per_token(advantages, mask)
    loss = _clipped(jnp.exp(_log_ratio(logprobs, old_logprobs, mask)), advantages, clip)
    if dual_clip is not None:
        loss = jnp.where(advantages < 0, jnp.minimum(loss, -dual_clip * advantages), loss)
    return loss


def sequence_log_ratio(
    logprobs: Float[Array, "*S T"], old_logprobs: Float[Array, "*S T"], mask: Bool[Array, "*S T"]
) -> Float[Array, "*S"]:
    """Mean over the sequence's tokens of log pi - log pi_old; 0 for a sequence without tokens."""
    logprobs, old_logprobs = _masked(mask, logprobs, old_logprobs)
    tokens = jnp.maximum(jnp.sum(mask, axis=-1), 1)
    mean = jnp.sum(logprobs - old_logprobs, axis=-1) / tokens
    return jnp.clip(mean, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def gspo_surrogate(
    logprobs: Float[Array, "*S T"],
    old_logprobs: Float[Array, "*S T"],
    advantages: Float[Array, "..."],
    mask: Bool[Array, "*S T"],
    *,
    clip: Clip = GSPO_CLIP,
) -> Float[Array, "*S T"]:
    """GSPO: one length-normalised ratio per sequence, arXiv 2507.18071, equations 5, 7 and 13.

    s = exp(mean_t log pi - log pi_old) is clipped as a whole. In the token form returned here every
    token carries the value s while its gradient goes through its own log-probability, so that
    ``sequence_mean`` of it is GSPO's objective, value and gradient. The clip range is that of a
    mean log ratio: the paper's 3e-4 and 4e-4, three orders below PPO's.
    """
    log_ratio = sequence_log_ratio(logprobs, old_logprobs, mask)[..., None]
    (logprobs,) = _masked(mask, logprobs)
    # Value s, gradient s * grad log pi_t.
    own = logprobs - jax.lax.stop_gradient(logprobs)
    ratio = jnp.exp(jax.lax.stop_gradient(log_ratio) + own)
    return _clipped(ratio, _per_token(advantages, mask), clip)


def cispo_surrogate(
    logprobs: Float[Array, "*S T"],
    old_logprobs: Float[Array, "*S T"],
    advantages: Float[Array, "..."],
    mask: Bool[Array, "*S T"],
    *,
    clip: Clip = CISPO_CLIP,
) -> Float[Array, "*S T"]:
    """CISPO: clip the importance weight, keep every token's gradient, arXiv 2506.13585, equation 4.

    loss = -stop_gradient(clip(ratio, 1 - clip.low, 1 + clip.high)) A log pi. As in the paper there
    is no lower clip by default (a ratio is never below 0 = 1 - 1). Its value is not a policy
    objective; only its gradient means something.
    """
    ratio = jnp.exp(_log_ratio(logprobs, old_logprobs, mask))
    weight = jax.lax.stop_gradient(jnp.clip(ratio, 1.0 - clip.low, 1.0 + clip.high))
    (logprobs,) = _masked(mask, logprobs)
    return -weight * _per_token(advantages, mask) * logprobs


# ------------------------------------------------------------------ masks and aggregation


def count_tokens(mask: Bool[Array, "*S T"]) -> Int[Array, ""]:
    """Tokens that take part: the total for ``token_mean``."""
    return jnp.sum(mask, dtype=jnp.int32)


def token_mean(
    loss: Float[Array, "*S T"], mask: Bool[Array, "*S T"], total: ArrayLike
) -> Float[Array, ""]:
    """Sum / ``total`` tokens of the global mini-batch: DAPO, arXiv 2503.14476, eq. 8."""
    return jnp.sum(_masked(mask, loss)[0]) / jnp.maximum(total, 1)


def sequence_mean(
    loss: Float[Array, "*S T"], mask: Bool[Array, "*S T"], total: ArrayLike
) -> Float[Array, ""]:
    """Each sequence's token mean, summed, / ``total`` sequences: GRPO, arXiv 2402.03300, eq. 3.

    The published VLAA-Thinker objective. Tokens of long answers weigh less than those of short.
    """
    sums = jnp.sum(_masked(mask, loss)[0], axis=-1)
    tokens = jnp.maximum(jnp.sum(mask, axis=-1), 1)
    return jnp.sum(sums / tokens) / jnp.maximum(total, 1)


def constant_length(
    loss: Float[Array, "*S T"],
    mask: Bool[Array, "*S T"],
    total: ArrayLike,
    *,
    length: ArrayLike,
) -> Float[Array, ""]:
    """Sum over tokens / (``total`` sequences * fixed ``length``): Dr. GRPO, arXiv 2503.20783.

    ``length`` is the limit of new tokens, the same in every step, so that no answer's weight
    depends on how long it or its neighbours became.
    """
    return jnp.sum(_masked(mask, loss)[0]) / (jnp.maximum(total, 1) * length)


def masked_cross_entropy(
    logprobs: Float[Array, "*S T"], mask: Bool[Array, "*S T"], total: ArrayLike
) -> Float[Array, ""]:
    """SFT: -sum of the target tokens' log-probabilities / ``total`` target tokens."""
    return token_mean(-logprobs, mask, total)


# ------------------------------------------------------- sampler against trainer, diagnostics


def truncated_importance_weights(
    trainer_logprobs: Float[Array, "*S T"],
    sampler_logprobs: Float[Array, "*S T"],
    mask: Bool[Array, "*S T"],
    *,
    cap: ArrayLike = 2.0,
) -> Float[Array, "*S T"]:
    """min(pi_trainer / pi_sampler, cap), without gradient, to multiply a per-token loss by.

    Corrects for a sampler that rounds differently from the trainer (Yao et al. 2025, "Your
    efficient RL framework secretly brings you off-policy RL training"). Both log-probabilities
    belong to the *same* weights, those that sampled. 0 where masked.
    """
    ratio = jnp.exp(_log_ratio(trainer_logprobs, sampler_logprobs, mask))
    return jax.lax.stop_gradient(jnp.where(mask, jnp.minimum(ratio, cap), 0.0))


class Diagnostics(NamedTuple):
    """Figures that survive being cut into micro-batches: sums and denominators add, maxima max."""

    sums: dict[str, Array]
    denominators: dict[str, Array]
    maxima: dict[str, Array]


def merge_diagnostics(a: Diagnostics, b: Diagnostics) -> Diagnostics:
    """The figures of two disjoint sets of tokens together."""
    add, top = (lambda x, y: x + y), jnp.maximum
    return Diagnostics(
        jax.tree.map(add, a.sums, b.sums),
        jax.tree.map(add, a.denominators, b.denominators),
        jax.tree.map(top, a.maxima, b.maxima),
    )


def summarise_diagnostics(d: Diagnostics) -> dict[str, Array]:
    """``NAME`` = sum / denominator (0 when nothing was counted) and ``NAME_max``."""
    means = {k: v / jnp.maximum(d.denominators[k], 1) for k, v in d.sums.items()}
    return means | {f"{k}_max": v for k, v in d.maxima.items()}


def ratio_diagnostics(
    logprobs: Float[Array, "*S T"],
    old_logprobs: Float[Array, "*S T"],
    advantages: Float[Array, "..."],
    mask: Bool[Array, "*S T"],
    *,
    clip: Clip = PPO_CLIP,
    dual_clip: float | None = None,
    clips_weights: bool = False,
) -> Diagnostics:
    """Per token: ratio (and its maximum), clip_frac = clip_frac_low + clip_frac_high, approx_kl.

    clip_frac counts tokens whose gradient the clip removes: ratio too high with A > 0, too low with
    A < 0, or above ``dual_clip`` with A < 0. With ``clips_weights`` (CISPO, which bounds the weight
    of a gradient and removes none) it counts ratios outside of the bounds, whatever A is.
    approx_kl is k3 of the old policy against the new.
    """
    log_ratio = _log_ratio(logprobs, old_logprobs, mask)
    signs = _per_token(advantages, mask)
    ratio = jnp.exp(log_ratio)
    low, high = ratio < 1.0 - clip.low, ratio > 1.0 + clip.high
    if not clips_weights:
        low, high = low & (signs < 0), high & (signs > 0)
    if dual_clip is not None:
        high |= (ratio > dual_clip) & (signs < 0)
    return _ratio_figures(log_ratio, low, high, mask)


def sequence_ratio_diagnostics(
    logprobs: Float[Array, "*S T"],
    old_logprobs: Float[Array, "*S T"],
    advantages: Float[Array, "*S"],
    mask: Bool[Array, "*S T"],
    *,
    clip: Clip = GSPO_CLIP,
) -> Diagnostics:
    """The figures of ``ratio_diagnostics`` for GSPO's ratio: per sequence, not per token."""
    log_ratio = sequence_log_ratio(logprobs, old_logprobs, mask)
    ratio = jnp.exp(log_ratio)
    low = (ratio < 1.0 - clip.low) & (advantages < 0)
    high = (ratio > 1.0 + clip.high) & (advantages > 0)
    return _ratio_figures(log_ratio, low, high, jnp.any(mask, axis=-1))


def _ratio_figures(log_ratio: Array, low: Array, high: Array, mask: Array) -> Diagnostics:
    ratio = jnp.exp(log_ratio)
    figures = {
        "ratio": ratio,
        "clip_frac": low | high,
        "clip_frac_low": low,
        "clip_frac_high": high,
        "approx_kl": jnp.expm1(log_ratio) - log_ratio,
    }
    return _diagnostics(figures, mask, {"ratio": ratio})


def _diagnostics(figures: dict[str, Array], mask: Array, maxima: dict[str, Array]) -> Diagnostics:
    """Sums over the mask, its size as denominator, and maxima of non-negative figures."""
    sums = {name: jnp.sum(_masked(mask, value)[0]) for name, value in figures.items()}
    count = jnp.sum(mask, dtype=jnp.int32)
    tops = {k: jnp.max(_masked(mask, v)[0], initial=0.0) for k, v in maxima.items()}
    return jax.lax.stop_gradient(Diagnostics(sums, dict.fromkeys(sums, count), tops))


def logprob_gap(
    trainer_logprobs: Float[Array, "*S T"],
    sampler_logprobs: Float[Array, "*S T"],
    mask: Bool[Array, "*S T"],
    *,
    cap: ArrayLike = 2.0,
) -> Diagnostics:
    """How well sampler and trainer agree on the same weights.

    logprob_gap (and its maximum) is |log pi_trainer - log pi_sampler|; importance_capped_frac
    counts the tokens that ``truncated_importance_weights`` would cut at ``cap``.
    """
    trainer_logprobs, sampler_logprobs = _masked(mask, trainer_logprobs, sampler_logprobs)
    gap = trainer_logprobs - sampler_logprobs
    figures = {"logprob_gap": jnp.abs(gap), "importance_capped_frac": gap > jnp.log(cap)}
    return _diagnostics(figures, mask, {"logprob_gap": jnp.abs(gap)})
