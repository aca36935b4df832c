"""There and back by bytes, with transformers writing and reading the HF side."""

import json
import re
import shutil

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.torch
import torch
import transformers
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from converters import hf_to_jax, jax_to_hf
from converters.output import copy_sidecars
from vlaa_jax.models.qwen_vl import weights
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.hf_keys import canonical, flatten, key_table
from vlaa_jax.models.qwen_vl.safetensors_io import SafetensorsReader
from vlaa_jax.schema import UserError

BF16 = np.dtype(ml_dtypes.bfloat16)
TEXT = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "image_token_id": 190,
    "video_token_id": 191,
    "vision_start_token_id": 192,
    "vision_end_token_id": 193,
}
VISION = {
    "qwen2_5_vl": {
        "depth": 2,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 20,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
    },
    "qwen2_vl": {"depth": 2, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 32},
}
SIDECARS = {
    "tokenizer.json": b'{"a":\t1}\r\n',
    "chat_template.jinja": "{{ '\u00e9' }}".encode(),
    "preprocessor_config.json": b"{}",
    "additional_chat_templates/tool.jinja": b"\x00\xff",
}
# Family, tied, layout, and the chunk size: small ones take the tiny model through the paths of the
# large ones.
CASES = [
    ("qwen2_5_vl", True, "old", None),
    ("qwen2_5_vl", False, "new", 1024),
    ("qwen2_5_vl", False, "mixed", None),
    ("qwen2_vl", True, "mixed", 1024),
    ("qwen2_vl", True, "new", None),
    ("qwen2_vl", False, "old", 1024),
]


def hf_model(family, tied, dtype=torch.bfloat16):
    is_25 = family == "qwen2_5_vl"
    config_class = transformers.Qwen2_5_VLConfig if is_25 else transformers.Qwen2VLConfig
    model_class = (
        transformers.Qwen2_5_VLForConditionalGeneration
        if is_25
        else transformers.Qwen2VLForConditionalGeneration
    )
    torch.manual_seed(0)
    config = config_class(**TEXT, vision_config=VISION[family], tie_word_embeddings=tied)
    return model_class(config).to(dtype)


def hf_directory(path, family, tied, layout="old"):
    """What transformers saves, with odd bit patterns and files that are not weights."""
    model = hf_model(family, tied)
    bits = np.random.default_rng(1)
    with torch.no_grad():
        for value in model.parameters():
            # Any 16 bits: NaNs with payloads, infinities, negative zero and subnormals among them.
            raw = bits.integers(-(1 << 15), 1 << 15, value.shape).astype(np.int16)
            value.view(torch.int16).copy_(torch.from_numpy(raw))
    model.save_pretrained(path, max_shard_size="40KB", save_original_format=layout == "old")
    if layout == "mixed":
        rename(path, lambda name: re.sub(r"^model\.language_model\.", "model.", name))
    names = SafetensorsReader(path).tensors
    assert any(n.startswith("model.language_model.") for n in names) == (layout == "new")
    assert any(n.startswith("model.visual.") for n in names) == (layout != "old")
    for name, content in SIDECARS.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(content)
    (path / "training_args.bin").write_bytes(b"a pickle")
    return path


