"""One update of the policy is the same however the mesh cuts parameters and batch."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hf_oracle
from vlaa_jax.models.qwen_vl.axes import PARAM_AXES
from vlaa_jax.models.qwen_vl.model import Compute, PromptInputs, split_model
from vlaa_jax.parallel.mesh import batch_sharding, data_shards, make_mesh, replicated
from vlaa_jax.parallel.sharding import tree_shardings
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.settings.grpo import AlgoSettings
from vlaa_jax.train.grpo_loss import Context, GroupBatch, grpo_loss
from vlaa_jax.train.state import new_state
from vlaa_jax.train.update import Update

PIECES = [[3, (1, 6, 10), 4], [2, (1, 2, 18), 9], [11], [6, (1, 10, 4), 2]]
GROUPS, NEW = 2, 4


def draw(config, n_shards):
    """Four prompts, three with an image, dealt to shards, and two completions of each."""
    rng = np.random.default_rng(5)
    samples = [hf_oracle.sample(rng, pieces) for pieces in PIECES]
    rows = hf_oracle.our_rows(config, [[s] for s in samples], n_shards=n_shards)
    lengths = np.array([len(s.ids_T) for s in samples], np.int32)
    prompt = PromptInputs(rows.ids_BT, rows.positions_BT3, lengths, rows.unit_src_BT, rows.vision)
    shape = (len(PIECES), GROUPS, NEW)
    mask = np.arange(NEW) < rng.integers(1, NEW + 1, (*shape[:2], 1))
    old, ref, sampler = rng.normal(-5, 0.2, (3, *shape)).astype(np.float32)
    tokens = rng.integers(3, 190, shape).astype(np.int32)
    advantages = rng.normal(size=shape[:2]).astype(np.float32)
    return GroupBatch(prompt, tokens, mask, advantages, old, ref, sampler)


def update(oracle, mesh):
    """One update on that mesh: loss, gradients, new parameters, axes that cut a parameter."""
    shards = data_shards(mesh)
    graphdef, shapes = split_model(oracle.config, Compute(data_shards=shards))
    places = tree_shardings(shapes, PARAM_AXES, mesh)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    # The same loss as a second update of a rollout: ratios differ from one.
    algo = AlgoSettings(updates_per_rollout=2, kl_coef=0.1, clip_low=0.9, clip_high=9.0)
    loss_fn = partial(grpo_loss, Distribution(graphdef, 1.0, 0, shards), algo, NEW)
    whole = draw(oracle.config, shards)
    totals = jnp.float32(whole.mask_PGT.sum()), jnp.float32(len(PIECES) * GROUPS)
    allowed = jnp.ones(hf_oracle.VOCAB, bool)
    context = Context(*totals, jnp.float32(algo.kl_coef), allowed)
    state = new_state(jax.device_put(oracle.params, places), optimizer, replicated(mesh))
    steps = Update(loss_fn, optimizer, state)
    batch = jax.device_put(whole, batch_sharding(mesh))
    grads, (loss, _) = steps.gradients(state.trainable, {}, batch, context)
    cut = {
        name
        for leaf in jax.tree.leaves(state.trainable)
        for name in leaf.sharding.spec
        if name is not None and mesh.shape[name] > 1
    }
    host = jax.tree.map(np.asarray, grads)
    state, _ = steps.apply(state, grads)
    return float(loss), host, jax.tree.map(np.asarray, state.trainable), cut


@cache
def on_one_device(family):
    """An oracle of the family and its update without a mesh to speak of."""
    oracle = hf_oracle.make(family, tied=family == "qwen2_vl")
    return oracle, update(oracle, make_mesh(devices=jax.devices()[:1]))


@pytest.mark.parametrize(
    ("family", "axes"),
    [
        ("qwen2_5_vl", {"fsdp": 2}),
        ("qwen2_5_vl", {"tensor": 2}),
        ("qwen2_vl", {"data": 2, "fsdp": 2, "tensor": 2}),
    ],
    ids=str,
)
def test_an_update_does_not_depend_on_the_mesh(family, axes):
    oracle, (loss, grads, params, _) = on_one_device(family)
    size = np.prod(list(axes.values()))
    mesh = make_mesh(**{"data": 1, **axes}, devices=jax.devices()[:size])
    got_loss, got_grads, got_params, cut = update(oracle, mesh)
    assert cut == set(axes) - {"data"}
    assert got_loss == pytest.approx(loss, rel=1e-5)
    for got, want in ((got_grads, grads), (got_params, params)):
        errors = jax.tree.map(hf_oracle.relative_error, got, want)
        assert np.max(jax.tree.leaves(errors)) <= 1e-5, errors
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max() > 1e-4, params, oracle.params)
    assert all(jax.tree.leaves(moved)), moved
