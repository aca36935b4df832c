"""How far the policy has moved from the reference model: estimators and coefficient control.

With x = log pi(token) - log pi_ref(token) for a token sampled from pi (Schulman, "Approximating KL
divergence", http://joschu.net/blog/kl-approx.html):

    k1 = x                    unbiased value, high variance; its gradient averages to zero
    k2 = x^2 / 2              biased value; its gradient is that of KL(pi || pi_ref), unbiased
    k3 = exp(-x) - 1 + x      unbiased value, never negative; its gradient is that of
                              KL(pi_ref || pi), since (1 - exp(-x)) grad log pi averages to it

GRPO (arXiv 2402.03300, equation 4) puts k3 in the loss.

All estimators are elementwise over [..., T] and exactly 0, value and gradient, where the mask is
False, whatever stands there (-inf and NaN included). Two clamps keep one token from wrecking a
step: x is held within +-max_log_ratio before exponentials, the result within +-max_value (10 as in
OpenRLHF and verl). A clamped token has gradient zero. None switches a clamp off.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float


def _log_ratio(
    logprobs: Array, ref_logprobs: Array, mask: Array | None, max_log_ratio: float | None
) -> Array:
    logprobs, ref_logprobs = logprobs.astype(jnp.float32), ref_logprobs.astype(jnp.float32)
    if mask is not None:  # before the subtraction: -inf - -inf is NaN, in value and gradient
        logprobs, ref_logprobs = (jnp.where(mask, x, 0.0) for x in (logprobs, ref_logprobs))
    difference = logprobs - ref_logprobs
    if max_log_ratio is None:
        return difference
    return jnp.clip(difference, -max_log_ratio, max_log_ratio)


def _clamp(value: Array, max_value: float | None) -> Array:
    return value if max_value is None else jnp.clip(value, -max_value, max_value)


def k1(
    logprobs: Float[Array, "*S T"],
    ref_logprobs: Float[Array, "*S T"],
    mask: Bool[Array, "*S T"] | None = None,
    *,
    max_log_ratio: float | None = 20.0,
    max_value: float | None = 10.0,
) -> Float[Array, "*S T"]:
    """x. For the reward or for reports; in a loss its gradient is pure noise."""
    return _clamp(_log_ratio(logprobs, ref_logprobs, mask, max_log_ratio), max_value)


def k2(
    logprobs: Float[Array, "*S T"],
    ref_logprobs: Float[Array, "*S T"],
    mask: Bool[Array, "*S T"] | None = None,
    *,
    max_log_ratio: float | None = 20.0,
    max_value: float | None = 10.0,
) -> Float[Array, "*S T"]:
    """x^2 / 2. In a loss: the unbiased on-policy gradient of KL(pi || pi_ref)."""
    x = _log_ratio(logprobs, ref_logprobs, mask, max_log_ratio)
    return _clamp(0.5 * jnp.square(x), max_value)


def k3(
    logprobs: Float[Array, "*S T"],
    ref_logprobs: Float[Array, "*S T"],
    mask: Bool[Array, "*S T"] | None = None,
    *,
    max_log_ratio: float | None = 20.0,
    max_value: float | None = 10.0,
) -> Float[Array, "*S T"]:
    """exp(-x) - 1 + x, GRPO's penalty (arXiv 2402.03300, equation 4)."""
    x = _log_ratio(logprobs, ref_logprobs, mask, max_log_ratio)
    # expm1: exp(-x) - 1 would lose all digits near x = 0, where the policy starts.
    return _clamp(jnp.expm1(-x) + x, max_value)


def kl_penalised_rewards(
    rewards_PG: Float[Array, "P G"],
    kl_PGT: Float[Array, "P G T"],
    mask_PGT: Bool[Array, "P G T"],
    *,
    coef: ArrayLike,
) -> Float[Array, "P G"]:
    """r - coef * (sum of the completion's KL): the penalty in the reward instead of the loss.

    No gradient flows through it. A NaN reward (failed score) stays NaN.
    """
    total_PG = jnp.sum(jnp.where(mask_PGT, kl_PGT, 0.0), axis=-1)
    return jax.lax.stop_gradient(rewards_PG.astype(jnp.float32) - coef * total_PG)


class KLController(NamedTuple):
    """State of the KL coefficient: a pytree of float32 scalars, so it can be checkpointed."""

    coef: Float[Array, ""]
    target: Float[Array, ""]
    """KL per token to steer for."""
    horizon: Float[Array, ""]
    """Sequences over which a persistent error of 20 % changes the coefficient by 20 %."""


def kl_controller(coef: float, *, target: float = 1.0, horizon: float = 10_000.0) -> KLController:
    """Initial state. Paper: KL1 is coef 1e-2, target 5e-3; KL2 is coef 1e-3, target 5e-4.

    Raises ValueError for a negative coefficient or a target or horizon that is not positive.
    """
    if not coef >= 0 or not target > 0 or not horizon > 0:
        raise ValueError(
            "a KL controller needs coef >= 0, target > 0 and horizon > 0, "
            f"not {coef}, {target}, {horizon}"
        )
    return KLController(*(jnp.float32(value) for value in (coef, target, horizon)))


def adaptive_kl(state: KLController, kl_mean: ArrayLike, n_sequences: ArrayLike) -> KLController:
    """One step of the proportional controller of Ziegler et al. (arXiv 1909.08593, section 2.2).

        error = clip(kl / target - 1, -0.2, 0.2);   coef *= 1 + error * n / horizon

    as in OpenRLHF's ``AdaptiveKLController``; n counts the sequences since the last step. n is held
    to at most the horizon, beyond which the factor could reach zero or change sign. A KL that is
    not finite leaves the coefficient alone.
    """
    kl_mean = jnp.asarray(kl_mean, jnp.float32)
    error = jnp.clip(kl_mean / state.target - 1.0, -0.2, 0.2)
    share = jnp.minimum(jnp.asarray(n_sequences, jnp.float32) / state.horizon, 1.0)
    factor = jnp.where(jnp.isfinite(kl_mean), 1.0 + error * share, 1.0)
    return state._replace(coef=state.coef * factor)
