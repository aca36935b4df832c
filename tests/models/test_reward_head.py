"""The scalar head against transformers: hidden state of the last real token times the weight."""

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import hf_oracle
from vlaa_jax.models.reward_head.head import load_scalar_head, read_head
from vlaa_jax.parallel.mesh import make_mesh
from vlaa_jax.schema import UserError

WIDTH = 48
BIAS = 0.25
PIECES = [[3, (1, 6, 10), 4], [12], [2, (1, 8, 8), 9], [5]]


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen2_vl"])
def saved(request, tmp_path_factory):
    """(oracle, HF directory, head file, weight): a random policy model and a random head."""
    folder = tmp_path_factory.mktemp(request.param)
    oracle = hf_oracle.make(request.param, tied=False)
    oracle.model.save_pretrained(folder)
    weight = np.random.default_rng(0).normal(size=(1, WIDTH)).astype(np.float32)
    head = folder / "head.safetensors"
    save_file({"score.weight": weight, "score.bias": np.array([BIAS], np.float32)}, head)
    return oracle, folder, head, weight[0]


def expected(oracle, weight, samples):
    """One sequence at a time, so that no padding can matter."""
    scores = []
    for sample in samples:
        with torch.no_grad():
            out = oracle.model(
                **hf_oracle.hf_inputs([sample]), use_cache=False, output_hidden_states=True
            )
        scores.append(float(out.hidden_states[-1][0, -1].double().numpy() @ weight) + BIAS)
    return np.array(scores)


def test_scores_equal_transformers_on_one_device(saved):
    oracle, folder, head, weight = saved
    samples = [hf_oracle.sample(np.random.default_rng(i), p) for i, p in enumerate(PIECES)]
    scorer = load_scalar_head(folder, head, make_mesh(devices=jax.devices()[:1]))
    scores = scorer.score(hf_oracle.our_rows(oracle.config, [[s] for s in samples]))
    assert hf_oracle.relative_error(scores, expected(oracle, weight, samples)) < 1e-5
    # Padding changes nothing, and the same rows score the same bits.
    wide = hf_oracle.our_rows(oracle.config, [[s] for s in samples], length=96, noise=3.0)
    assert hf_oracle.relative_error(scorer.score(wide), scores) < 1e-5
    assert np.array_equal(scorer.score(wide), scorer.score(wide))


def test_scores_do_not_depend_on_the_mesh(saved):
    oracle, folder, head, weight = saved
    samples = [hf_oracle.sample(np.random.default_rng(i), p) for i, p in enumerate(PIECES)]
    scorer = load_scalar_head(folder, head, make_mesh(data=2, fsdp=2, tensor=2))
    kernel = scorer.params["text"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert not kernel.sharding.is_fully_replicated
    rows = hf_oracle.our_rows(oracle.config, [[s] for s in samples], n_shards=4)
    assert hf_oracle.relative_error(scorer.score(rows), expected(oracle, weight, samples)) < 1e-5


def test_a_head_that_does_not_fit_is_refused_by_name(tmp_path):
    file = tmp_path / "head.safetensors"
    with pytest.raises(UserError, match=r"there is no file .*head\.safetensors"):
        read_head(file, WIDTH)
    save_file({"lm_head.weight": np.zeros((1, WIDTH), np.float32)}, file)
    with pytest.raises(UserError, match=r"none of score\.weight.* among lm_head\.weight"):
        read_head(file, WIDTH)
    save_file({"score.weight": np.zeros((2, WIDTH), np.float32)}, file)
    with pytest.raises(UserError, match=r"\(2, 48\).*needs \(1, 48\)"):
        read_head(file, WIDTH)
