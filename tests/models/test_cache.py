"""The completions' cache takes in a burst."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vlaa_jax.models.qwen_vl.cache import BurstCache, SuffixCache, append
from vlaa_jax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh, replicated


def caches(room, steps, starts, dtype=np.float32):
    rng = np.random.default_rng(0)
    lead, head_dim = (2, len(starts), 2, 3), 4
    k, v = rng.normal(size=(2, *lead, room, head_dim)).astype(dtype)
    new = rng.normal(size=(2, *lead, steps, head_dim)).astype(dtype)
    past = SuffixCache(jnp.array(k), jnp.array(v), jnp.array(starts, jnp.int32))
    return past, BurstCache(jnp.array(new[0]), jnp.array(new[1]), jnp.int32(steps))


@pytest.mark.parametrize(
    ("room", "steps", "starts"),
    [
        (12, 4, [0, 4, 8]),
        (11, 4, [3, 0, 7]),  # no multiple of the burst, steps of their own
        (8, 8, [0, 0, 0]),
        (9, 4, [7, 5, 30]),  # beyond the room: the end is written over
        (5, 1, [4, 0, 2]),
    ],
)
def test_every_prompt_gets_the_burst_at_its_own_step(room, steps, starts):
    past, burst = caches(room, steps, starts)
    got = jax.jit(append)(past, burst)
    for before, new, after in zip(past[:2], burst[:2], got[:2], strict=True):
        want = np.array(before)
        for prompt, start in enumerate(starts):
            first = min(start, room - steps)
            want[:, prompt, :, :, first : first + steps] = np.asarray(new)[:, prompt]
        np.testing.assert_array_equal(after, want)
    np.testing.assert_array_equal(got.step_P, np.array(starts) + steps)


def test_a_past_without_positions_stays_so():
    past, burst = caches(0, 4, [0, 4])
    got = append(past, burst)
    assert got.k_LPKGUH.shape == past.k_LPKGUH.shape
    np.testing.assert_array_equal(got.step_P, [4, 8])


def test_nothing_moves_between_devices():
    past, burst = caches(12, 4, [0, 4, 8, 3, 1, 0, 2, 5])
    mesh = make_mesh(data=2, fsdp=2, devices=jax.devices()[:4])
    slots = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
    past = SuffixCache(
        *jax.device_put(past[:2], slots), jax.device_put(past[2], batch_sharding(mesh))
    )
    burst = BurstCache(
        *jax.device_put(burst[:2], slots), jax.device_put(burst[2], replicated(mesh))
    )
    text = jax.jit(append).lower(past, burst).compile().as_text()
    assert "all-" not in text
    assert "collective" not in text
