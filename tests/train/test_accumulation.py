"""An update does not depend on how its prompts are cut into micro-batches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from update_case import CONFIG, VOCAB, T, batch
from vlaa_jax.models.qwen_vl.model import init_params, split_model
from vlaa_jax.models.qwen_vl.trees import merge, part_of, partition
from vlaa_jax.parallel.mesh import make_mesh, replicated
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.settings.grpo import AlgoSettings
from vlaa_jax.train.grpo_loss import Context, GroupBatch, grpo_loss
from vlaa_jax.train.state import new_state
from vlaa_jax.train.update import Update


def rows(tree, part):
    return jax.tree.map(lambda a: a[part], tree)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant_length"])
def test_micro_batches_add_up_to_the_whole(aggregation):
    algo = AlgoSettings(aggregation=aggregation, updates_per_rollout=2, kl_coef=0.1)
    graphdef, _ = split_model(CONFIG)
    loss_fn = partial(grpo_loss, Distribution(graphdef, 1.0, 0, 1), algo, T)
    update = Update(loss_fn, optax.sgd(1.0))
    params = init_params(CONFIG, 0)
    whole = batch()
    totals = jnp.float32(whole.mask_PGT.sum()), jnp.float32(whole.mask_PGT.any(-1).sum())
    context = Context(*totals, jnp.float32(0.1), jnp.ones(VOCAB, bool))
    want, (loss, _) = update.gradients(params, {}, whole, context)
    got, total = update.zeros(params), 0.0
    for part in (slice(0, 1), slice(1, 4)):
        piece = GroupBatch(*(rows(field, part) for field in whole))
        got, (piece_loss, _) = update.accumulate(got, params, {}, piece, context)
        total += float(piece_loss)
    assert total == pytest.approx(float(loss), rel=1e-5)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(want)) > 1e-4


def test_a_non_finite_gradient_is_skipped_and_counted():
    update = Update(lambda *_: (jnp.float32(0), None), optax.adam(0.1))
    params = {"w": jnp.ones(3)}
    state = new_state(params, optax.adam(0.1), replicated(make_mesh(devices=jax.devices()[:1])))
    state, _ = update.apply(state, {"w": jnp.array([1.0, jnp.nan, 0.0])})
    np.testing.assert_array_equal(state.trainable["w"], np.ones(3))
    assert (int(state.updates), int(state.skipped)) == (1, 1)
    state, norm = update.apply(state, {"w": jnp.array([1.0, 0.0, 0.0])})
    assert float(state.trainable["w"][0]) == pytest.approx(0.9)
    assert (int(state.updates), int(state.skipped), float(norm)) == (2, 1, 1.0)


def test_freezing_by_part():
    params = init_params(CONFIG, 0)
    trainable, frozen = partition(params, ("vision", "embeddings"), adapters_only=False)
    assert set(trainable) == {"text", "vision"}
    assert set(trainable["vision"]) == {"merger"}
    assert set(frozen["vision"]) == {"patch_embed", "blocks"}
    assert set(frozen["text"]) == {"embed_tokens"}
    merged = merge(trainable, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    assert part_of("lm_head.kernel") == "embeddings"
    assert part_of("text.norm.scale") == "language"
