"""``config.json`` of Hugging Face, read and written.

Three spellings are read: the flat file of the Hub, the nested ``text_config`` of transformers
>= 4.52, and ``rope_parameters`` (transformers 5) in place of ``rope_scaling`` + ``rope_theta``. A
missing key takes its value in the released models, never the class default of transformers: those
differ (vision ``hidden_size`` 3584, ``tokens_per_second`` 4, ``rms_norm_eps`` 1e-5), and the
released 32B file leaves out its vision depth, heads and full-attention blocks.

No jax here: the configuration is read by host-side code too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlaa_jax.foreign import read_object, shown
from vlaa_jax.models.qwen_vl.config import (
    FULL_BLOCKS,
    MAX_POSITIONS,
    Family,
    QwenVLConfig,
    TextConfig,
    VisionConfig,
)
from vlaa_jax.schema import UserError

ARCHITECTURES: dict[str, str] = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
}
"""Model type of ``config.json`` to the class name transformers writes in ``architectures``."""

_OTHERS = {
    "qwen2": "a text-only Qwen2 or Qwen2.5; take one of Qwen2.5-VL",
    "qwen3": "a text-only Qwen3; take one of Qwen2.5-VL",
    "qwen2_moe": "a text-only mixture of experts",
    "qwen3_moe": "a text-only mixture of experts",
    "qwen3_vl": "Qwen3-VL, which is not supported yet; take one of Qwen2.5-VL",
    "qwen3_vl_moe": "a Qwen3-VL mixture of experts",
    "qwen3_5": "Qwen3.5, which is not supported",
    "qwen2_5_omni": "Qwen2.5-Omni; take one of Qwen2.5-VL",
    "qwen2_audio": "Qwen2-Audio, which sees no images",
    "qwen2_vl_text": "the text part of Qwen2-VL alone",
    "qwen2_5_vl_text": "the text part of Qwen2.5-VL alone",
    "llama": "a text-only Llama",
    "llava": "LLaVA",
    "llava_onevision": "LLaVA-OneVision",
    "internvl": "InternVL",
    "internvl_chat": "InternVL",
    "idefics3": "Idefics3",
    "paligemma": "PaliGemma",
    "gemma3": "Gemma 3",
    "mllama": "Llama 3.2 Vision",
}
"""What else people point to, by model type."""
_VISION_ACTIVATION = {"qwen2_vl": "quick_gelu", "qwen2_5_vl": "silu"}
_VISION_TOKENS = (
    "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"
)  # fmt: skip

_MAX_TOKEN_ID = 1 << 22
_MOST = {
    "num_hidden_layers": 512,
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 19,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "vocab_size": _MAX_TOKEN_ID,
    "depth": 512,
    "num_heads": 1024,
    "embed_dim": 1 << 16,
    "out_hidden_size": 1 << 16,
    "patch_size": 128,
    "temporal_patch_size": 16,
    "spatial_merge_size": 16,
    "in_channels": 16,
    "in_chans": 16,
    "window_size": 1 << 14,
}
"""Several times the largest released value of each key: nothing is built of an absurd one."""
_RANGES = {
    "rms_norm_eps": (1e-12, 0.1),
    "rope_theta": (1.0, 1e12),
    "mlp_ratio": (0.01, 64.0),
    "tokens_per_second": (1e-3, 1e4),
}


def parse_config(hf: Mapping[str, Any], where: str = "config.json") -> QwenVLConfig:
    """The configuration of a parsed ``config.json``.

    Args:
      hf: the parsed file, in any of the three spellings.
      where: the file's name, for error messages.

    Raises:
      UserError: a size is missing or impossible, or a setting is not supported.
    """
    family = _family(hf.get("model_type"), where)
    _refuse_unsupported(_Section(hf, where))
    text = _text_config(_Section(hf, where, "text_config"), family)
    vision = _vision_config(_Section(hf, where, "vision_config", fall_back=False), family, text)
    tokens = _Section(hf, where, "text_config")
    config = QwenVLConfig(
        family=family,
        text=text,
        vision=vision,
        tie_word_embeddings=bool(tie_keys(hf)),
        eos_token_id=_end_token(tokens, QwenVLConfig.eos_token_id),
        pad_token_id=_pad_token(tokens),
        **{name: tokens.integer(name, getattr(QwenVLConfig, name)) for name in _VISION_TOKENS},
    )
    _check_sizes(config, where)
    return config


def read_config(path: str | Path) -> QwenVLConfig:
    """``parse_config`` of ``path/config.json``; UserError where that is missing or no object."""
    return parse_config(read_hf_config(path), str(Path(path) / "config.json"))


def to_hf(config: QwenVLConfig, dtype: str = "bfloat16") -> dict[str, Any]:
    """A flat ``config.json`` as the Hub has it, readable by every transformers >= 4.49.

    Args:
      config: the model.
      dtype: name of the weights' dtype, recorded as ``torch_dtype``.
    """
    text, vision = config.text, config.vision
    return {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "intermediate_size": text.intermediate,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "max_position_embeddings": text.max_positions,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(text.mrope_section)},
        "use_sliding_window": False,
        "tie_word_embeddings": config.tie_word_embeddings,
        **{name: getattr(config, name) for name in _VISION_TOKENS},
        "eos_token_id": config.eos_token_id,
        **({} if config.pad_token_id is None else {"pad_token_id": config.pad_token_id}),
        "torch_dtype": dtype,
        "vision_config": _vision_to_hf(config.family, vision),
    }


def read_hf_config(path: str | Path) -> dict[str, Any]:
    """The parsed ``config.json`` of an HF directory; raises UserError where it cannot be read."""
    file = Path(path) / "config.json"
    try:
        return read_object(file)
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; is {path} a Hugging Face directory?") from None


class _Section:
    """One part of a config.json, with typed look-ups that name the file and the key."""

    def __init__(
        self, hf: Mapping[str, Any], where: str, name: str | None = None, *, fall_back: bool = True
    ):
        inner = hf.get(name) if name else None
        if inner is not None and not isinstance(inner, Mapping):
            raise UserError(f"{where}: {name} must be an object, not {type(inner).__name__}")
        self.where = where
        self._name = name if inner is not None else None
        outer = hf if fall_back or name is None else {}
        self._places = tuple(place for place in (inner, outer) if place is not None)

    def get(self, key: str, default: Any) -> Any:
        """The first value that is set, inner section first."""
        for place in self._places:
            if place.get(key) is not None:
                return place[key]
        return default

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number from 0 to the key's bound; required where no default is given."""
        value = self.get(key, default)
        if value is None:
            raise UserError(f"{self.label(key)} is missing")
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole:
            raise UserError(f"{self.label(key)} must be a whole number, not {shown(value)}")
        if value < 0:
            raise UserError(f"{self.label(key)} must not be negative, but is {value}")
        if value > (most := _MOST.get(key, _MAX_TOKEN_ID)):
            raise UserError(f"{self.label(key)} is {value}, more than any model has ({most})")
        return int(value)

    def number(self, key: str, default: float) -> float:
        """A positive number up to the key's bound."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise UserError(f"{self.label(key)} must be a positive number, not {shown(value)}")
        least, most = _RANGES[key]
        if not least <= value <= most:
            raise UserError(f"{self.label(key)} is {value}: it must lie in {least:g}..{most:g}")
        return float(value)

    def label(self, key: str) -> str:
        """How an error message names a key."""
        return f"{self.where}: {self._name + '.' if self._name else ''}{key}"


def _family(model_type: Any, where: str) -> Family:
    if model_type == "qwen2_vl" or model_type == "qwen2_5_vl":
        return model_type
    known = _OTHERS.get(str(model_type), "")
    raise UserError(
        f"{where}: model_type is {shown(model_type)}; supported are {', '.join(ARCHITECTURES)}"
        + (f" (this is {known})" if known else "")
    )


def _end_token(tokens: _Section, default: int) -> int:
    """The end token, or the first of several."""
    value = tokens.get("eos_token_id", default)
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, bool) or not isinstance(first, int):
        label = tokens.label("eos_token_id")
        raise UserError(f"{label} must be a whole number or a list of them, not {shown(value)}")
    return first


def _pad_token(tokens: _Section) -> int | None:
    value = tokens.get("pad_token_id", None)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise UserError(f"{tokens.label('pad_token_id')} must be a whole number")
    return value


def _refuse_unsupported(top: _Section) -> None:
    if top.get("quantization_config", None):
        raise UserError(
            f"{top.label('quantization_config')} is set; quantised checkpoints are not supported, "
            "use the bfloat16 or float32 weights"
        )


def tie_keys(hf: Mapping[str, Any]) -> list[str]:
    """The keys of a config.json that tie the head to the embeddings."""
    # transformers 4.57 writes the flag into text_config only, 5.x at the top; true anywhere ties.
    text = hf.get("text_config")
    places = {"": hf, "text_config.": text if isinstance(text, Mapping) else {}}
    key = "tie_word_embeddings"
    return [prefix + key for prefix, place in places.items() if place.get(key)]


def _text_config(text: _Section, family: Family) -> TextConfig:
    kinds = text.get("layer_types", ())
    if not isinstance(kinds, (list, tuple)):
        raise UserError(f"{text.label('layer_types')} must be a list, not {shown(kinds)}")
    if text.get("use_sliding_window", False) or "sliding_attention" in kinds:
        raise UserError(
            f"{text.label('use_sliding_window')} is on; sliding windows are unsupported"
        )
    if text.get("attention_dropout", 0.0):
        raise UserError(f"{text.label('attention_dropout')} is not 0; dropout is unsupported")
    if (act := text.get("hidden_act", "silu")) != "silu":
        raise UserError(f"{text.label('hidden_act')} is {shown(act)}; supported is silu")
    heads = text.integer("num_attention_heads")
    width = text.integer("hidden_size")
    if not heads or width % heads:
        raise UserError(
            f"{text.label('hidden_size')} {width} does not divide by num_attention_heads {heads}"
        )
    rope = _rope(text)
    return TextConfig(
        vocab_size=text.integer("vocab_size"),
        width=width,
        intermediate=text.integer("intermediate_size"),
        layers=text.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=text.integer("num_key_value_heads"),
        head_dim=width // heads,
        rms_norm_eps=text.number("rms_norm_eps", 1e-6),
        rope_theta=rope.number("rope_theta", text.number("rope_theta", 1e6)),
        mrope_section=_mrope_section(rope),
        max_positions=text.integer("max_position_embeddings", MAX_POSITIONS[family]),
    )


def _rope(text: _Section) -> _Section:
    # rope_scaling.type is "mrope" on the Hub and "default" after a save by transformers 4.57, so
    # M-RoPE is known by its mrope_section and only a scaled rope (yarn, linear ...) is refused.
    key = "rope_parameters" if text.get("rope_parameters", None) else "rope_scaling"
    rope = _Section({key: text.get(key, {})}, text.where, key, fall_back=False)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise UserError(f"{rope.label('type')} is {shown(kind)}; supported: mrope and default")
    return rope


def _mrope_section(rope: _Section) -> tuple[int, int, int]:
    section = rope.get("mrope_section", [16, 24, 24])
    if (
        not isinstance(section, (list, tuple))
        or len(section) != 3
        or not all(type(n) is int and n >= 0 for n in section)
    ):
        raise UserError(
            f"{rope.label('mrope_section')} must be three whole numbers, not {shown(section)}"
        )
    return (section[0], section[1], section[2])


def _vision_config(vision: _Section, family: Family, text: TextConfig) -> VisionConfig:
    if (act := vision.get("hidden_act", _VISION_ACTIVATION[family])) != _VISION_ACTIVATION[family]:
        raise UserError(
            f"{vision.label('hidden_act')} is {shown(act)}; supported is "
            f"{_VISION_ACTIVATION[family]}"
        )
    depth = vision.integer("depth", 32)
    shared = {
        "depth": depth,
        "heads": vision.integer("num_heads", 16),
        "patch_size": vision.integer("patch_size", 14),
        "temporal_patch_size": vision.integer("temporal_patch_size", 2),
        "merge_size": vision.integer("spatial_merge_size", 2),
        "in_channels": vision.integer("in_channels", vision.integer("in_chans", 3)),
    }
    if family == "qwen2_vl":
        width = vision.integer("embed_dim", 1280)
        return VisionConfig(
            width=width,
            intermediate=int(width * vision.number("mlp_ratio", 4)),
            out_size=vision.integer("hidden_size", text.width),
            window_size=0,
            full_blocks=tuple(range(depth)),
            tokens_per_second=1.0,
            **shared,
        )
    return VisionConfig(
        width=vision.integer("hidden_size", 1280),
        # 3B and 7B (36 and 28 layers) have 3420; 32B and 72B (64 and 80) have 3456.
        intermediate=vision.integer("intermediate_size", 3456 if text.layers >= 64 else 3420),
        out_size=vision.integer("out_hidden_size", text.width),
        window_size=vision.integer("window_size", 112),
        full_blocks=_full_blocks(vision, depth),
        tokens_per_second=vision.number("tokens_per_second", 2),
        **shared,
    )


def _full_blocks(vision: _Section, depth: int) -> tuple[int, ...]:
    blocks = vision.get("fullatt_block_indexes", list(FULL_BLOCKS))
    if not isinstance(blocks, (list, tuple)) or not all(type(i) is int for i in blocks):
        label = vision.label("fullatt_block_indexes")
        raise UserError(f"{label} must be a list of whole numbers: {shown(blocks)}")
    # Tiny test models keep the default list, which reaches past their depth; transformers
    # ignores those entries and so do we.
    return tuple(sorted({i for i in blocks if 0 <= i < depth}))


def _check_sizes(config: QwenVLConfig, where: str) -> None:
    text, vision = config.text, config.vision
    unit = vision.patch_size * vision.merge_size
    sizes = {
        "num_hidden_layers": text.layers,
        "num_key_value_heads": text.kv_heads,
        "vocab_size": text.vocab_size,
        "intermediate_size": text.intermediate,
        "max_position_embeddings": text.max_positions,
        "vision_config.depth": vision.depth,
        "vision_config.num_heads": vision.heads,
        "vision_config.in_channels": vision.in_channels,
        "vision_config.temporal_patch_size": vision.temporal_patch_size,
        "vision_config.patch_size x spatial_merge_size": unit,
        "vision_config MLP width": vision.intermediate,
        "vision_config.window_size": vision.window_size if config.family == "qwen2_5_vl" else 1,
    }
    wrong = [f"{name} must be positive" for name, size in sizes.items() if size < 1]
    if not wrong:
        rules = {
            f"num_attention_heads {text.heads} must divide by num_key_value_heads "
            f"{text.kv_heads}": text.heads % text.kv_heads == 0,
            f"mrope_section {list(text.mrope_section)} must sum to half of the head size "
            f"{text.head_dim}": 2 * sum(text.mrope_section) == text.head_dim,
            f"vision_config width {vision.width} must divide by 4 x num_heads "
            f"{vision.heads}": vision.width % (4 * vision.heads) == 0,
            f"vision_config output size {vision.out_size} must equal the text hidden_size "
            f"{text.width}": vision.out_size == text.width,
            f"vision_config.window_size {vision.window_size} must divide by patch_size x "
            f"spatial_merge_size = {unit}": vision.window_size % unit == 0,
        }
        wrong = [message for message, right in rules.items() if not right]
    if wrong:
        raise UserError(f"{where}: {'; '.join(wrong)}")


def _vision_to_hf(family: Family, vision: VisionConfig) -> dict[str, Any]:
    shared = {
        "model_type": family,
        "depth": vision.depth,
        "num_heads": vision.heads,
        "hidden_act": _VISION_ACTIVATION[family],
        "in_chans": vision.in_channels,
        "in_channels": vision.in_channels,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.merge_size,
        "spatial_patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    if family == "qwen2_vl":
        ratio = vision.intermediate / vision.width
        ratio = int(ratio) if ratio == int(ratio) else ratio
        return shared | {
            "embed_dim": vision.width,
            "mlp_ratio": ratio,
            "hidden_size": vision.out_size,
        }
    seconds = vision.tokens_per_second
    return shared | {
        "hidden_size": vision.width,
        "intermediate_size": vision.intermediate,
        "out_hidden_size": vision.out_size,
        "window_size": vision.window_size,
        "fullatt_block_indexes": list(vision.full_blocks),
        "tokens_per_second": int(seconds) if seconds == int(seconds) else seconds,
    }
