"""The update as settings put it together, beside loops over tokens; what is frozen stays."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import update_case as case
from vlaa_jax.models.qwen_vl.model import init_params, split_model
from vlaa_jax.models.qwen_vl.trees import merge, part_of, partition
from vlaa_jax.parallel.mesh import make_mesh, replicated
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.settings.grpo import AlgoSettings
from vlaa_jax.settings.shared import FREEZABLE
from vlaa_jax.train.grpo_loss import Context, grpo_loss
from vlaa_jax.train.state import new_state
from vlaa_jax.train.update import Update

COEF, LIMIT = 0.1, 9
ALLOWED = jnp.ones(case.VOCAB, bool)


@pytest.fixture(scope="module")
def policy():
    graphdef, _ = split_model(case.CONFIG)
    return Distribution(graphdef, 1.0, 0, 1), init_params(case.CONFIG, 0)


@pytest.fixture(scope="module")
def batch(policy):
    """A batch whose old, reference and sampler log-probabilities lie near the policy's."""
    rng = np.random.default_rng(1)
    whole = case.batch()
    own, _ = own_logprobs(policy, whole)
    near = [np.asarray(own + rng.normal(0, 0.4, own.shape), np.float32) for _ in range(3)]
    return whole._replace(
        old_logprobs_PGT=near[0], ref_logprobs_PGT=near[1], sampler_logprobs_PGT=near[2]
    )


def own_logprobs(policy, batch):
    distribution, params = policy
    return distribution.completion_logprobs(params, batch.prompt, batch.tokens_PGT, ALLOWED)


def context(batch):
    mask = batch.mask_PGT
    totals = jnp.float32(mask.sum()), jnp.float32(mask.any(-1).sum())
    return Context(*totals, jnp.float32(COEF), ALLOWED)


def loop_loss(algo, batch, logprobs, entropy):
    """The loss of one update, token by token, in plain Python numbers."""
    sequences, tokens, total = 0, 0, 0.0
    for p, g in np.ndindex(case.P, case.G):
        real = np.flatnonzero(batch.mask_PGT[p, g])
        advantage = float(batch.advantages_PG[p, g])
        new = [float(logprobs[p, g, t]) for t in real]
        old = [float(batch.old_logprobs_PGT[p, g, t]) for t in real]
        mean_gap = np.mean(np.subtract(new, old))
        own = 0.0
        for t, a, b in zip(real, new, old, strict=True):
            ratio = np.exp(mean_gap if algo.loss == "gspo" else a - b)
            clipped = min(max(ratio, 1 - algo.clip_low), 1 + algo.clip_high)
            if algo.loss == "cispo":
                loss = -clipped * advantage * a
            else:
                loss = -min(ratio * advantage, clipped * advantage)
                if algo.dual_clip and advantage < 0:
                    loss = min(loss, -algo.dual_clip * advantage)
            if algo.importance_cap:
                loss *= min(np.exp(b - batch.sampler_logprobs_PGT[p, g, t]), algo.importance_cap)
            if algo.kl_coef and not algo.kl_in_reward:
                gap = float(batch.ref_logprobs_PGT[p, g, t]) - a
                k = {"k1": -gap, "k2": gap**2 / 2, "k3": np.exp(gap) - gap - 1}
                loss += COEF * k[algo.kl_estimator]
            loss -= algo.entropy_coef * float(entropy[p, g, t])
            own += loss
        total += own / len(real) if algo.aggregation == "sequence_mean" else own
        sequences, tokens = sequences + 1, tokens + len(real)
    by = {"token_mean": tokens, "sequence_mean": sequences, "constant_length": sequences * LIMIT}
    return total / by[algo.aggregation]


CASES = [
    {},
    {"clip_low": 0.1, "clip_high": 0.3, "aggregation": "token_mean"},
    {"dual_clip": 1.2, "kl_coef": 0.0},
    {"kl_estimator": "k1", "kl_in_reward": True, "aggregation": "constant_length"},
    {"kl_estimator": "k2", "entropy_coef": 0.3},
    {"kl_in_reward": True, "importance_cap": 1.1},
    {"loss": "gspo", "clip_low": 0.005, "clip_high": 0.01, "kl_coef": 0.0},
    {"loss": "cispo", "clip_low": 0.9, "clip_high": 0.2, "aggregation": "token_mean"},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_the_loss_that_settings_ask_for(policy, batch, changes):
    options = {"updates_per_rollout": 2, "kl_coef": COEF, "aggregation": "sequence_mean", **changes}
    algo = dataclasses.replace(AlgoSettings(), **options)
    update = Update(partial(grpo_loss, policy[0], algo, LIMIT), optax.sgd(1.0))
    grads, (loss, _) = update.gradients(policy[1], {}, batch, context(batch))
    logprobs, entropy = policy[0].completion_logprobs(
        policy[1], batch.prompt, batch.tokens_PGT, ALLOWED
    )
    want = loop_loss(algo, batch, np.asarray(logprobs), np.asarray(entropy))
    assert float(loss) == pytest.approx(want, rel=2e-4, abs=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_every_case_is_a_loss_of_its_own(policy, batch):
    logprobs, entropy = policy[0].completion_logprobs(
        policy[1], batch.prompt, batch.tokens_PGT, ALLOWED
    )
    found = set()
    for changes in CASES:
        options = {"kl_coef": COEF, "aggregation": "sequence_mean", **changes}
        algo = dataclasses.replace(AlgoSettings(), **options)
        found.add(round(loop_loss(algo, batch, np.asarray(logprobs), np.asarray(entropy)), 6))
    assert len(found) == len(CASES)


@pytest.mark.parametrize("part", FREEZABLE)
def test_a_frozen_part_keeps_its_bits_and_the_others_move(policy, batch, part):
    trainable, frozen = partition(policy[1], (part,), adapters_only=False)
    optimizer = optax.adamw(1e-2)
    place = replicated(make_mesh(devices=jax.devices()[:1]))
    update = Update(partial(grpo_loss, policy[0], AlgoSettings(), LIMIT), optimizer)
    grads, _ = update.gradients(trainable, frozen, batch, context(batch))
    before = jax.tree.map(np.array, policy[1])
    state = new_state(jax.tree.map(jnp.copy, trainable), optimizer, place)
    state, _ = update.apply(state, grads)
    moved = {}
    for path, new in jax.tree_util.tree_leaves_with_path(merge(state.trainable, frozen)):
        name = ".".join(str(key.key) for key in path)
        old = before
        for key in path:
            old = old[key.key]
        moved.setdefault(part_of(name), []).append(not np.array_equal(new, old))
    assert not any(moved[part])
    assert all(any(flags) for other, flags in moved.items() if other != part)
