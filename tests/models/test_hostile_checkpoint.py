"""Directories made to break the reader: one line each, at once, and nothing is built of them."""

import copy
import json
import os

import pytest

from test_config import RAW_3B
from vlaa_jax.models.qwen_vl.hf_config import parse_config
from vlaa_jax.models.qwen_vl.safetensors_io import SafetensorsReader, read_header
from vlaa_jax.models.qwen_vl.sources import OrbaxSource, read_json
from vlaa_jax.schema import UserError


def safetensors_file(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def entry(begin, end, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": shape or [(end - begin) // 4], "data_offsets": [begin, end]}


HEADERS = {
    "deep": (b'{"a":' * 100_000, "nested too deeply"),
    "infinity": (b'{"a": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 8]}}', "finite"),
    "huge integer": ({"a": entry(0, 8, [2**70])}, "integer of 22 digits"),
    "list as dtype": ({"a": entry(0, 8, dtype=["F32"])}, "its dtype is no text"),
    "object as dtype": ({"a": entry(0, 8, dtype={})}, "its dtype is no text"),
    "number as entry": ({"a": 3}, "broken header entry"),
    "text as size": ({"a": entry(0, 8, ["2"])}, "its shape or data_offsets"),
    "flag as size": ({"a": entry(0, 8, [True, 2])}, "its shape or data_offsets"),
    "fraction as size": ({"a": entry(0, 8, [2.0])}, "its shape or data_offsets"),
    "negative size": ({"a": entry(0, 8, [-2])}, "its shape or data_offsets"),
    "one offset": ({"a": {**entry(0, 8), "data_offsets": [0]}}, "its shape or data_offsets"),
    "many dimensions": ({"a": entry(0, 8, [1] * 99 + [2])}, "its shape or data_offsets"),
    "wraps to the right size": ({"a": entry(0, 8, [2**62 + 2])}, "its shape needs"),
    "wraps in a product": ({"a": entry(0, 8, [2**33, 2**33])}, "its shape needs"),
    "backwards": ({"a": {**entry(0, 8), "data_offsets": [8, 0]}}, "spans -8 bytes"),
    "overlap": ({"a": entry(0, 8), "b": entry(4, 8)}, "b overlaps the tensor before it"),
    "same bytes twice": ({"a": entry(0, 8), "b": entry(0, 8)}, "overlaps the tensor before it"),
    "gap": ({"a": entry(0, 4), "b": entry(8, 12)}, "cut off|leaves a gap"),
    "beyond the end": ({"a": entry(0, 4000)}, "is cut off: a ends at byte"),
    "bytes behind": ({"a": entry(0, 4)}, "4 bytes follow the last tensor"),
    "the same name twice": (b'{"a": {}, "a": {}}', "the key 'a' comes twice"),
    "not UTF-8": (b'{"\xff": {}}', "not UTF-8"),
    "terminal codes in a name": ({"\x1b[2J": 3}, r"\\x1b\[2J has a broken header entry"),
    "quantised": ({"a": entry(0, 8, [8], "F8_E4M3")}, "has dtype F8_E4M3; supported are"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_header_is_refused_in_one_line(tmp_path, name):
    header, message = HEADERS[name]
    file = safetensors_file(tmp_path / "model.safetensors", header, b"\0" * 8)
    start = os.times().user
    with pytest.raises(UserError, match=message) as caught:
        SafetensorsReader(tmp_path)
    assert str(file) in str(caught.value) and str(caught.value).isprintable()
    assert len(str(caught.value)) < 400 and os.times().user - start < 2.0


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 90, 5 << 20])
def test_a_header_longer_than_its_file_or_our_limit_is_not_read(tmp_path, length):
    file = safetensors_file(tmp_path / "a.safetensors", b"{}", length=length)
    if length == 5 << 20:
        with file.open("r+b") as stream:
            stream.truncate(1 << 30)
    with pytest.raises(UserError, match=r"cut off in its header|over our limit"):
        read_header(file)


def test_empty_tensors_and_metadata_are_no_offence(tmp_path):
    header = {
        "__metadata__": {"format": "pt"},
        **{"e": entry(0, 0, [0, 4]), "a": entry(0, 8), "f": entry(8, 8, [0])},
    }
    file = safetensors_file(tmp_path / "a.safetensors", header, b"\0" * 8)
    assert sorted(read_header(file)) == ["a", "e", "f"]


ABSURD = [
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, more than any model has"),
    ({"vocab_size": 10**12}, "vocab_size is"),
    ({"hidden_size": 10**9}, "hidden_size is"),
    ({"hidden_size": 1e300}, "hidden_size is"),
    ({"intermediate_size": 10**10}, "intermediate_size is"),
    ({"num_attention_heads": 10**6}, "num_attention_heads is"),
    ({"num_key_value_heads": 10**6}, "num_key_value_heads is"),
    ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number"),
    ({"vocab_size": [151936] * 1000}, "vocab_size must be a whole number"),
    ({"rms_norm_eps": 1e300}, "rms_norm_eps is 1e"),
    ({"rms_norm_eps": 1e-300}, "rms_norm_eps is 1e-300"),
    ({"rms_norm_eps": True}, "rms_norm_eps must be a positive number"),
    ({"rope_theta": 1e300}, "rope_theta is"),
    ({"vision_config": {"depth": 10**9}}, "vision_config.depth is"),
    ({"vision_config": {"patch_size": 0}}, "patch_size x spatial_merge_size must be positive"),
    ({"vision_config": {"patch_size": 10**6}}, "vision_config.patch_size is"),
    ({"vision_config": {"spatial_merge_size": 10**6}}, "vision_config.spatial_merge_size is"),
    ({"vision_config": {"temporal_patch_size": 10**6}}, "vision_config.temporal_patch_size is"),
    ({"vision_config": {"in_channels": 10**9}}, "vision_config.in_channels is"),
    ({"vision_config": {"window_size": 10**9}}, "vision_config.window_size is"),
    ({"vision_config": {"tokens_per_second": 1e30}}, "vision_config.tokens_per_second is"),
    ({"image_token_id": 10**15}, "image_token_id is"),
    ({"pad_token_id": "no"}, "pad_token_id must be a whole number"),
    ({"pad_token_id": [1]}, "pad_token_id must be a whole number"),
    ({"model_type": ["qwen2_vl"]}, "model_type is ['qwen2_vl']"),
    ({"model_type": {}}, "model_type is {}"),
    ({"text_config": 3}, "text_config must be an object"),
    ({"layer_types": 3}, "layer_types must be a list"),
    ({"rope_scaling": {"type": ["x"] * 9999}}, "rope_scaling.type is"),
    ({"rope_scaling": {"mrope_section": [True, 24, 39]}}, "three whole numbers"),
    ({"vision_config": {"fullatt_block_indexes": [1.5]}}, "must be a list of whole numbers"),
    ({"vision_config": {"hidden_act": ["silu"]}}, "vision_config.hidden_act is"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), ABSURD)
def test_an_absurd_config_is_refused_by_its_key_at_once(change, message):
    start = os.times().user
    with pytest.raises(UserError) as caught:
        parse_config(copy.deepcopy(RAW_3B) | change)
    assert message in str(caught.value) and len(str(caught.value)) < 300
    assert os.times().user - start < 0.5


@pytest.mark.parametrize(
    ("model_type", "what"),
    [("qwen2", "text-only Qwen2 or Qwen2.5"), ("qwen3_vl", "Qwen3-VL, which is not supported yet")],
)
def test_another_family_is_named(model_type, what):
    with pytest.raises(UserError, match=f"'{model_type}'; supported are qwen2_vl, .*{what}"):
        parse_config(RAW_3B | {"model_type": model_type})


@pytest.mark.parametrize(
    "metadata", ["{}", '{"tree_metadata": 3}', '{"tree_metadata": {"a": {"key_metadata": [{}]}}}']
)
def test_metadata_that_orbax_never_wrote_is_refused_in_one_line(tmp_path, metadata):
    (tmp_path / "config.json").write_text(json.dumps(RAW_3B))
    (tmp_path / "_METADATA").write_text(metadata)
    with pytest.raises(UserError, match="_METADATA is no list of arrays"):
        OrbaxSource(tmp_path, tmp_path)


def test_a_marker_that_is_a_pointer_or_a_device_is_refused(tmp_path):
    (tmp_path / "a.json").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="not a regular file"):
        read_json(tmp_path / "a.json")
