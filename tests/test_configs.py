"""Config files hold every setting, so that each can be given on the command line."""

import dataclasses

import pytest

from configs import evaluate, grpo, heldout, perplexity, sft
from vlaa_jax.schema import UserError
from vlaa_jax.settings import by_source
from vlaa_jax.settings.evaluate import EvaluateSettings
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.settings.perplexity import PerplexitySettings
from vlaa_jax.settings.sft import SftSettings
from vlaa_jax.settings.study import HeldoutSettings
from vlaa_jax.settle import settle

VARIANTS = ["", *grpo.VARIANTS, "tiny,dapo", "7b,rule-only,lora"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_configs_settle(variant):
    config = grpo.get_config(variant).to_dict()
    settle(config)


@pytest.mark.parametrize("variant", ["", *evaluate.VARIANTS, "tiny,pass8", "leaderboard,pass8"])
def test_evaluations_settle(variant):
    settings = settle(evaluate.get_config(variant).to_dict())
    assert isinstance(settings, EvaluateSettings)


def test_the_regimes_of_decoding_are_those_of_paper_and_leaderboard():
    paper, board = (evaluate.get_config(name).generation for name in ("paper", "leaderboard"))
    assert (paper.new_tokens, paper.max_pixels, paper.temperature) == (800, 256 * 32 * 32, 0)
    assert (board.new_tokens, board.temperature, board.top_k) == (2048, 0.01, 1)
    assert (board.min_pixels, board.max_pixels) == (1280 * 28 * 28, 16384 * 28 * 28)
    assert paper.system_prompt == grpo.SYSTEM_PROMPT
    assert len(board.system_prompt) == len(grpo.SYSTEM_PROMPT) - 2
    assert board.system_prompt.endswith("</think><answer> answer here </answer>")
    assert "and<answer> </answer> tags" in board.system_prompt


def test_variants_are_applied_in_one_order():
    assert grpo.get_config("lora,tiny") == grpo.get_config("tiny,lora")
    assert grpo.get_config("dapo,tiny").rewards.overlong_buffer == 48 // 5
    assert grpo.get_config("rule-only,7b").run.steps == 39
    assert grpo.get_config("rule-only,tiny").run.steps == 120


@pytest.mark.parametrize("variant", ["3b,7b", "tiny,7b", "dapo,drgrpo", "gspo,tiny,dapo"])
def test_variants_that_exclude_each_other(variant):
    with pytest.raises(ValueError, match="choose one of"):
        grpo.get_config(variant)


def keys(cls):
    found = set()
    for field in dataclasses.fields(cls):
        inner = field.default_factory if dataclasses.is_dataclass(field.default_factory) else None
        found |= {f"{field.name}.{k}" for k in keys(inner)} if inner else {field.name}
    return found


def flat(mapping, prefix=""):
    found = set()
    for name, value in mapping.items():
        nested = isinstance(value, dict)
        found |= flat(value, f"{prefix}{name}.") if nested else {prefix + name}
    return found


def test_every_setting_is_in_the_config():
    config = flat(grpo.get_config().to_dict())
    assert config == keys(GrpoSettings)
    assert flat(evaluate.get_config().to_dict()) == keys(EvaluateSettings)


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("mesh", "fsdp", 0),
        ("mesh", "tensor", -1),
        ("algo", "kl_coef", -1.0),
        ("algo", "dual_clip", 0.5),
        ("algo", "micro_prompts", -4),
        ("run", "eval_completions", 0),
        ("rollout", "top_p", 0.0),
        ("rollout", "temperature", 0.0),
        ("model", "freeze", ("vision", "merger", "language", "embeddings")),
        ("model", "freeze", ("head",)),
    ],
)
def test_values_out_of_range_are_refused_by_name(group, name, value):
    config = grpo.get_config("tiny").to_dict()
    config[group][name] = value
    with pytest.raises(UserError, match=rf"{group}\.{name}"):
        settle(config)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("box_space", "square", r"data\.box_space: 'square' is not one of normalized, "),
        ("box_space", "vg=square", r"data\.box_space: vg: 'square' is not one of normalized, "),
        ("box_space", "vg=", r"data\.box_space: 'vg=' is not SOURCE=VALUE"),
        ("box_space", "VG=normalized,vg=normalized", r"data\.box_space: 'vg' is given twice"),
        ("source_weights", "vg", r"data\.source_weights: 'vg' is not SOURCE=VALUE"),
        ("source_weights", "vg=two", r"data\.source_weights: vg=two: expected a number"),
        ("source_weights", "vg=0", r"data\.source_weights: vg=0: must be above 0"),
        ("source_weights", "vg=nan", r"data\.source_weights: vg=nan: must be above 0"),
        ("source_weights", "vg=1,,coco=1", r"data\.source_weights: '' is not SOURCE=VALUE"),
        ("workers", -1, r"data\.workers: -1 is too small"),
    ],
)
def test_data_settings_are_checked_at_the_door(name, value, message):
    config = grpo.get_config("tiny").to_dict()
    config["data"][name] = value
    with pytest.raises(UserError, match=message):
        settle(config)


def test_box_spaces_and_weights_are_read_by_source():
    assert by_source.box_spaces("") == "normalized"
    assert by_source.box_spaces(" original_pixels") == "original_pixels"
    spaces = by_source.box_spaces("VG=normalized_square, coco = normalized")
    assert spaces == {"vg": "normalized_square", "coco": "normalized"}
    assert by_source.source_weights(" ") is None
    assert by_source.source_weights("VG=2,synthesis=0.5") == {"vg": 2.0, "synthesis": 0.5}


def test_gspo_with_a_ppo_clip_is_refused():
    config = grpo.get_config("tiny").to_dict()
    config["algo"]["loss"] = "gspo"
    with pytest.raises(UserError, match="never clip"):
        settle(config)


def test_variants_combine_from_left_to_right():
    config = grpo.get_config("2vl-7b,rule-only,dapo")
    assert config.model.checkpoint == "Qwen/Qwen2-VL-7B-Instruct"
    assert "open_ended" not in config.data.verifier_types
    assert config.algo.clip_high == 0.28
    assert config.rewards.overlong_buffer == 1024 // 5


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match=r"'dapoo'; known: .*dapo"):
        grpo.get_config("tiny,dapoo")


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (sft.get_config(), SftSettings),
        (perplexity.get_config(), PerplexitySettings),
        (heldout.get_config(), HeldoutSettings),
    ],
    ids=["sft", "perplexity", "heldout"],
)
def test_every_setting_of_other_tasks_is_in_their_config(config, settings):
    assert flat(config.to_dict()) == keys(settings)


@pytest.mark.parametrize("variant", ["", *sft.VARIANTS, "7b,aha,lora", "tiny,lora"])
def test_sft_configs_settle(variant):
    settle(sft.get_config(variant).to_dict())
