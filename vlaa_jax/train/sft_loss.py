"""The supervised loss of a micro-batch of packed rows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vlaa_jax.algos.losses import masked_cross_entropy
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.policy.rows import RowTargets

Array = jax.Array


class Report(NamedTuple):
    """Sums over a micro-batch.

    Attributes:
        loss: float32, negative log-probabilities of the targets.
        entropy: float32, of the distributions they are drawn from.
        tokens: int32, targets.
    """

    loss: Array
    entropy: Array
    tokens: Array


def sft_loss(
    distribution: Distribution, params: Any, batch: RowTargets, total: Array
) -> tuple[Array, Report]:
    """Cross-entropy of the targets / `total`, the targets of the whole update.

    Args:
        distribution: the policy's; its logits never exist for a whole batch.
        params: all parameters.
        batch: the micro-batch.
        total: float32 scalar.
    """
    logprobs_BT, entropy_BT = distribution.row_logprobs(params, batch.rows)
    mask_BT = batch.predicts_BT
    loss = masked_cross_entropy(logprobs_BT, mask_BT, total)
    own, entropy = (jnp.where(mask_BT, a, 0.0).sum() for a in (-logprobs_BT, entropy_BT))
    return loss, jax.lax.stop_gradient(Report(own, entropy, mask_BT.sum()))
