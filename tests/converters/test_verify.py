"""The verify command against a real transformers model."""

import json
import sys

import numpy as np
import pytest
import torch
import transformers

from converters import verify as verify_module
from converters.cli import main
from vlaa_jax.models.qwen_vl.safetensors_io import SafetensorsReader
from vlaa_jax.schema import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.Qwen2_5_VLConfig(
        vocab_size=200,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]},
        bos_token_id=1,
        eos_token_id=2,
        image_token_id=190,
        video_token_id=191,
        vision_start_token_id=192,
        vision_end_token_id=193,
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
    path = tmp_path_factory.mktemp("source")
    transformers.Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(path)
    return path


def test_a_sound_checkpoint_passes(source, tmp_path, capsys, monkeypatch):
    # One sample with two ragged images keeps compilation short.
    monkeypatch.setattr(verify_module, "_IMAGE_SIZES", verify_module._IMAGE_SIZES[:1])
    assert main(["verify", str(source), "--scratch", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"{len(SafetensorsReader(source).tensors)} tensors there and back" in out
    assert out.endswith("passed\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [1.001, np.nan])
def test_a_model_that_differs_fails(source, capsys, monkeypatch, change):
    monkeypatch.setattr(verify_module, "_IMAGE_SIZES", ((),))
    load = verify_module.load_params

    def load_changed(*args, **kwargs):
        params = load(*args, **kwargs)
        params["text"]["norm"]["scale"] = params["text"]["norm"]["scale"] * np.float32(change)
        return params

    monkeypatch.setattr(verify_module, "load_params", load_changed)
    assert main(["verify", str(source)]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_changed_tensor_is_named(source, tmp_path, capsys, monkeypatch):
    export = verify_module.jax_to_hf.export

    def export_changed(*args, **kwargs):
        target = export(*args, **kwargs)
        info = SafetensorsReader(target).tensors["model.norm.weight"]
        with info.file.open("r+b") as file:
            file.seek(info.offset)
            byte = file.read(1)
            file.seek(info.offset)
            file.write(bytes([byte[0] ^ 1]))
        return target

    monkeypatch.setattr(verify_module.jax_to_hf, "export", export_changed)
    assert main(["verify", str(source)]) == 1
    assert "changed on the way there and back: ['model.norm.weight']" in capsys.readouterr().err


def test_a_lost_tensor_is_named(source, tmp_path, capsys, monkeypatch):
    digests = verify_module._digests

    def losing(directory):
        found = digests(directory)
        if directory != source:
            del found["model.norm.weight"]
        return found

    monkeypatch.setattr(verify_module, "_digests", losing)
    assert main(["verify", str(source)]) == 1
    assert "changed on the way there and back: ['model.norm.weight']" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["5.3.0", "5.4.0", "5.5.4"])
def test_wrong_oracle_versions_are_refused(version):
    with pytest.raises(UserError, match="wrong image positions"):
        verify_module.refuse_wrong_oracle(version)
    for good in ("4.57.6", "5.6.2", "5.23.0", "6.0.0"):
        verify_module.refuse_wrong_oracle(good)


def test_token_ids_outside_of_the_vocabulary(source, tmp_path, capsys):
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    raw = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"image_token_id": 151655}))
    assert main(["verify", str(tmp_path)]) == 1
    assert "token id 151655 lies outside of vocab_size 200" in capsys.readouterr().err


def test_a_missing_directory_is_refused_before_torch_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it would fail, with its own message
    assert main(["verify", str(tmp_path / "nowhere")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "nowhere is not a directory" in err
