import copy
import json

import pytest
from transformers import Qwen2_5_VLConfig, Qwen2VLConfig

from vlaa_jax.models.qwen_vl.config import QwenVLConfig, TextConfig, VisionConfig
from vlaa_jax.models.qwen_vl.hf_config import parse_config, read_config, to_hf
from vlaa_jax.schema import UserError

HF_CLASSES = {"qwen2_5_vl": Qwen2_5_VLConfig, "qwen2_vl": Qwen2VLConfig}

# The Hub's config.json of Qwen2.5-VL-3B, as it is published.
RAW_3B = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}

# The Hub's config.json of Qwen2-VL-2B, as it is published.
RAW_2VL_2B = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 1536,
    "initializer_range": 0.02,
    "intermediate_size": 8960,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2_vl",
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_chans": 3,
        "hidden_size": 1536,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}

TEXT_KEYS = [
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "vocab_size",
    "use_sliding_window",
    "attention_dropout",
]


def nested(hf):
    """The spelling of transformers 4.52 to 4.57: text keys below text_config, rope type changed."""
    hf = copy.deepcopy(hf)
    hf["text_config"] = {key: hf.pop(key) for key in TEXT_KEYS}
    hf["text_config"]["rope_scaling"] |= {"type": "default", "rope_type": "default"}
    hf["text_config"]["tie_word_embeddings"] = hf.pop("tie_word_embeddings")
    return hf


def rope_parameters(hf):
    """The spelling of transformers 5."""
    hf = nested(hf)
    text = hf["text_config"]
    rope = {"rope_theta": text.pop("rope_theta"), "rope_type": "default"}
    text["rope_parameters"] = text.pop("rope_scaling") | rope
    hf["vision_config"]["model_type"] = f"{hf['model_type']}_vision"
    return hf


SPELLINGS = [copy.deepcopy, nested, rope_parameters]


@pytest.mark.parametrize("spell", SPELLINGS)
def test_every_spelling_of_a_published_file_reads_as_the_released_model(spell):
    assert parse_config(spell(RAW_3B)) == QwenVLConfig.RELEASED["Qwen2.5-VL-3B"]
    assert parse_config(spell(RAW_2VL_2B)) == QwenVLConfig.RELEASED["Qwen2-VL-2B"]


@pytest.mark.parametrize("spell", SPELLINGS)
@pytest.mark.parametrize("name", QwenVLConfig.RELEASED)
def test_every_spelling_of_every_model_reads_the_same(spell, name):
    config = QwenVLConfig.RELEASED[name]
    flat = {"attention_dropout": 0.0, "hidden_act": "silu", **to_hf(config)}
    assert parse_config(spell(flat)) == config


@pytest.mark.parametrize("name", QwenVLConfig.RELEASED)
def test_released_survive_a_rewrite_by_transformers(name):
    config = QwenVLConfig.RELEASED[name]
    assert parse_config(to_hf(config)) == config
    rewritten = HF_CLASSES[config.family](**to_hf(config)).to_json_string(use_diff=False)
    assert parse_config(json.loads(rewritten)) == config


def test_there_are_seven_released_models():
    assert sorted(QwenVLConfig.RELEASED) == [
        "Qwen2-VL-2B",
        "Qwen2-VL-72B",
        "Qwen2-VL-7B",
        "Qwen2.5-VL-32B",
        "Qwen2.5-VL-3B",
        "Qwen2.5-VL-72B",
        "Qwen2.5-VL-7B",
    ]


def test_missing_keys_take_the_released_values():
    # The 32B file leaves its vision tower almost unsaid.
    raw = RAW_3B | {
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "num_hidden_layers": 64,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
        "vision_config": {"hidden_size": 1280, "in_chans": 3, "out_hidden_size": 5120},
    }
    for key in ("rms_norm_eps", "rope_theta", "eos_token_id", "image_token_id"):
        del raw[key]
    assert parse_config(raw) == QwenVLConfig.RELEASED["Qwen2.5-VL-32B"]


def test_positions_of_a_file_that_does_not_say_how_many():
    for raw, most in ((RAW_3B, 128_000), (RAW_2VL_2B, 32_768)):
        silent = {key: value for key, value in raw.items() if key != "max_position_embeddings"}
        assert parse_config(silent).text.max_positions == most
        silent["text_config"] = {"max_position_embeddings": 4096}
        assert parse_config(silent).text.max_positions == 4096
    with pytest.raises(UserError, match="max_position_embeddings must be positive"):
        parse_config(RAW_3B | {"max_position_embeddings": 0})


