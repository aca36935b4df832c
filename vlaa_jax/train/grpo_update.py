"""From scored groups to new weights: group advantages, and a step's optimizer updates."""

from collections.abc import Iterator
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vlaa_jax.algos import kl, losses
from vlaa_jax.parallel.local import fetch
from vlaa_jax.policy.groups import Groups
from vlaa_jax.policy.micro import Micro, MicroPlan
from vlaa_jax.policy.prompts import Placed
from vlaa_jax.policy.scoring import rewards_array
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.train.grpo_loss import ADVANTAGES, KL_ESTIMATORS, Context, GroupBatch
from vlaa_jax.train.learner import Learner, Outcome
from vlaa_jax.train.rollout_log import TokenFigures

Array = jax.Array
Metrics = dict[str, float]


def deal(useful_P: np.ndarray, updates: int) -> np.ndarray:
    """An order of groups in which no update goes empty while another has two useful ones.

    Args:
        useful_P: whether a group has an advantage that is not 0.
        updates: equal shares that the order is cut into.

    Returns:
        Places of the groups; the given order where that will do.
    """
    by_share = useful_P.reshape(updates, -1).sum(axis=1)
    if by_share.min() > 0 or by_share.max() < 2:
        return np.arange(len(useful_P))
    useful_first = np.argsort(~useful_P, kind="stable")
    return np.concatenate([useful_first[share::updates] for share in range(updates)])


