"""The shared-prefix layout and cached decoding equal the naive repeated rows."""

import importlib.util
import pathlib
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlaa_jax.algos.logprobs import token_logprobs
from vlaa_jax.models.qwen_vl.cache import append, empty_burst, empty_suffix
from vlaa_jax.models.qwen_vl.model import (
    Compute,
    PromptInputs,
    completion_inputs,
    split_model,
)
from vlaa_jax.parallel.mesh import batch_sharding, make_mesh

if "hf_oracle" not in sys.modules:
    _spec = importlib.util.spec_from_file_location(
        "hf_oracle", pathlib.Path(__file__).with_name("hf_oracle.py")
    )
    sys.modules["hf_oracle"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["hf_oracle"])
hf_oracle = sys.modules["hf_oracle"]

PIECES = [
    [3, (1, 6, 10), 4, (1, 8, 8), 5],
    [2, (1, 2, 18), 9],
    [11],
    [6, (1, 10, 4), 2],
]
LENGTHS = [[5, 3, 1], [4, 4, 2], [1, 5, 3], [2, 2, 5]]
GROUPS, NEW = 3, 5


@pytest.fixture(scope="module")
def oracle():
    return hf_oracle.make("qwen2_5_vl", tied=True)


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(11)
    return [hf_oracle.sample(rng, pieces) for pieces in PIECES]


@pytest.fixture(scope="module")
def completions():
    tokens = np.random.default_rng(12).integers(3, 190, (len(PIECES), GROUPS, NEW))
    mask = np.arange(NEW) < np.array(LENGTHS)[..., None]
    return tokens.astype(np.int32), mask


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
    starts = np.repeat([len(s.ids_T) for s in samples], GROUPS)
    at = starts[:, None] - 1 + np.arange(NEW)
    hidden = jnp.take_along_axis(hidden, at[..., None], axis=1).reshape(-1, hidden.shape[-1])
    return token_logprobs(hidden, model.head_kernel_DV, tokens.reshape(-1))[0].reshape(tokens.shape)


def group_logprobs(graphdef, params, prompt, tokens):
    model = nnx.merge(graphdef, params)
    hidden = model.hidden_groups(prompt, completion_inputs(prompt, tokens))
    hidden = hidden.reshape(-1, hidden.shape[-1])
    return token_logprobs(hidden, model.head_kernel_DV, tokens.reshape(-1))[0].reshape(tokens.shape)


def test_groups_equal_repeated_rows_in_value_and_gradient(oracle, samples, completions):
    tokens, mask = completions
    graphdef, _ = split_model(oracle.config)
    prompt = prompt_inputs(oracle.config, samples)
    weight = np.random.default_rng(13).normal(size=tokens.shape) * mask

    def value_and_grad(logprobs):
        def total(params):
            values = logprobs(params)
            return (values * weight).sum(), values

        return jax.jit(jax.value_and_grad(total, has_aux=True))(oracle.params)

    (_, ours), our_grads = value_and_grad(lambda p: group_logprobs(graphdef, p, prompt, tokens))
    (_, naive), naive_grads = value_and_grad(
        lambda p: naive_logprobs(oracle.config, p, samples, tokens)
    )
    assert np.abs(np.where(mask, ours - naive, 0)).max() <= 1e-5
    errors = jax.tree.map(hf_oracle.relative_error, our_grads, naive_grads)
    assert np.max(jax.tree.leaves(errors)) <= 1e-4, errors


def test_groups_are_the_same_on_several_devices(oracle, samples, completions):
    tokens, mask = completions
    graphdef, _ = split_model(oracle.config)
    run = jax.jit(group_logprobs, static_argnums=0)
    one = run(graphdef, oracle.params, prompt_inputs(oracle.config, samples), tokens)
    mesh = make_mesh(data=2, fsdp=2, devices=jax.devices()[:4])
    sharded, _ = split_model(oracle.config, Compute(data_shards=4))
    prompt = jax.device_put(prompt_inputs(oracle.config, samples, 4), batch_sharding(mesh))
    four = run(sharded, oracle.params, prompt, jax.device_put(tokens, batch_sharding(mesh)))
    assert np.abs(np.where(mask, np.asarray(four) - np.asarray(one), 0)).max() <= 1e-5


@pytest.mark.parametrize(
    ("bursts", "past_length", "unroll"),
    [([NEW], 0, True), ([NEW], 0, 1), ([2, 3], NEW, True), ([1] * NEW, 7, 2)],
)
def test_cached_decoding_equals_the_full_forward(
    oracle, samples, completions, bursts, past_length, unroll
):
    tokens, _ = completions
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
        past, hidden = empty_suffix(prefix, GROUPS, past_length), []
        for steps in bursts:
            layers, *caches, burst = model.by_layer(prefix, past, empty_burst(past, steps))
            for _ in range(steps):
                h, burst = model.decode(*caches, burst, inputs[:, :, len(hidden)], layers)
                hidden.append(h)
            past = append(past, burst)
        return jnp.stack(hidden, axis=2)

    want, got = full(graphdef, oracle.params), cached(graphdef, oracle.params)
    assert hf_oracle.relative_error(got, want) <= 1e-5
