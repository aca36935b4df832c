"""The shared-prefix layout and cached decoding equal the naive repeated rows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import hf_oracle
from vlaa_jax.algos.logprobs import token_logprobs
from vlaa_jax.models.qwen_vl.axes import PARAM_AXES
from vlaa_jax.models.qwen_vl.cache import append, empty_burst, empty_suffix
from vlaa_jax.models.qwen_vl.model import (
    Compute,
    PromptInputs,
    completion_inputs,
    split_model,
)
from vlaa_jax.parallel.mesh import batch_sharding, make_mesh
from vlaa_jax.parallel.sharding import tree_shardings

PIECES = [
    [3, (1, 6, 10), 4, (1, 8, 8), 5],
    [2, (1, 2, 18), 9],
    [11],
    [6, (1, 10, 4), 2],
]
NEW = 5


@pytest.fixture(scope="module", params=["qwen2_5_vl"])
def oracle(request):
    return hf_oracle.make(request.param, tied=True)


def draw(prompts, groups):
    """That many prompts of PIECES, in turn, and completions of unequal lengths."""
    rng = np.random.default_rng(11)
    samples = [hf_oracle.sample(rng, PIECES[p % len(PIECES)]) for p in range(prompts)]
    tokens = rng.integers(3, 190, (prompts, groups, NEW)).astype(np.int32)
    lengths = rng.integers(1, NEW + 1, (prompts, groups, 1))
    return samples, tokens, np.arange(NEW) < lengths


def prompt_inputs(config, samples, n_shards=1):
    """Prompts as PromptInputs, dealt to shards in order."""
    rows = hf_oracle.our_rows(config, [[s] for s in samples], n_shards=n_shards, noise=1.0)
    lengths = np.array([len(s.ids_T) for s in samples], np.int32)
    return PromptInputs(rows.ids_BT, rows.positions_BT3, lengths, rows.unit_src_BT, rows.vision)


def naive_logprobs(config, params, samples, tokens):
    """Every completion behind its own copy of prompt and images, one row each."""
    graphdef, _ = split_model(config)
    rows = []
    for s, group in zip(samples, tokens, strict=True):
        for completion in group:
            ids = np.concatenate([s.ids_T, completion])
            rows.append([hf_oracle.Sample(ids, s.grids, s.images)])
    inputs = hf_oracle.our_rows(config, rows)
    model = nnx.merge(graphdef, params)
    hidden = model.hidden_rows(inputs)
    starts = np.repeat([len(s.ids_T) for s in samples], tokens.shape[1])
    at = starts[:, None] - 1 + np.arange(NEW)
    hidden = jnp.take_along_axis(hidden, at[..., None], axis=1).reshape(-1, hidden.shape[-1])
    return token_logprobs(hidden, model.head_kernel_DV, tokens.reshape(-1))[0].reshape(tokens.shape)


def group_logprobs(graphdef, params, prompt, tokens):
    model = nnx.merge(graphdef, params)
    hidden = model.hidden_groups(prompt, completion_inputs(prompt, tokens))
    hidden = hidden.reshape(-1, hidden.shape[-1])
    return token_logprobs(hidden, model.head_kernel_DV, tokens.reshape(-1))[0].reshape(tokens.shape)


def value_and_grad(logprobs, params, weight):
    def total(params):
        values = logprobs(params)
        return (values * weight).sum(), values

    (_, values), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return np.asarray(values), grads


@pytest.mark.parametrize(
    ("oracle", "prompts", "groups"),
    [("qwen2_5_vl", 4, 3), ("qwen2_5_vl", 1, 6), ("qwen2_vl", 2, 4)],
    indirect=["oracle"],
)
def test_groups_equal_repeated_rows_in_value_and_gradient(oracle, prompts, groups):
    samples, tokens, mask = draw(prompts, groups)
    graphdef, _ = split_model(oracle.config)
    prompt = prompt_inputs(oracle.config, samples)
    weight = np.random.default_rng(13).normal(size=tokens.shape) * mask
    ours, our_grads = value_and_grad(
        lambda p: group_logprobs(graphdef, p, prompt, tokens), oracle.params, weight
    )
    naive, naive_grads = value_and_grad(
        lambda p: naive_logprobs(oracle.config, p, samples, tokens), oracle.params, weight
    )
    assert np.abs(np.where(mask, ours - naive, 0)).max() <= 1e-5
    errors = jax.tree.map(hf_oracle.relative_error, our_grads, naive_grads)
    assert np.max(jax.tree.leaves(errors)) <= 1e-4, errors


def test_groups_are_the_same_on_eight_devices_with_parameters_in_parts(oracle):
    samples, tokens, mask = draw(8, 2)
    weight = np.random.default_rng(14).normal(size=tokens.shape) * mask
    graphdef, _ = split_model(oracle.config)
    prompt = prompt_inputs(oracle.config, samples)
    one, one_grads = value_and_grad(
        lambda p: group_logprobs(graphdef, p, prompt, tokens), oracle.params, weight
    )
    mesh = make_mesh(data=4, fsdp=2, devices=jax.devices())
    assert mesh.size == 8
    sharded, shapes = split_model(oracle.config, Compute(data_shards=8))
    places = tree_shardings(shapes, PARAM_AXES, mesh)
    params = jax.device_put(oracle.params, places)
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params))
    prompt = jax.device_put(prompt_inputs(oracle.config, samples, 8), batch_sharding(mesh))
    tokens = jax.device_put(tokens, batch_sharding(mesh))
    eight, eight_grads = value_and_grad(
        lambda p: group_logprobs(sharded, p, prompt, tokens), params, weight
    )
    assert np.abs(np.where(mask, eight - one, 0)).max() <= 1e-5
    errors = jax.tree.map(hf_oracle.relative_error, eight_grads, one_grads)
    assert np.max(jax.tree.leaves(errors)) <= 1e-4, errors


@pytest.mark.parametrize(
    ("oracle", "bursts", "past_length", "unroll"),
    [
        ("qwen2_5_vl", [NEW], 0, True),
        ("qwen2_vl", [NEW], 0, 1),
        ("qwen2_5_vl", [2, 3], NEW, True),
        ("qwen2_5_vl", [1] * NEW, 7, 2),
    ],
    indirect=["oracle"],
)
def test_cached_decoding_equals_the_full_forward(oracle, bursts, past_length, unroll):
    samples, tokens, _ = draw(4, 3)
    graphdef, _ = split_model(oracle.config, Compute(unroll=unroll))
    prompt = prompt_inputs(oracle.config, samples)
    inputs = completion_inputs(prompt, tokens)

    @partial(jax.jit, static_argnums=0)
    def full(graphdef, params):
        return nnx.merge(graphdef, params).hidden_groups(prompt, inputs)

    @partial(jax.jit, static_argnums=0)
    def cached(graphdef, params):
        model = nnx.merge(graphdef, params)
        prefix = model.prefill(prompt)
        past, hidden = empty_suffix(prefix, tokens.shape[1], past_length), []
        for steps in bursts:
            layers, *caches, burst = model.by_layer(prefix, past, empty_burst(past, steps))
            for _ in range(steps):
                h, burst = model.decode(*caches, burst, inputs[:, :, len(hidden)], layers)
                hidden.append(h)
            past = append(past, burst)
        return jnp.stack(hidden, axis=2)

    want, got = full(graphdef, oracle.params), cached(graphdef, oracle.params)
    assert hf_oracle.relative_error(got, want) <= 1e-5