class PolicyUpdate:
    """Advantages and updates of a step, and the KL controller that they steer.

    Args:
        settings: of the run.
        learner: what learns.
        placed: the step's prompts on the devices.
        plan: which groups are computed together.
        allowed_V: ids that are sampled at all.
        kl_coef: coefficient to start from; None takes that of the settings.
    """

    def __init__(
        self,
        settings: GrpoSettings,
        learner: Learner,
        placed: Placed,
        plan: MicroPlan,
        allowed_V: Array,
        kl_coef: float | None = None,
    ) -> None:
        algo = settings.algo
        self._settings, self._learner, self._placed = settings, learner, placed
        self._plan, self._allowed_V = plan, allowed_V
        self._advantages = jax.jit(ADVANTAGES[algo.advantage])
        start = algo.kl_coef if kl_coef is None else kl_coef
        self._kl = kl.kl_controller(
            algo.kl_coef, target=algo.kl_target or 1.0, horizon=algo.kl_horizon
        )._replace(coef=jnp.float32(start))

    @property
    def kl_coef(self) -> float:
        """The current KL coefficient."""
        return float(self._kl.coef)

    def advantages(self, groups: Groups, old_PGT: np.ndarray, ref_PGT: np.ndarray) -> np.ndarray:
        """Group advantages [P, G]; computed on the device."""
        algo, mask_PGT = self._settings.algo, groups.rollout.mask_PGT
        rewards_PG = rewards_array(groups.scores, groups.rollout.length_PG.shape)
        valid_PG = ~np.isnan(rewards_PG)
        if algo.kl_coef and algo.kl_in_reward:
            penalty = KL_ESTIMATORS[algo.kl_estimator](old_PGT, ref_PGT, jnp.asarray(mask_PGT))
            paid_PG, mask = jnp.asarray(rewards_PG), jnp.asarray(mask_PGT)
            rewards_PG = fetch(kl.kl_penalised_rewards(paid_PG, penalty, mask, coef=self._kl.coef))
        put = self._placed.put
        return fetch(self._advantages(put(rewards_PG), put(valid_PG)))

    def __call__(
        self,
        groups: Groups,
        advantages_PG: np.ndarray,
        old_PGT: np.ndarray,
        ref_PGT: np.ndarray,
    ) -> tuple[Metrics, TokenFigures]:
        """All optimizer updates of a step, each over its share of the prompts.

        Nothing is read back from the devices before the last of them is under way, and of the
        figures of single tokens nothing at all.
        """
        algo = self._settings.algo
        order = deal(np.any(advantages_PG != 0, axis=1), algo.updates_per_rollout)
        groups = groups.take(order.tolist())
        rollout = groups.rollout
        advantages_PG, old_PGT, ref_PGT = (a[order] for a in (advantages_PG, old_PGT, ref_PGT))
        mask_PGT = rollout.mask_PGT
        if algo.mask_truncated:
            mask_PGT = mask_PGT & ~rollout.truncated_PG[..., None]
        arrays = (
            rollout.tokens_PGT,
            mask_PGT,
            advantages_PG,
            old_PGT,
            ref_PGT,
            rollout.logprobs_PGT,
        )
        outcomes, reports = [], []
        updates = list(self._plan(groups.prompts, rollout.length_PG))
        for batches in algo.epochs * updates:
            share = np.concatenate([micro.index_P for micro in batches])
            own = mask_PGT[share]
            sequences = int(own.any(-1).sum())
            context = Context(
                jnp.float32(own.sum()), jnp.float32(sequences), self._kl.coef, self._allowed_V
            )
            outcome = self._learner.update(
                self._batches(groups, arrays, batches),
                context,
                count=len(batches),
                moves=self._has_gradient(advantages_PG[share], own),
            )
            outcomes.append(outcome)
            own_reports = [report.diagnostics for report in outcome.reports]
            reports.append(reduce(losses.merge_diagnostics, own_reports))
            self._steer_kl(reports[-1], sequences)
        self._learner.stop_when_skipping()
        dealt = np.concatenate([micro.index_P for batches in updates for micro in batches])
        figures = self._figures(
            outcomes, order[dealt], mask_PGT[dealt], old_PGT[dealt], ref_PGT[dealt]
        )
        metrics = self._metrics(outcomes, reduce(losses.merge_diagnostics, reports))
        held = sum(micro.cut(rollout.tokens_PGT).size for batches in updates for micro in batches)
        padding = {"padding/completion_frac": 1.0 - float(rollout.length_PG.sum()) / held}
        return metrics | padding, figures

    def _figures(
        self,
        outcomes: list[Outcome],
        order: np.ndarray,
        mask_PGT: np.ndarray,
        old_PGT: np.ndarray,
        ref_PGT: np.ndarray,
    ) -> TokenFigures:
        """Of several passes over a rollout those of the first, which begins where it was drawn."""
        algo = self._settings.algo
        found = [r for outcome in outcomes[: algo.updates_per_rollout] for r in outcome.reports]
        return TokenFigures(
            order,
            mask_PGT,
            [report.logprobs_PGT for report in found],
            [report.entropy_PGT for report in found],
            old_PGT if algo.updates_per_step > 1 else None,
            ref_PGT if algo.kl_coef else None,
        )

    def _has_gradient(self, advantages_PG: np.ndarray, mask_PGT: np.ndarray) -> bool:
        """Whether any term of an update's loss pulls at the weights.

        Where none does, AdamW's momentum would move them all the same.
        """
        algo = self._settings.algo
        if algo.entropy_coef or (algo.kl_coef and not algo.kl_in_reward):
            return bool(mask_PGT.any())
        return bool((mask_PGT & (advantages_PG != 0)[..., None]).any())

    def _batches(
        self, groups: Groups, arrays: tuple[np.ndarray, ...], batches: list[Micro]
    ) -> Iterator[GroupBatch]:
        for micro in batches:
            prompts = [groups.prompts[p] for p in micro.index_P]
            own = (self._placed.put(micro.cut(array)) for array in arrays)
            yield GroupBatch(self._placed(prompts, micro.tokens), *own)

    def _steer_kl(self, report: losses.Diagnostics, sequences: int) -> None:
        # An update without a single token has measured nothing; its 0 is no small divergence.
        algo = self._settings.algo
        if sequences and algo.kl_coef and algo.kl_target:
            mean = losses.summarise_diagnostics(report)["kl"]
            self._kl = kl.adaptive_kl(self._kl, mean, sequences)

    def _metrics(self, outcomes: list[Outcome], report: losses.Diagnostics) -> Metrics:
        summary: Any = losses.summarise_diagnostics(report)
        loss = sum(float(share) for outcome in outcomes for share in outcome.losses)
        divergence = {"policy/kl": float(summary["kl"]), "policy/kl_coef": self.kl_coef}
        return {
            **(divergence if self._settings.algo.kl_coef else {}),
            "train/loss": loss / len(outcomes),
            "train/grad_norm": float(np.mean([float(outcome.norm) for outcome in outcomes])),
            "train/lr": self._learner.learning_rate,
            "train/skipped": float(self._learner.state.skipped),
            "policy/entropy": float(summary["entropy"]),
            "policy/ratio_clip_frac": float(summary["clip_frac"]),
            "policy/logprob_gap_mean": float(summary["logprob_gap"]),
            "policy/logprob_gap_max": float(summary["logprob_gap_max"]),
        }
