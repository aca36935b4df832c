"""Equality with transformers in float32: logits and gradients, both families."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import hf_oracle
from vlaa_jax.models.qwen_vl.hf_keys import param_shapes
from vlaa_jax.models.qwen_vl.model import Compute, split_model

FAMILIES = ["qwen2_5_vl", "qwen2_vl"]
# Images of odd sizes: partial windows on both edges, strips, exact windows.
BATCHES = {
    "one image": [[5, (1, 6, 10), 7]],
    "ragged, several images, unequal lengths": [
        [3, (1, 6, 10), 4, (1, 8, 8), 5],
        [2, (1, 2, 30), 9],
        [6, (1, 16, 24), 1, (1, 4, 4), (1, 10, 18), 3],
    ],
    "text only": [[12], [7]],
    "text and image rows": [[12], [3, (1, 22, 14), 5]],
}


def hf_logits(oracle, samples):
    with torch.no_grad():
        out = oracle.model(**hf_oracle.hf_inputs(samples), use_cache=False)
    return out.logits.float().numpy()


@partial(jax.jit, static_argnums=0)
def our_logits(graphdef, params, rows):
    model = nnx.merge(graphdef, params)
    hidden = model.hidden_rows(rows)
    return jnp.einsum("btd,dv->btv", hidden, model.head_kernel_DV, precision="highest")


@pytest.fixture(scope="module", params=FAMILIES)
def oracle(request):
    return hf_oracle.make(request.param, tied=request.param == "qwen2_5_vl")


@pytest.mark.parametrize("name", BATCHES)
def test_logits_equal_transformers(oracle, name):
    rng = np.random.default_rng(1)
    samples = [hf_oracle.sample(rng, pieces) for pieces in BATCHES[name]]
    theirs = hf_logits(oracle, samples)
    graphdef, _ = split_model(oracle.config)
    rows = hf_oracle.our_rows(oracle.config, [[s] for s in samples], noise=1.0)
    ours = our_logits(graphdef, oracle.params, rows)
    for row, s in enumerate(samples):
        length = len(s.ids_T)
        assert hf_oracle.relative_error(ours[row, :length], theirs[row, :length]) <= 1e-5


def test_left_padded_batches_of_unequal_length_equal_transformers(oracle):
    rng = np.random.default_rng(8)
    pieces = BATCHES["ragged, several images, unequal lengths"][:2]
    samples = [hf_oracle.sample(rng, p) for p in pieces]
    with torch.no_grad():
        out = oracle.model(**hf_oracle.hf_inputs(samples, pad="left"), use_cache=False)
    graphdef, _ = split_model(oracle.config)
    ours = our_logits(
        graphdef, oracle.params, hf_oracle.our_rows(oracle.config, [[s] for s in samples])
    )
    lengths = [len(s.ids_T) for s in samples]
    assert lengths[0] != lengths[1]
    for row, length in enumerate(lengths):
        theirs = out.logits[row, -length:].numpy()
        assert hf_oracle.relative_error(ours[row, :length], theirs) <= 1e-5


def test_video_equals_transformers(oracle):
    """Positions are ours: transformers 5 lets the text after a video overlap with it."""
    rng = np.random.default_rng(9)
    samples = [
        hf_oracle.sample(rng, [3, (3, 6, 10), 4, (1, 8, 4), 2, (2, 4, 4), 5]),
        hf_oracle.sample(rng, [2, (4, 2, 6), 6]),
    ]
    rows = hf_oracle.our_rows(oracle.config, [[s] for s in samples], noise=1.0)
    positions = torch.tensor(rows.positions_BT3.astype(np.int64)).permute(2, 0, 1)
    with torch.no_grad():
        out = oracle.model(**hf_oracle.hf_inputs(samples), position_ids=positions, use_cache=False)
    graphdef, _ = split_model(oracle.config)
    ours = our_logits(graphdef, oracle.params, rows)
    for row, s in enumerate(samples):
        length = len(s.ids_T)
        theirs = out.logits[row, :length].numpy()
        assert hf_oracle.relative_error(ours[row, :length], theirs) <= 1e-5


def test_large_image_equals_transformers(oracle):
    rng = np.random.default_rng(2)
    samples = [hf_oracle.sample(rng, [3, (1, 54, 58), 3])]
    assert len(samples[0].images[0]) > 3000
    graphdef, _ = split_model(oracle.config)
    rows = hf_oracle.our_rows(oracle.config, [samples])
    ours = our_logits(graphdef, oracle.params, rows)
    assert hf_oracle.relative_error(ours[:1], hf_logits(oracle, samples)) <= 1e-5


def test_untied_qwen25_equals_transformers():
    oracle = hf_oracle.make("qwen2_5_vl", tied=False, seed=3)
    rng = np.random.default_rng(3)
    samples = [hf_oracle.sample(rng, [4, (1, 6, 12), 3])]
    graphdef, abstract = split_model(oracle.config)
    assert "lm_head" in abstract
    rows = hf_oracle.our_rows(oracle.config, [samples])
    ours = our_logits(graphdef, oracle.params, rows)
    assert hf_oracle.relative_error(ours, hf_logits(oracle, samples)) <= 1e-5


GRADIENT_BATCHES = {
    "images": [[3, (1, 6, 10), 4, (1, 8, 8), 5], [2, (1, 2, 18), 9]],
    "text only": [[12], [7]],
    "video": [[3, (3, 6, 10), 4, (1, 8, 4), 2], [2, (4, 2, 6), 6]],
}


@pytest.mark.parametrize("name", GRADIENT_BATCHES)
def test_gradients_equal_transformers(oracle, name):
    rng = np.random.default_rng(4)
    samples = [hf_oracle.sample(rng, pieces) for pieces in GRADIENT_BATCHES[name]]
    inputs = hf_oracle.hf_inputs(samples)
    rows = hf_oracle.our_rows(oracle.config, [[s] for s in samples], noise=1.0)
    positions = torch.tensor(rows.positions_BT3.astype(np.int64)).permute(2, 0, 1)
    weight = np.random.default_rng(5).normal(size=(2, inputs["input_ids"].shape[1]))
    weight = (weight * inputs["attention_mask"].numpy()).astype(np.float32)
    targets = inputs["input_ids"].roll(-1, 1)

    oracle.model.zero_grad()
    logits = oracle.model(**inputs, position_ids=positions, use_cache=False).logits
    logprobs = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    (logprobs * torch.tensor(weight)).sum().backward()
    theirs = hf_oracle.params_of(oracle.model, oracle.config, grad=True)

    graphdef, _ = split_model(oracle.config)

    def loss(params):
        logprobs = jax.nn.log_softmax(our_logits(graphdef, params, rows))
        chosen = jnp.take_along_axis(logprobs, targets.numpy()[..., None], -1)[..., 0]
        return (chosen * weight).sum()

    ours = jax.jit(jax.grad(loss))(oracle.params)
    if name == "text only":  # no image, no gradient: nothing to compare with
        for grads in (ours, theirs):
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads.pop("vision")))
    errors = jax.tree.map(hf_oracle.relative_error, ours, theirs)
    worst = np.max(jax.tree.leaves(errors))
    assert worst <= 1e-5, errors


def test_packed_rows_equal_single_rows(oracle):
    rng = np.random.default_rng(6)
    a = hf_oracle.sample(rng, [3, (1, 6, 10), 4])
    b = hf_oracle.sample(rng, [2, (1, 10, 4), 6, (1, 4, 4), 2])
    graphdef, _ = split_model(oracle.config)
    packed = our_logits(graphdef, oracle.params, hf_oracle.our_rows(oracle.config, [[a, b]]))[0]
    for s, start in ((a, 0), (b, len(a.ids_T))):
        alone = our_logits(graphdef, oracle.params, hf_oracle.our_rows(oracle.config, [[s]]))[0]
        got = packed[start : start + len(s.ids_T)]
        assert hf_oracle.relative_error(got, alone[: len(s.ids_T)]) <= 1e-5


@pytest.mark.parametrize("oracle", ["qwen2_5_vl"], indirect=True)
def test_scan_unroll_and_remat_do_not_change_values(oracle):
    rng = np.random.default_rng(7)
    rows = hf_oracle.our_rows(oracle.config, [[hf_oracle.sample(rng, [3, (1, 6, 10), 4])]])
    values = []
    for compute in (Compute(), Compute(unroll=True, remat="full"), Compute(remat="dots")):
        graphdef, _ = split_model(oracle.config, compute)

        @jax.jit
        def value(params, graphdef=graphdef):
            return jax.value_and_grad(lambda p: our_logits(graphdef, p, rows).std())(params)

        values.append(value(oracle.params))
    for other in values[1:]:
        errors = jax.tree.map(hf_oracle.relative_error, other, values[0])
        assert np.max(jax.tree.leaves(errors)) <= 1e-5


def test_parameter_tree_is_the_key_table(oracle):
    _, abstract = split_model(oracle.config)
    assert jax.tree.map(lambda a: a.shape, abstract) == jax.tree.map(
        tuple, param_shapes(oracle.config), is_leaf=lambda x: isinstance(x, tuple)
    )