def test_class_defaults_of_transformers_are_not_used():
    raw = copy.deepcopy(RAW_3B)
    raw["vision_config"] = {}
    vision = parse_config(raw).vision
    assert (vision.width, vision.tokens_per_second, vision.intermediate) == (1280, 2.0, 3420)


def test_an_empty_vision_section_of_qwen2_vl_is_the_released_tower():
    raw = RAW_2VL_2B | {"vision_config": {}}
    assert parse_config(raw) == QwenVLConfig.RELEASED["Qwen2-VL-2B"]


def test_qwen2_vl_has_no_windows():
    vision = QwenVLConfig.RELEASED["Qwen2-VL-7B"].vision
    assert vision.window_size == 0
    assert vision.full_blocks == tuple(range(32))
    assert vision.intermediate == 4 * 1280


def test_full_blocks_past_the_depth_are_ignored_as_transformers_does():
    raw = copy.deepcopy(RAW_3B)
    raw["vision_config"]["depth"] = 16
    assert parse_config(raw).vision.full_blocks == (7, 15)


@pytest.mark.parametrize(
    ("top", "text", "tied"),
    [(True, None, True), (None, True, True), (False, None, False), (None, None, False),
     (False, True, True)],
)  # fmt: skip
def test_tying_is_read_at_both_places_as_transformers_does(top, text, tied):
    raw = nested(RAW_3B)
    raw.pop("tie_word_embeddings", None)
    for place, value in ((raw, top), (raw["text_config"], text)):
        place.pop("tie_word_embeddings", None)
        if value is not None:
            place["tie_word_embeddings"] = value
    assert parse_config(raw).tie_word_embeddings is tied
    assert Qwen2_5_VLConfig(**raw).tie_word_embeddings is tied


def test_several_end_tokens_keep_the_first():
    assert parse_config(RAW_3B | {"eos_token_id": [151645, 151643]}).eos_token_id == 151645


def test_derived_sizes():
    vision = VisionConfig(depth=1, width=32, heads=2, intermediate=8, out_size=16, full_blocks=())
    assert (vision.head_dim, vision.patch_dim) == (16, 3 * 2 * 14 * 14)
    assert TextConfig(8, 8, 8, 1, 1, 1, 8).mrope_section == (16, 24, 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen3_vl"}, "model_type is 'qwen3_vl'; supported are qwen2_vl, qwen2_5"),
        ({"model_type": None}, "model_type is None"),
        ({"use_sliding_window": True}, "use_sliding_window is on"),
        ({"layer_types": ["sliding_attention"]}, "sliding windows are unsupported"),
        ({"attention_dropout": 0.1}, "attention_dropout is not 0"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported is silu"),
        ({"quantization_config": {"bits": 4}}, "quantised checkpoints are not supported"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling.type is 'yarn'"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24]}}, "three whole numbers"),
        ({"rope_scaling": {"mrope_section": [16, 24, 25]}}, "must sum to half of the head size"),
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be positive"),
        ({"num_hidden_layers": -3}, "num_hidden_layers must not be negative"),
        ({"num_hidden_layers": "36"}, "num_hidden_layers must be a whole number, not '36'"),
        ({"hidden_size": 2050}, "does not divide by num_attention_heads 16"),
        ({"num_key_value_heads": 3}, "16 must divide by num_key_value_heads 3"),
        ({"vision_config": {"out_hidden_size": 5}}, "output size 5 must equal the text hidden"),
        ({"vision_config": {"hidden_act": "gelu"}}, "vision_config.hidden_act is 'gelu'"),
        ({"vision_config": {"window_size": 100}}, "window_size 100 must divide by"),
        ({"vision_config": {"fullatt_block_indexes": 7}}, "must be a list of whole numbers"),
        ({"vision_config": []}, "vision_config must be an object, not list"),
        ({"num_hidden_layers": float("inf")}, "num_hidden_layers must be a whole number, not inf"),
        ({"eos_token_id": []}, "eos_token_id must be a whole number or a list of them, not []"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be a whole number or a list of them"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps must be a positive number"),
    ],
)
def test_what_we_cannot_follow_is_refused_in_one_line(change, message):
    with pytest.raises(UserError, match=r"^some") as caught:
        parse_config(RAW_3B | change, "some/config.json")
    text = str(caught.value)
    assert message in text
    assert text.startswith("some/config.json: ")
    assert "\n" not in text


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="not a JSON object"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(RAW_3B))
    assert read_config(tmp_path) == QwenVLConfig.RELEASED["Qwen2.5-VL-3B"]
