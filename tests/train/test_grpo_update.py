"""How groups are dealt to updates, and when an update moves nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vlaa_jax.parallel.mesh import make_mesh, replicated
from vlaa_jax.train.grpo_update import deal
from vlaa_jax.train.state import new_state
from vlaa_jax.train.update import Update


@pytest.mark.parametrize(
    ("useful", "updates", "want"),
    [
        ([1, 0, 1, 0], 2, [0, 1, 2, 3]),  # both have one: as they came
        ([1, 1, 0, 0], 2, [0, 2, 1, 3]),
        ([0, 0, 1, 1], 2, [2, 0, 3, 1]),
        ([1, 0, 0, 0], 2, [0, 1, 2, 3]),  # one cannot be dealt to two
        ([0, 0, 0, 0], 4, [0, 1, 2, 3]),
        ([1, 1, 0], 1, [0, 1, 2]),
    ],
)
def test_useful_groups_are_spread_over_the_updates(useful, updates, want):
    assert deal(np.array(useful, bool), updates).tolist() == want


def test_an_update_without_a_gradient_leaves_weights_and_moments_as_they_are():
    place = replicated(make_mesh(devices=jax.devices()[:1]))
    optimizer = optax.adam(0.1)
    state = new_state({"w": jax.device_put(jnp.ones(3), place)}, optimizer, place)
    update = Update(lambda *_: (jnp.float32(0), None), optimizer, state)
    state, _ = update.apply(state, {"w": jnp.ones(3)})
    moved = np.array(state.trainable["w"])
    state = update.rest(state)
    np.testing.assert_array_equal(state.trainable["w"], moved)
    assert [int(n) for n in state[2:]] == [2, 0, 1]
    state, _ = update.apply(state, {"w": jnp.zeros(3)})
    assert np.all(np.array(state.trainable["w"]) != moved)  # momentum alone would have moved them