def rename(path, change):
    """Renames tensors in place, as transformers 5.4 to 5.5 wrote them."""
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = {change(n): file for n, file in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    for file in set(content["weight_map"].values()):
        tensors = safetensors.torch.load_file(path / file)
        tensors = {change(name): tensor for name, tensor in tensors.items()}
        safetensors.torch.save_file(tensors, path / file, metadata={"format": "pt"})


def assert_same_bytes(before, after, *, same_names):
    a, b = SafetensorsReader(before), SafetensorsReader(after)
    if same_names:
        assert set(a.tensors) == set(b.tensors)
    names = {canonical(name): name for name in b.tensors}
    assert len(a.tensors) == len(names)
    for name, info in a.tensors.items():
        other = names[canonical(name)]
        assert (info.dtype, info.shape) == (b.tensors[other].dtype, b.tensors[other].shape)
        assert a.view(name).tobytes() == b.view(other).tobytes(), name


def small_chunks(monkeypatch, limit):
    chunk_shape = hf_to_jax.chunk_shape
    monkeypatch.setattr(hf_to_jax, "chunk_shape", lambda key, size: chunk_shape(key, size, limit))


@pytest.mark.parametrize(("family", "tied", "layout", "chunk_bytes"), CASES)
def test_round_trip_is_byte_equal(tmp_path, monkeypatch, family, tied, layout, chunk_bytes):
    if chunk_bytes:
        small_chunks(monkeypatch, chunk_bytes)
    source = hf_directory(tmp_path / "hf", family, tied, layout)
    converted = hf_to_jax.convert(source, tmp_path / "jax")
    marker = json.loads((converted / "vlaa_jax.json").read_text())
    assert marker == {
        "format_version": 1,
        "family": family,
        "dtype": "bfloat16",
        "source_layout": layout,
    }
    back = jax_to_hf.export(converted, tmp_path / "back", layout="source", max_shard_bytes=40_000)
    assert_same_bytes(source, back, same_names=True)
    old = jax_to_hf.export(converted, tmp_path / "old")
    assert_same_bytes(source, old, same_names=layout == "old")
    assert not (old / "model.safetensors.index.json").exists()
    for directory in (converted / "hf", back, old):
        for name in (*SIDECARS, "config.json", "generation_config.json"):
            assert (directory / name).read_bytes() == (source / name).read_bytes()
        assert not (directory / "training_args.bin").exists()


def test_transformers_reads_what_we_write(tmp_path):
    family, tied = "qwen2_5_vl", True
    model = hf_model(family, tied)
    model.save_pretrained(tmp_path / "hf")
    converted = hf_to_jax.convert(tmp_path / "hf", tmp_path / "jax")
    for layout in ("old", "new", "mixed"):
        back = jax_to_hf.export(converted, tmp_path / layout, layout=layout, max_shard_bytes=40_000)
        loaded, info = type(model).from_pretrained(
            back, dtype=torch.bfloat16, output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        for (name, a), b in zip(
            model.state_dict().items(), loaded.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), name


def test_a_tied_model_never_gets_a_head_of_its_own(tmp_path):
    source = hf_directory(tmp_path / "hf", "qwen2_vl", tied=True, layout="old")
    index = source / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    file = source / content["weight_map"]["model.embed_tokens.weight"]
    tensors = safetensors.torch.load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    content["weight_map"]["lm_head.weight"] = file.name
    index.write_text(json.dumps(content))
    back = jax_to_hf.export(hf_to_jax.convert(source, tmp_path / "jax"), tmp_path / "back")
    assert set(SafetensorsReader(source).tensors) - set(SafetensorsReader(back).tensors) == {
        "lm_head.weight"
    }


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    root = tmp_path_factory.mktemp("converted")
    hf_model("qwen2_5_vl", tied=False).save_pretrained(root / "hf")
    with pytest.MonkeyPatch.context() as patch:
        small_chunks(patch, 1024)
        return hf_to_jax.convert(root / "hf", root / "jax")


def test_orbax_restores_what_we_write(converted):
    host = dict(flatten(weights.load_params(converted.parent / "hf")))
    restored = ocp.StandardCheckpointer().restore(converted / "params")
    for path, leaf in flatten(restored):
        assert leaf.dtype == host[path].dtype
        np.testing.assert_array_equal(np.asarray(leaf), host[path])
    assert len(list(flatten(restored))) == len(host)


def test_orbax_restores_it_onto_a_mesh(converted):
    mesh = Mesh(np.array(jax.devices()[:4]), ("fsdp",))

    def abstract(leaf):
        axes = [None] * (leaf.ndim - 1) + ["fsdp" if leaf.shape[-1] % 4 == 0 else None]
        return jax.ShapeDtypeStruct(
            leaf.shape, np.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes))
        )

    host = weights.load_params(converted)
    wanted = jax.tree.map(abstract, host)
    ours = weights.load_params(converted, wanted)
    theirs = ocp.StandardCheckpointer().restore(converted / "params", wanted)
    ours, theirs = dict(flatten(ours)), dict(flatten(theirs))
    for path, leaf in flatten(host):
        for placed in (ours[path], theirs[path]):
            assert placed.dtype == np.float32
            assert placed.sharding.mesh == mesh
            np.testing.assert_array_equal(np.asarray(placed), leaf.astype(np.float32), str(path))


def test_a_lost_chunk_is_noticed(tmp_path, converted):
    shutil.copytree(converted, tmp_path / "copy")
    (tmp_path / "copy" / "params" / "text.layers.mlp.up_proj.kernel" / "2.0.0").unlink()
    with pytest.raises(UserError, match=r"incomplete: text\.layers\.mlp\.up_proj\.kernel lacks 1"):
        weights.open_params(tmp_path / "copy")


def test_a_checkpoint_without_its_marker_is_unfinished(tmp_path, converted):
    shutil.copytree(converted, tmp_path / "copy")
    (tmp_path / "copy" / "vlaa_jax.json").unlink()
    with pytest.raises(UserError, match="its conversion did not finish"):
        weights.open_params(tmp_path / "copy")
    (tmp_path / "copy" / "vlaa_jax.json").write_text('{"format_version": 99}')
    with pytest.raises(UserError, match="format_version is 99"):
        weights.open_params(tmp_path / "copy")


