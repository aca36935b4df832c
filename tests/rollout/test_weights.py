"""The weights of a rollout: which are cast, where they lie, what stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from update_case import CONFIG
from vlaa_jax.models.qwen_vl.axes import PARAM_AXES, layout
from vlaa_jax.models.qwen_vl.model import Compute, init_params, split_model
from vlaa_jax.parallel.mesh import make_mesh
from vlaa_jax.parallel.sharding import dotted, tree_shardings
from vlaa_jax.rollout.weights import SamplingWeights, is_matrix, sampling_mesh
from vlaa_jax.schema import UserError


def leaves(params):
    return {dotted(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def test_in_float32_on_one_device_nothing_is_copied():
    graphdef, _ = split_model(CONFIG)
    params = init_params(CONFIG, 0)
    for mesh in (None, make_mesh(devices=jax.devices()[:1])):
        assert SamplingWeights(graphdef, mesh)(params) is params


def test_matrices_are_rounded_once_and_the_rest_stays():
    graphdef, _ = split_model(CONFIG, Compute(dtype="bfloat16"))
    weights = SamplingWeights(graphdef, None)
    params = init_params(CONFIG, 0)
    got = weights(params)
    for path, leaf in leaves(got).items():
        want = leaves(params)[path]
        assert leaf.dtype == (jnp.bfloat16 if is_matrix(path) else jnp.float32), path
        np.testing.assert_array_equal(leaf, want.astype(leaf.dtype))
    assert {path.rpartition(".")[2] for path in leaves(got) if not is_matrix(path)} == {
        "bias",
        "scale",
    }
    mixed = got | {"text": params["text"]}  # as with adapters, whose base is cast already
    again = weights(mixed)
    assert (
        again["vision"]["merger"]["mlp_0"]["kernel"] is got["vision"]["merger"]["mlp_0"]["kernel"]
    )
    assert again["text"]["norm"]["scale"] is params["text"]["norm"]["scale"]
    compiled = weights.compile_count
    assert weights(got) is got
    weights(init_params(CONFIG, 1))
    assert weights.compile_count == compiled


@pytest.mark.parametrize(("shape", "tensor"), [((1, 4, 1), 0), ((1, 4, 1), 4), ((2, 1, 2), 0)])
def test_only_the_tensor_axis_cuts_weights_for_decoding(shape, tensor):
    mesh = make_mesh(*shape, devices=jax.devices()[:4])
    decode = sampling_mesh(mesh, tensor)
    assert decode.devices.reshape(-1).tolist() == mesh.devices.reshape(-1).tolist()
    graphdef, _ = split_model(CONFIG, Compute(layout=layout(CONFIG, mesh)))
    params = init_params(CONFIG, 0)
    placed = jax.device_put(params, tree_shardings(params, PARAM_AXES, layout(CONFIG, mesh)))
    got = SamplingWeights(graphdef, decode)(placed)
    cut = decode.shape["tensor"]
    for path, leaf in leaves(got).items():
        names = PARAM_AXES[path]
        # two heads do not go into four parts, and the one key head is whole everywhere
        parts = cut if {"vocab", "mlp"} & {*names} or ("heads" in names and cut <= 2) else 1
        assert leaf.size == parts * leaf.addressable_shards[0].data.size, path
        np.testing.assert_array_equal(leaf, leaves(params)[path])


@pytest.mark.parametrize("tensor", [1, 3, 8])
def test_a_sampling_mesh_that_does_not_fit_is_refused(tensor):
    mesh = make_mesh(1, 2, 2, devices=jax.devices()[:4])
    with pytest.raises(UserError, match=r"multiple of mesh\.tensor=2"):
        sampling_mesh(mesh, tensor)
