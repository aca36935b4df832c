"""A model that is laid out over a mesh computes what it computes on one device."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import hf_oracle
from vlaa_jax.algos.logprobs import Chunking, token_logprobs
from vlaa_jax.models.qwen_vl.axes import PARAM_AXES, layout
from vlaa_jax.models.qwen_vl.model import Compute, PromptInputs, completion_inputs, split_model
from vlaa_jax.parallel.mesh import batch_sharding, data_shards, make_mesh
from vlaa_jax.parallel.sharding import places_of, tree_shardings

PIECES = [[3, (1, 6, 10), 4], [2, (1, 2, 18), 9], [11], [6, (1, 10, 4), 2]] * 2
GROUPS, NEW = 2, 4
MESHES = [(8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2), (1, 2, 4)]  # the last: half a key head


def draw(config, n_shards):
    """The same samples as prompts of groups and as rows, and tokens and weights of a loss."""
    rng = np.random.default_rng(5)
    samples = [hf_oracle.sample(rng, pieces) for pieces in PIECES]
    rows = hf_oracle.our_rows(config, [[s] for s in samples], n_shards=n_shards)
    lengths = np.array([len(s.ids_T) for s in samples], np.int32)
    prompt = PromptInputs(rows.ids_BT, rows.positions_BT3, lengths, rows.unit_src_BT, rows.vision)
    tokens = rng.integers(3, 190, (len(PIECES), GROUPS, NEW)).astype(np.int32)
    weight_PGT = rng.normal(size=tokens.shape).astype(np.float32)
    weight_BT = rng.normal(size=rows.ids_BT.shape) * (rows.segment_ids_BT > 0)
    return prompt, tokens, weight_PGT, rows, weight_BT.astype(np.float32)


def loss_of(graphdef, params, prompt, tokens, weight_PGT, rows, weight_BT):
    """A weighted sum of log-probabilities of completions and of the rows' own tokens."""
    model = nnx.merge(graphdef, params)
    compute = model.compute
    groups = model.hidden_groups(prompt, completion_inputs(prompt, tokens))
    total = 0.0
    for hidden, targets, weight in (
        (groups, tokens, weight_PGT),
        (model.hidden_rows(rows), jnp.roll(rows.ids_BT, -1, axis=1), weight_BT),
    ):
        logprobs, _ = token_logprobs(
            hidden.reshape(-1, hidden.shape[-1]),
            model.head_kernel_DV,
            targets.reshape(-1),
            chunking=Chunking(16, compute.data_shards, compute.layout),
        )
        total += (logprobs * weight.reshape(-1)).sum()
    return total


def value_and_grads(oracle, shape):
    """Loss and gradients on a mesh of that shape, and the axes that cut a gradient."""
    mesh = make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    shards, where = data_shards(mesh), layout(oracle.config, mesh)
    compute = Compute(data_shards=shards, remat="full", layout=where)
    graphdef, shapes = split_model(oracle.config, compute)
    params = jax.device_put(oracle.params, tree_shardings(shapes, PARAM_AXES, where))
    batch = jax.device_put(draw(oracle.config, shards), batch_sharding(mesh))
    run = jax.jit(
        lambda *a: jax.value_and_grad(loss_of, argnums=1)(graphdef, *a),
        out_shardings=(None, places_of(params)),
    )
    loss, grads = run(params, *batch)
    cut = {
        name
        for leaf in jax.tree.leaves(grads)
        for name in leaf.sharding.spec
        if name is not None and mesh.shape[name] > 1
    }
    return float(loss), jax.tree.map(np.asarray, grads), cut


@cache
def on_one_device(family):
    oracle = hf_oracle.make(family, tied=family == "qwen2_vl")
    return oracle, value_and_grads(oracle, (1, 1, 1))


@pytest.mark.parametrize(
    ("family", "shape"),
    [*(("qwen2_5_vl", shape) for shape in MESHES), ("qwen2_vl", (2, 2, 2))],
    ids=str,
)
def test_loss_and_gradients_do_not_depend_on_the_mesh(family, shape):
    oracle, (loss, grads, _) = on_one_device(family)
    got_loss, got_grads, cut = value_and_grads(oracle, shape)
    axes = zip(("data", "fsdp", "tensor"), shape, strict=True)
    assert cut == {name for name, size in axes if size > 1 and name != "data"}
    assert got_loss == pytest.approx(loss, rel=1e-5)
    errors = jax.tree.map(hf_oracle.relative_error, got_grads, grads)
    assert np.max(jax.tree.leaves(errors)) <= 1e-5, errors
