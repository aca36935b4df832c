"""What learns: trainable and frozen parameters, the reference, the optimizer, and their updates."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vlaa_jax.models.qwen_vl.lora import without_adapters
from vlaa_jax.models.qwen_vl.trees import merge, partition
from vlaa_jax.parallel.mesh import replicated
from vlaa_jax.policy.pretrained import Pretrained
from vlaa_jax.rollout.weights import rollout_dtypes
from vlaa_jax.schema import UserError
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.settings.sft import SftSettings
from vlaa_jax.train.checkpoint import Checkpoints, Progress
from vlaa_jax.train.optimizer import make_optimizer
from vlaa_jax.train.state import TrainState, abstract_state, new_state, to_shape
from vlaa_jax.train.update import Loss, Update


class Outcome(NamedTuple):
    """Of one update; arrays stay on the devices until somebody reads them.

    Attributes:
        losses: float32 scalar of each micro-batch; they add up to the update's loss.
        reports: what the loss reports of each micro-batch.
        norm: float32 scalar, global norm of the gradient before clipping.
    """

    losses: list[jax.Array]
    reports: list[Any]
    norm: jax.Array


class Learner:
    """Trains a pretrained policy with a given loss.

    Args:
        settings: what trains (everything but `freeze`, or adapters alone), the optimizer, and the
            seed of new adapters.
        pretrained: where the weights come from.
        loss: of a micro-batch, see ``update.Loss``.
        updates: of the whole run, for the schedule.
        mesh: the device mesh.
        keeps_reference: keep the weights that training starts from beside those that train.
    """

    def __init__(
        self,
        settings: GrpoSettings | SftSettings,
        pretrained: Pretrained,
        loss: Loss,
        *,
        updates: int,
        mesh: Mesh,
        keeps_reference: bool = False,
    ) -> None:
        self._pretrained, self._model, self._seed = pretrained, settings.model, settings.seed
        self._max_skipped = settings.optimizer.max_skipped
        self._loss, self._mesh = loss, mesh
        self._keeps_reference = keeps_reference
        self._optimizer, self.schedule = make_optimizer(settings.optimizer, max(updates, 1))
        self.state: TrainState
        self.frozen: Mapping[str, Any]
        self.reference: Mapping[str, Any] = {}

    def load(self, checkpoints: Checkpoints) -> Progress | None:
        """Reads the weights, and where a checkpoint is there, what has become of them.

        The reference is the starting point itself; arrays that never train are shared with it, and
        with LoRA it is the base with adapters off. Nothing is on the devices twice: what a
        checkpoint brings is given up before it is read.

        Returns:
            The position of the checkpoint, or None at the start.
        """
        everywhere = replicated(self._mesh)
        adapters_only = bool(self._model.lora.rank)
        trainable, frozen = partition(
            self._pretrained.load_params(self._seed),
            self._model.freeze,
            adapters_only=adapters_only,
        )
        has_own_start = self._keeps_reference and not adapters_only
        start = self._as_reference(trainable) if has_own_start else {}
        progress = None
        if checkpoints.latest is not None:
            shapes = abstract_state(trainable, self._optimizer, everywhere)
            frozen = jax.tree.map(to_shape, frozen)
            del trainable
            self.state, frozen, progress = checkpoints.restore(shapes, frozen)
        else:
            # Updates write over what they are given: what the reference shares is copied.
            kept = {id(leaf) for leaf in jax.tree.leaves(start)}
            own = jax.tree.map(lambda a: jnp.copy(a) if id(a) in kept else a, trainable)
            self.state = new_state(own, self._optimizer, everywhere)
        self.frozen = frozen
        if self._keeps_reference:
            self.reference = without_adapters(merge(start, frozen))
        self._update = Update(self._loss, self._optimizer, self.state)
        return progress

    def _as_reference(self, params: Any) -> Any:
        """The same arrays, but matrices as their products take them: bit-equal, and smaller."""
        dtypes = rollout_dtypes(params, jnp.dtype(self._model.matrices))
        return jax.tree.map(lambda a, t: a if a.dtype == t else a.astype(t), params, dtypes)

    @property
    def params(self) -> dict[str, Any]:
        """All parameters as they are now."""
        return merge(self.state.trainable, self.frozen)

    def count(self) -> tuple[int, int]:
        """Parameters that train, and all of them."""
        trained, still = (
            sum(leaf.size for leaf in jax.tree.leaves(tree))
            for tree in (self.state.trainable, self.frozen)
        )
        return trained, trained + still

    @property
    def learning_rate(self) -> float:
        """Rate of the last update that was applied."""
        state = self.state
        applied = int(state.updates) - int(state.skipped) - int(state.still)
        return float(self.schedule(max(applied - 1, 0)))

    def update(
        self, batches: Iterable[Any], context: Any, *, count: int, moves: bool = True
    ) -> Outcome:
        """One optimizer update on `count` micro-batches.

        Args:
            batches: the micro-batches; each is asked for when the one before is under way.
            context: what the loss wants besides, the same for all of them.
            count: how many there are.
            moves: False where no term has a gradient: the weights stay, the update is counted.
        """
        trainable, frozen = self.state.trainable, self.frozen
        grads = self._update.zeros(trainable) if count > 1 else None
        losses, reports = [], []
        for batch in batches:
            if grads is None:
                grads, (loss, report) = self._update.gradients(trainable, frozen, batch, context)
            else:
                grads, (loss, report) = self._update.accumulate(
                    grads, trainable, frozen, batch, context
                )
            losses.append(loss)
            reports.append(report)
        if not moves:
            self.state = self._update.rest(self.state)
            return Outcome(losses, reports, jnp.float32(0))
        self.state, norm = self._update.apply(self.state, grads)
        return Outcome(losses, reports, norm)

    def stop_when_skipping(self) -> None:
        """Stops a run whose gradients are not finite too often.

        Raises:
            UserError: more updates were left out than optimizer.max_skipped.
        """
        skipped, most = int(self.state.skipped), self._max_skipped
        if skipped > most:
            raise UserError(
                f"{skipped} updates had non-finite gradients (optimizer.max_skipped={most}); "
                "lower optimizer.lr or look at the last rollouts"
            )
