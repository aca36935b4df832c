"""Group advantages: from the rewards of G completions of one prompt to a signal per completion.

Every function takes ``rewards_PG`` and ``mask_PG`` and returns ``advantages_PG``, in float32.

* ``mask_PG`` is False where there is nothing to learn from: the scorer failed, or the group is
  uneven and the slot is empty. Such slots take no part in any statistic and get exactly 0.
* A non-finite reward is a failed score by the house's definition and is treated as masked, so NaN
  cannot leak even when the mask forgot it.
* A group whose valid rewards are all equal, or that has fewer than two of them, gets exactly 0.
  Subtracting a float32 mean would not do: the mean of three rewards of 0.9 is not 0.9.

Statistics run over G only, so with P sharded over the mesh every group is computed where it lives.
Only ``batch_std_advantages`` talks to other devices, by all-reducing scalars.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class _Centred(NamedTuple):
    valid_PG: Array
    usable_P1: Array
    count_P1: Array
    deviation_PG: Array


def _centre(rewards_PG: Array, mask_PG: Array | None) -> _Centred:
    """Deviation from the group mean, exactly 0 for masked entries and constant groups."""
    if rewards_PG.ndim != 2:
        raise ValueError(f"rewards_PG must be [P, G], not of shape {rewards_PG.shape}")
    valid_PG = jnp.isfinite(rewards_PG)
    if mask_PG is not None:
        if mask_PG.shape != rewards_PG.shape:
            raise ValueError(
                f"mask_PG {mask_PG.shape} and rewards_PG {rewards_PG.shape} must agree in shape"
            )
        valid_PG &= mask_PG.astype(bool)
    # NaN is replaced before any arithmetic: 0 * NaN is NaN, in values and in gradients.
    safe_PG = jnp.where(valid_PG, rewards_PG.astype(jnp.float32), 0.0)
    count_P1 = jnp.sum(valid_PG, axis=1, keepdims=True, dtype=jnp.int32)
    lowest_P1 = jnp.min(jnp.where(valid_PG, safe_PG, jnp.inf), axis=1, keepdims=True)
    highest_P1 = jnp.max(jnp.where(valid_PG, safe_PG, -jnp.inf), axis=1, keepdims=True)
    usable_P1 = (count_P1 >= 2) & (lowest_P1 < highest_P1)
    mean_P1 = jnp.sum(safe_PG, axis=1, keepdims=True) / jnp.maximum(count_P1, 1)
    deviation_PG = jnp.where(valid_PG & usable_P1, safe_PG - mean_P1, 0.0)
    return _Centred(valid_PG, usable_P1, count_P1, deviation_PG)


def _unbiased_std(deviation: Array, count: Array, axis: int | None) -> Array:
    """sqrt(sum(deviation^2) / (count - 1)); 0 (with gradient 0) where the sum is 0."""
    square = jnp.sum(jnp.square(deviation), axis=axis, keepdims=axis is not None)
    variance = square / jnp.maximum(count - 1, 1)
    positive = variance > 0
    # The root's slope at 0 is infinite, so the zero is replaced before the root, too.
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)


def grpo_advantages(
    rewards_PG: Float[Array, "P G"],
    mask_PG: Bool[Array, "P G"] | None = None,
    *,
    eps: float = 1e-9,
) -> Float[Array, "P G"]:
    """(r - mean) / (std + eps) within the group: GRPO, arXiv 2402.03300, section 4.1.2.

    The standard deviation is the unbiased one (divisor n - 1) and eps is 1e-9 and added to the
    standard deviation, as in OpenRLHF's ``group_norm``, which VLAA-Thinker is adapted from. With
    eps this small, rewards that differ only in the last bit still give advantages of order one;
    round such rewards before they come here.

    Raises ValueError for rewards that are not [P, G] or a mask of another shape.
    """
    group = _centre(rewards_PG, mask_PG)
    std_P1 = _unbiased_std(group.deviation_PG, group.count_P1, axis=1)
    # An unusable group divides 0 by 1 rather than by eps, which keeps its gradient small too.
    return group.deviation_PG / jnp.where(group.usable_P1, std_P1 + eps, 1.0)


def mean_only_advantages(
    rewards_PG: Float[Array, "P G"], mask_PG: Bool[Array, "P G"] | None = None
) -> Float[Array, "P G"]:
    """r - mean within the group: Dr. GRPO, arXiv 2503.20783.

    Without the division, groups of nearly equal rewards (very easy or very hard prompts) are not
    blown up. Pair with ``losses.constant_length`` for the whole of Dr. GRPO.
    """
    return _centre(rewards_PG, mask_PG).deviation_PG


def leave_one_out_advantages(
    rewards_PG: Float[Array, "P G"], mask_PG: Bool[Array, "P G"] | None = None
) -> Float[Array, "P G"]:
    """r_i minus the mean of the *other* rewards of the group: RLOO, arXiv 2402.14740.

    Computed as n / (n - 1) * (r_i - mean), which is the same number and keeps constant groups at 0.
    """
    group = _centre(rewards_PG, mask_PG)
    scale_P1 = group.count_P1 / jnp.maximum(group.count_P1 - 1, 1)
    return group.deviation_PG * scale_P1


def batch_std_advantages(
    rewards_PG: Float[Array, "P G"],
    mask_PG: Bool[Array, "P G"] | None = None,
    *,
    eps: float = 1e-9,
) -> Float[Array, "P G"]:
    """(r - group mean) / (std of all valid rewards of the batch + eps).

    Group-level mean with batch-level standard deviation, as recommended in arXiv 2508.08221. The
    deviation is the unbiased one around the batch mean, over every valid reward, constant groups
    included. Give it the whole rollout batch: the result depends on what is in the batch.
    """
    group = _centre(rewards_PG, mask_PG)
    count = jnp.sum(group.count_P1)
    safe_PG = jnp.where(group.valid_PG, rewards_PG.astype(jnp.float32), 0.0)
    mean = jnp.sum(safe_PG) / jnp.maximum(count, 1)
    std = _unbiased_std(jnp.where(group.valid_PG, safe_PG - mean, 0.0), count, axis=None)
    any_usable = jnp.any(group.usable_P1)
    return group.deviation_PG / jnp.where(any_usable, std + eps, 1.0)
