"""`peft` loads an exported adapter and computes what ours computes, gradients included."""

import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from flax import nnx

import hf_oracle
from converters.cli import main
from vlaa_jax.models.qwen_vl import lora
from vlaa_jax.models.qwen_vl.model import split_model
from vlaa_jax.models.qwen_vl.trees import merge
from vlaa_jax.settings.shared import LoraSettings

peft = pytest.importorskip("peft")

VISION = {
    "qwen2_5_vl": ("qkv", "proj", "gate_proj", "up_proj", "down_proj", "mlp_0", "mlp_2"),
    "qwen2_vl": ("qkv", "proj", "fc1", "fc2", "mlp_0", "mlp_2"),
}


@pytest.fixture(scope="module", params=VISION)
def trained(request, tmp_path_factory):
    """An oracle, branches far from their start, and a run directory that holds both."""
    oracle = hf_oracle.make(request.param, tied=True)
    settings = LoraSettings(rank=3, alpha=6.0, vision_modules=VISION[request.param])
    graphdef, abstract = split_model(oracle.config, lora=settings)
    fresh = lora.init_branches(lora.adapters_of(abstract), seed=0)
    rng = np.random.default_rng(0)
    branches = jax.tree.map(lambda a: np.asarray(a) + 0.05 * rng.normal(size=a.shape), fresh)
    branches = jax.tree.map(lambda a: a.astype(np.float32), branches)
    run = tmp_path_factory.mktemp("run")
    (run / "hf").mkdir()
    oracle.model.config.save_pretrained(run / "hf")
    recorded = {"model": {"checkpoint": "base", "lora": {"rank": 3, "alpha": 6.0}}}
    (run / "config.json").write_text(json.dumps(recorded))
    with ocp.StandardCheckpointer() as checkpointer:
        params = merge(oracle.params, branches)
        checkpointer.save(run / "checkpoints" / "1" / "params", params)
    return oracle, graphdef, branches, run


def our_place(name):
    """Path of a branch's array in our tree and its layer, from its name in a PEFT model."""
    name = name.removeprefix("base_model.model.model.").replace(".default", "")
    name = name.replace("language_model.", "text.").replace("visual.", "vision.")
    name = name.replace("mlp.0.", "mlp_0.").replace("mlp.2.", "mlp_2.")
    name = name.replace(".lora_A.weight", ".lora.a").replace(".lora_B.weight", ".lora.b")
    layer = re.search(r"\.(\d+)\.", name)
    return re.sub(r"\.\d+\.", ".", name).split("."), int(layer[1]) if layer else None


def test_logits_and_gradients_equal_peft(trained, tmp_path):
    oracle, graphdef, branches, run = trained
    rng = np.random.default_rng(1)
    samples = [hf_oracle.sample(rng, [4, (1, 6, 10), 5]), hf_oracle.sample(rng, [9])]
    rows = hf_oracle.our_rows(oracle.config, [[s] for s in samples])
    inputs = hf_oracle.hf_inputs(samples)
    weight = rng.normal(size=(*inputs["input_ids"].shape, hf_oracle.VOCAB)).astype(np.float32)
    weight *= inputs["attention_mask"].numpy()[..., None]

    @partial(jax.jit, static_argnums=0)
    def ours(graphdef, branches):
        model = nnx.merge(graphdef, merge(oracle.params, branches))
        hidden = model.hidden_rows(rows)
        logits = jnp.einsum("btd,dv->btv", hidden, model.head_kernel_DV, precision="highest")
        return (logits * weight).sum(), logits

    grads, logits = jax.grad(ours, argnums=1, has_aux=True)(graphdef, branches)

    assert main(["jax-to-hf", str(run), str(tmp_path / "adapter"), "--adapter"]) == 0
    model = peft.PeftModel.from_pretrained(oracle.model, tmp_path / "adapter", is_trainable=True)
    theirs = model(**inputs, use_cache=False).logits
    (theirs * torch.tensor(weight)).sum().backward()
    with model.disable_adapter(), torch.no_grad():
        base = model(**inputs, use_cache=False).logits.numpy()
    theirs = theirs.detach().numpy()
    for row, s in enumerate(samples):
        length = len(s.ids_T)
        assert hf_oracle.relative_error(logits[row, :length], theirs[row, :length]) <= 1e-5
        assert hf_oracle.relative_error(base[row, :length], theirs[row, :length]) > 1e-2

    compared = 0
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            continue
        path, layer = our_place(name)
        got = grads
        for part in path:
            got = got[part]
        got = np.asarray(got if layer is None else got[layer]).T
        # Relative to the largest entry of the leaf, as for the weights themselves.
        assert hf_oracle.relative_error(got, parameter.grad.numpy()) <= 1e-5, name
        compared += 1
    layers, depth = oracle.config.text.layers, oracle.config.vision.depth
    per_block = sum(not n.startswith("mlp_") for n in VISION[oracle.config.family])
    assert compared == 2 * (7 * layers + per_block * depth + 2)
    model.unload()
