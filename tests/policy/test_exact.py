"""The exact mode: sampler, scorer and gradients read the same rounded matrices in float32."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from update_case import CONFIG, VOCAB, batch
from vlaa_jax.models.qwen_vl.axes import PARAM_AXES, layout
from vlaa_jax.models.qwen_vl.model import Compute, PromptInputs, init_params, split_model
from vlaa_jax.parallel.mesh import batch_sharding, data_shards, make_mesh
from vlaa_jax.parallel.sharding import dotted, tree_shardings
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.policy.pretrained import compute_of, place_params
from vlaa_jax.rollout.engine import Decoding, Engine
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.rollout.weights import is_matrix
from vlaa_jax.settings.shared import LoraSettings, ModelSettings

EXACT = Compute(exact=jax.lax.Precision.HIGHEST)
ALLOWED = np.arange(VOCAB) < 30
PROMPTS, NEW = 16, 6


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda a: a * 4, init_params(CONFIG, 0))  # far from uniform


def prompts(count):
    rng = np.random.default_rng(0)
    shape = (count, 9)
    positions = np.broadcast_to(np.arange(9)[None, :, None], (*shape, 3)).astype(np.int32)
    lengths = rng.integers(2, 10, count).astype(np.int32)
    return PromptInputs(
        rng.integers(0, 30, shape).astype(np.int32), positions, lengths, np.full(shape, -1), None
    )


def rounded(params):
    """Matrices as bfloat16 numbers, the rest as it is."""
    return jax.tree_util.tree_map_with_path(
        lambda path, a: a.astype(jnp.bfloat16).astype(a.dtype) if is_matrix(dotted(path)) else a,
        params,
    )


def gaps(params, compute, micros, scored_by=None):
    """Largest difference between the sampler's log-probabilities and the scorer's, by micro."""
    graphdef, _ = split_model(CONFIG, compute)
    engine = Engine(
        graphdef,
        Decoding(2, NEW),
        sampling=Sampling(1.0),
        eos_id=-1,
        allowed_V=ALLOWED,
    )
    prompt, keys = prompts(PROMPTS), jax.random.split(jax.random.key(0), PROMPTS)
    rollout = engine.generate(params, [prompt], keys, prefix_length=9)
    scorer, _ = split_model(CONFIG, scored_by or compute)
    score = jax.jit(Distribution(scorer, 1.0, 0, 1).completion_logprobs)
    found = []
    for micro in micros:
        parts = []
        for start in range(0, PROMPTS, micro):
            own = slice(start, start + micro)
            part = PromptInputs(*(a if a is None else a[own] for a in prompt))
            parts.append(score(params, part, rollout.tokens_PGT[own], ALLOWED)[0])
        scored = np.concatenate(parts)
        found.append(np.abs(np.where(rollout.mask_PGT, scored - rollout.logprobs_PGT, 0)).max())
    return found


def test_sampler_and_scorer_agree_at_any_micro_batch_size(params):
    exact = gaps(params, EXACT, (1, 2, 4, 16))
    assert max(exact) <= 1e-5, exact
    assert max(gaps(params, EXACT, (16,), scored_by=Compute())) > 1e-3, "rounding must show"


def loss(graphdef, params, given):
    distribution = Distribution(graphdef, 1.0, 0, 1)
    found, _ = distribution.completion_logprobs(params, given.prompt, given.tokens_PGT, ALLOWED)
    return (found * given.old_logprobs_PGT * given.mask_PGT).sum()


def test_gradients_go_straight_through_to_the_masters(params):
    given = batch()
    exact, plain = (split_model(CONFIG, c)[0] for c in (EXACT, Compute()))
    value, grads = jax.jit(jax.value_and_grad(partial(loss, exact)))(params, given)
    want, want_grads = jax.jit(jax.value_and_grad(partial(loss, plain)))(rounded(params), given)
    unrounded = jax.jit(partial(loss, plain))(params, given)
    assert float(value) == pytest.approx(float(want), rel=1e-6)
    assert float(value) != pytest.approx(float(unrounded), rel=1e-5), "rounding must show"
    for got, expected in zip(*map(jax.tree.leaves, (grads, want_grads)), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_on_a_mesh_the_loss_is_the_same(params):
    mesh = make_mesh(1, 2, 2, devices=jax.devices()[:4])
    where = layout(CONFIG, mesh)
    settings = ModelSettings(numerics="exact", remat="full")
    compute = compute_of(settings, CONFIG, mesh, None)
    assert (compute.dtype, compute.attention.name) == ("float32", "blockwise")
    assert data_shards(mesh) == 2
    graphdef, shapes = split_model(CONFIG, compute)
    placed = jax.device_put(params, tree_shardings(shapes, PARAM_AXES, where))
    given = jax.device_put(batch(), batch_sharding(mesh))
    value = jax.jit(partial(loss, graphdef))(placed, given)
    want = loss(split_model(CONFIG, EXACT)[0], params, batch())
    assert float(value) == pytest.approx(float(want), rel=1e-5)


def test_matrices_that_do_not_train_are_kept_in_bfloat16():
    settings = ModelSettings(numerics="exact", dtype="float32", lora=LoraSettings(rank=2))
    _, shapes = split_model(CONFIG, EXACT, settings.lora)
    where = layout(CONFIG, make_mesh(devices=jax.devices()[:1]))
    placed = place_params(shapes, settings, where)
    for path, leaf in jax.tree_util.tree_leaves_with_path(placed):
        name = dotted(path)
        still = is_matrix(name) and ".lora." not in name
        assert leaf.dtype == (jnp.bfloat16 if still else jnp.float32), name