def test_export_of_a_float32_run_takes_the_recorded_dtype(tmp_path):
    model = hf_model("qwen2_vl", tied=True)
    model.save_pretrained(tmp_path / "hf")
    params = weights.load_params(tmp_path / "hf", dtype=np.float32)
    trained = jax.tree.map(lambda x: x * np.float32(1.01), params)
    run = tmp_path / "run"
    (run / "hf").mkdir(parents=True)
    config = (tmp_path / "hf" / "config.json").read_bytes()
    (run / "hf" / "config.json").write_bytes(config)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(run / "checkpoints" / "2" / "params", trained)
    rounded = weights.load_params(jax_to_hf.export(run, tmp_path / "bf16"))
    exact = weights.load_params(jax_to_hf.export(run, tmp_path / "f32", dtype="float32"))
    rounded, exact = dict(flatten(rounded)), dict(flatten(exact))
    for path, a in flatten(trained):
        b, c = rounded[path], exact[path]
        np.testing.assert_array_equal(a.astype(BF16).view(np.uint16), b.view(np.uint16), str(path))
        np.testing.assert_array_equal(a, c, str(path))


def test_export_of_a_run_stored_in_shards(tmp_path):
    # Sharded saves cut every axis; export must put rows together again.
    model = hf_model("qwen2_5_vl", tied=False)
    model.save_pretrained(tmp_path / "hf")
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    params = weights.load_params(tmp_path / "hf")

    def shard(leaf):
        axes = [n if d % 2 == 0 else None for d, n in zip(leaf.shape[-2:], "ab", strict=False)]
        spec = PartitionSpec(*[None] * (leaf.ndim - len(axes)), *axes)
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    (tmp_path / "run" / "hf").mkdir(parents=True)
    config = (tmp_path / "hf" / "config.json").read_bytes()
    (tmp_path / "run" / "hf" / "config.json").write_bytes(config)
    with ocp.StandardCheckpointer() as checkpointer:
        step = tmp_path / "run" / "checkpoints" / "1"
        checkpointer.save(step / "params", jax.tree.map(shard, params))
    assert_same_bytes(tmp_path / "hf", jax_to_hf.export(step, tmp_path / "back"), same_names=True)


def test_dtype_on_import(tmp_path):
    hf_model("qwen2_vl", tied=True).save_pretrained(tmp_path / "hf")
    wide = hf_to_jax.convert(tmp_path / "hf", tmp_path / "jax", dtype="float32")
    stored = weights.load_params(tmp_path / "hf")
    for (_, a), (_, b) in zip(flatten(stored), flatten(weights.load_params(wide)), strict=True):
        np.testing.assert_array_equal(a.astype(np.float32), b)


def test_pieces_of_the_largest_model_stay_small():
    for config in QwenVLConfig.RELEASED.values():
        for key in key_table(config):
            chunk = hf_to_jax.chunk_shape(key, 2)
            assert 2 * np.prod(chunk) <= hf_to_jax.CHUNK_BYTES, key.name
            assert all(size % part == 0 for size, part in zip(key.shape, chunk, strict=True))


def test_recorded_dtype():
    assert jax_to_hf.recorded_dtype({"torch_dtype": "bfloat16"}) == "bfloat16"
    assert jax_to_hf.recorded_dtype({"text_config": {"dtype": "torch.float32"}}) == "float32"
    assert jax_to_hf.recorded_dtype({}) is None


def test_files_hold_vision_first_and_layers_by_number():
    names = [
        "lm_head.weight",
        "model.layers.10.mlp.up_proj.weight",
        "model.layers.9.mlp.up_proj.weight",
        "model.embed_tokens.weight",
        "visual.blocks.2.norm1.weight",
        "visual.blocks.11.norm1.weight",
    ]
    ordered = sorted(names, key=jax_to_hf._file_order)
    assert ordered == [
        "visual.blocks.2.norm1.weight",
        "visual.blocks.11.norm1.weight",
        "model.embed_tokens.weight",
        "model.layers.9.mlp.up_proj.weight",
        "model.layers.10.mlp.up_proj.weight",
        "lm_head.weight",
    ]


def test_a_sidecar_that_is_a_link_to_nothing_is_an_error(tmp_path):
    (tmp_path / "tokenizer.json").symlink_to("gone")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"tokenizer\.json is a link to gone"):
        copy_sidecars(tmp_path, tmp_path / "out")
