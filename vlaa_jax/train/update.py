"""The compiled parts of an optimizer update, for any loss: gradients, their sum, the new state.

A micro-batch's loss is its share of the loss of the whole update (it is divided by totals of the
global mini-batch), so gradients of micro-batches add up to those of the whole.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vlaa_jax.models.qwen_vl.trees import merge
from vlaa_jax.train.state import TrainState

Array = jax.Array
Loss = Callable[[Any, Any, Any], tuple[Array, Any]]
"""``loss(params, batch, context) -> (share of the update's loss, sums for reports)``."""


class Update:
    """Gradients come out cut like the parameters they belong to, and a new state like the old one.

    Args:
        loss: of a micro-batch.
        optimizer: of the trainable parameters.
        state: the training state, for its places on the mesh; None leaves them to the compiler.
    """

    def __init__(
        self, loss: Loss, optimizer: optax.GradientTransformation, state: TrainState | None = None
    ) -> None:
        places = jax.tree.map(lambda a: a.sharding, state) if state is not None else None
        grads = None if places is None else places.trainable

        def gradients(trainable: Any, frozen: Any, batch: Any, context: Any) -> Any:
            def share(trainable: Any) -> tuple[Array, Any]:
                return loss(merge(trainable, frozen), batch, context)

            found, grads = jax.value_and_grad(share, has_aux=True)(trainable)
            return grads, found

        def accumulate(
            total: Any, trainable: Any, frozen: Any, batch: Any, context: Any
        ) -> tuple[Any, tuple[Array, Any]]:
            more, found = gradients(trainable, frozen, batch, context)
            return jax.tree.map(jnp.add, total, more), found

        self.gradients = jax.jit(gradients, out_shardings=(grads, None))
        self.accumulate = jax.jit(accumulate, donate_argnums=0, out_shardings=(grads, None))
        self.zeros = jax.jit(partial(jax.tree.map, jnp.zeros_like), out_shardings=grads)
        self.apply = jax.jit(
            partial(_apply, optimizer),
            donate_argnums=0,
            out_shardings=None if places is None else (places, places.updates),
        )

        self.rest = jax.jit(_rest, donate_argnums=0, out_shardings=places)

    @property
    def compile_count(self) -> int:
        """Programs compiled so far."""
        jitted = (self.gradients, self.accumulate, self.zeros, self.apply)
        return sum(f._cache_size() for f in jitted)  # type: ignore[attr-defined]


def _rest(state: TrainState) -> TrainState:
    """An update that has no gradient: counted, and nothing moves."""
    return state._replace(updates=state.updates + 1, still=state.still + 1)


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
            state.still,
        ),
        norm,
    )
