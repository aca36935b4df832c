"""LoRA runs: merged on export, or written as an adapter that peft loads."""

import json

import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
import transformers

from converters.cli import main
from vlaa_jax.models.qwen_vl import weights
from vlaa_jax.models.qwen_vl.hf_keys import canonical
from vlaa_jax.models.qwen_vl.safetensors_io import SafetensorsReader
from vlaa_jax.schema import UserError

RANK, ALPHA = 3, 12.0
ADAPTED = (
    ("text", "layers", "self_attn", "q_proj"),
    ("text", "layers", "mlp", "gate_proj"),
    ("vision", "blocks", "attn", "qkv"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with random branches beside three stacked kernels."""
    root = tmp_path_factory.mktemp("lora")
    config = transformers.Qwen2_5_VLConfig(
        vocab_size=120,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]},
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "num_heads": 2,
            "intermediate_size": 20,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
    )
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    model.save_pretrained(root / "base")
    params = weights.load_params(root / "base")
    rng = np.random.default_rng(0)
    for path in ADAPTED:
        node = params
        for part in path:
            node = node[part]
        layers, inputs, outputs = node["kernel"].shape
        node["lora"] = {
            "a": rng.normal(size=(layers, inputs, RANK)).astype(np.float32),
            "b": rng.normal(size=(layers, RANK, outputs)).astype(np.float32),
        }
    directory = root / "run"
    (directory / "hf").mkdir(parents=True)
    for name in ("config.json", "generation_config.json"):
        (directory / "hf" / name).write_bytes((root / "base" / name).read_bytes())
    settings = {"model": {"checkpoint": str(root / "base"), "lora": {"rank": RANK, "alpha": ALPHA}}}
    (directory / "config.json").write_text(json.dumps(settings))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "checkpoints" / "5" / "params", params)
    return directory


def test_a_run_is_read_merged(run):
    base = weights.load_params(run.parent / "base")
    merged = weights.load_params(run)
    raw = ocp.StandardCheckpointer().restore(run / "checkpoints" / "5" / "params")
    for path in ADAPTED:
        before, after, stored = base, merged, raw
        for part in path:
            before, after, stored = before[part], after[part], stored[part]
        a, b = np.asarray(stored["lora"]["a"]), np.asarray(stored["lora"]["b"])
        # Scale 12 / 3 = 4.
        for layer in range(len(a)):
            expected = before["kernel"][layer] + 4.0 * a[layer] @ b[layer]
            np.testing.assert_allclose(after["kernel"][layer], expected, rtol=1e-5, atol=1e-5)
        assert set(after) == set(before)
    untouched = merged["text"]["layers"]["mlp"]["up_proj"]["kernel"]
    np.testing.assert_array_equal(untouched, base["text"]["layers"]["mlp"]["up_proj"]["kernel"])


def test_peft_loads_the_adapter_and_merges_to_the_merged_export(run, tmp_path):
    peft = pytest.importorskip("peft")
    assert main(["jax-to-hf", str(run), str(tmp_path / "merged"), "--quiet"]) == 0
    assert main(["jax-to-hf", str(run), str(tmp_path / "adapter"), "--adapter"]) == 0
    base = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(run.parent / "base")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    adapted = [name for name, _ in model.named_parameters() if ".lora_A." in name]
    assert len(adapted) == 12 + 12 + 2
    theirs = {canonical(n): t.numpy() for n, t in model.merge_and_unload().state_dict().items()}
    reader = SafetensorsReader(tmp_path / "merged")
    for name in reader.tensors:
        np.testing.assert_allclose(reader.view(name), theirs[canonical(name)], rtol=1e-5, atol=1e-5)


def test_a_run_without_branches_has_no_adapter(run, tmp_path, capsys):
    assert main(["jax-to-hf", str(run.parent / "base"), str(tmp_path / "x"), "--adapter"]) == 1
    assert "holds no LoRA branches" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [["--layout", "old"], ["--dtype", "bfloat16"], ["--max-shard-size", "5GB"]],
    ids=lambda option: option[0],
)
def test_an_adapter_takes_no_options_of_merged_weights(run, tmp_path, capsys, option):
    assert main(["jax-to-hf", str(run), str(tmp_path / "x"), "--adapter", *option]) == 1
    err = capsys.readouterr().err
    assert "an adapter is written as stored" in err and err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_branches_need_their_alpha_and_their_other_half(run, tmp_path):
    step = tmp_path / "run" / "checkpoints" / "5"
    raw = ocp.StandardCheckpointer().restore(run / "checkpoints" / "5" / "params")
    (tmp_path / "run" / "hf").mkdir(parents=True)
    config = (run / "hf" / "config.json").read_bytes()
    (tmp_path / "run" / "hf" / "config.json").write_bytes(config)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(step / "params", raw)
    with pytest.raises(UserError, match="alpha is unknown"):
        weights.open_params(step)
    del raw["text"]["layers"]["mlp"]["gate_proj"]["lora"]["b"]
    step = tmp_path / "run" / "checkpoints" / "6"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(step / "params", raw)
    with pytest.raises(UserError, match=r"missing: text\.layers\.mlp\.gate_proj\.lora\.b"):
        weights.open_params(step)
