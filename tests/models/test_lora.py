"""Low-rank adapters: fresh ones change nothing, only they train, without them it is the base."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import hf_oracle
from vlaa_jax.models.qwen_vl import lora
from vlaa_jax.models.qwen_vl.axes import PARAM_AXES
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.hf_keys import flatten
from vlaa_jax.models.qwen_vl.model import Compute, split_model
from vlaa_jax.models.qwen_vl.trees import merge, partition
from vlaa_jax.parallel.mesh import make_mesh
from vlaa_jax.parallel.sharding import tree_shardings
from vlaa_jax.schema import UserError
from vlaa_jax.settings.shared import LoraSettings

LORA = LoraSettings(
    rank=3, alpha=12.0, modules=("q_proj", "down_proj"), vision_modules=("qkv", "mlp_0")
)


@pytest.fixture(scope="module")
def oracle():
    return hf_oracle.make("qwen2_5_vl", tied=True)


@pytest.fixture(scope="module")
def branches(oracle):
    _, abstract = split_model(oracle.config, lora=LORA)
    return lora.init_branches(lora.adapters_of(abstract), seed=3)


@partial(jax.jit, static_argnums=0)
def hidden_rows(graphdef, params, rows):
    return nnx.merge(graphdef, params).hidden_rows(rows)


def test_the_named_linear_maps_get_branches_stacked_like_their_kernels(oracle, branches):
    shapes = {".".join(path): leaf.shape for path, leaf in flatten(branches)}
    config = oracle.config
    layers, depth = config.text.layers, config.vision.depth
    width, wide = config.vision.width, 4 * config.vision.width
    assert shapes["text.layers.mlp.down_proj.lora.a"] == (layers, config.text.intermediate, 3)
    assert shapes["text.layers.mlp.down_proj.lora.b"] == (layers, 3, config.text.width)
    assert shapes["vision.blocks.attn.qkv.lora.b"] == (depth, 3, 3 * width)
    assert shapes["vision.merger.mlp_0.lora.a"] == (wide, 3)
    assert len(shapes) == 2 * (2 + 2)


def test_fresh_branches_start_as_peft_starts_them(branches):
    for path, leaf in flatten(branches):
        leaf = np.asarray(leaf)
        if path[-1] == "b":
            assert not leaf.any()
            continue
        # Uniform in +-1/sqrt(inputs): its standard deviation is that bound over sqrt(3).
        bound = leaf.shape[-2] ** -0.5
        assert np.abs(leaf).max() <= bound
        assert leaf.std() == pytest.approx(bound / 3**0.5, rel=0.15)
        if leaf.ndim == 3:
            assert not np.array_equal(leaf[0], leaf[1])


def test_fresh_branches_change_nothing_and_the_base_is_the_tree_without_them(oracle, branches):
    rng = np.random.default_rng(0)
    rows = hf_oracle.our_rows(oracle.config, [[hf_oracle.sample(rng, [3, (1, 6, 10), 4])]])
    base_graphdef, _ = split_model(oracle.config)
    graphdef, _ = split_model(oracle.config, lora=LORA)
    base = hidden_rows(base_graphdef, oracle.params, rows)
    params = merge(oracle.params, branches)
    # Not bit for bit: XLA fuses the two programs differently.
    assert hf_oracle.relative_error(hidden_rows(graphdef, params, rows), base) <= 2e-6
    trained = merge(oracle.params, jax.tree.map(lambda a: a + 0.1, branches))
    assert hf_oracle.relative_error(hidden_rows(graphdef, trained, rows), base) > 1e-2
    off = lora.without_adapters(trained)
    np.testing.assert_array_equal(hidden_rows(base_graphdef, off, rows), base)
    # The same arrays, not copies.
    assert all(a is b for (_, a), (_, b) in zip(flatten(off), flatten(oracle.params), strict=True))
    assert lora.has_adapters(trained) and not lora.has_adapters(off)


def test_adapters_alone_train(oracle, branches):
    params = merge(oracle.params, branches)
    trainable, frozen = partition(params, (), adapters_only=True)
    assert jax.tree.structure(trainable) == jax.tree.structure(branches)
    assert jax.tree.structure(frozen) == jax.tree.structure(oracle.params)


def test_every_branch_has_its_place_on_a_mesh():
    for name in ("Qwen2.5-VL-7B", "Qwen2-VL-7B"):
        config = QwenVLConfig.RELEASED[name]
        mlp = ("fc1", "fc2") if config.family == "qwen2_vl" else ("gate_proj", "down_proj")
        settings = LoraSettings(rank=8, vision_modules=("qkv", "proj", "mlp_0", "mlp_2", *mlp))
        _, abstract = split_model(config, lora=settings)
        branches = lora.adapters_of(abstract)
        assert {".".join(path) for path, _ in flatten(branches)} <= set(PARAM_AXES)
        mesh = make_mesh(data=2, fsdp=2, tensor=2, devices=jax.devices()[:8])
        places = tree_shardings(branches, PARAM_AXES, mesh)
        down = places["text"]["layers"]["mlp"]["down_proj"]["lora"]
        # A specification may leave off what is not cut at its end.
        ends = (*down["a"].spec, None)[:3], (*down["b"].spec, None)[:3]
        assert ends == ((None, "tensor", None), (None, None, "fsdp"))


def test_branches_do_not_depend_on_their_placement(oracle, branches):
    _, abstract = split_model(oracle.config, lora=LORA)
    wanted = lora.adapters_of(abstract)
    mesh = make_mesh(data=1, fsdp=2, tensor=2, devices=jax.devices()[:4])
    placed = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        wanted,
        tree_shardings(wanted, PARAM_AXES, mesh),
    )
    sharded = lora.init_branches(placed, seed=3)
    jax.tree.map(np.testing.assert_array_equal, sharded, branches)
    other = lora.init_branches(wanted, seed=4)
    assert not np.array_equal(
        *(t["vision"]["merger"]["mlp_0"]["lora"]["a"] for t in (other, sharded))
    )


def test_a_linear_map_the_model_lacks_is_named(oracle):
    wrong = dataclasses.replace(LORA, vision_modules=("qkv", "fc1"))
    with pytest.raises(UserError, match=r"model\.lora\.vision_modules: .* no 'fc1'; it has .*qkv"):
        split_model(oracle.config, lora=wrong)
    with pytest.raises(UserError, match=r"model\.lora\.modules: .* no 'lm_head'"):
        split_model(oracle.config, lora=LoraSettings(rank=2, modules=("lm_head",)))


def test_bfloat16_weights_take_float32_branches(oracle, branches):
    graphdef, _ = split_model(oracle.config, Compute(dtype="bfloat16"), LORA)
    base = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), oracle.params)
    rng = np.random.default_rng(1)
    rows = hf_oracle.our_rows(oracle.config, [[hf_oracle.sample(rng, [5])]])._replace(vision=None)

    def loss(branches):
        model = nnx.merge(graphdef, merge(base, branches))
        return model.hidden_rows(rows).astype(jnp.float32).std()

    grads = jax.jit(jax.grad(loss))(branches)
    text = grads["text"]["layers"]["self_attn"]["q_proj"]["lora"]
    assert text["b"].dtype == jnp.float32 and np.abs(text["b"]).max() > 0
    # b is zero, so nothing reaches a yet.
    assert not np.asarray(text["a"]).any()
