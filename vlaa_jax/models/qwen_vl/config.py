"""Model configuration of Qwen2-VL and Qwen2.5-VL, and the released sizes.

``hf_config`` reads it from a checkpoint. No jax here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

Family = Literal["qwen2_vl", "qwen2_5_vl"]

FULL_BLOCKS = (7, 15, 23, 31)
MAX_POSITIONS = {"qwen2_vl": 32_768, "qwen2_5_vl": 128_000}
"""What a configuration that does not say so has, by family."""


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Sizes count features, ``patch_size`` and ``window_size`` count pixels."""

    depth: int
    width: int
    heads: int
    intermediate: int
    out_size: int
    """Width of a merged token, equal to the text width."""
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    in_channels: int = 3
    window_size: int = 112
    """0 where no block is windowed (Qwen2-VL)."""
    full_blocks: tuple[int, ...] = FULL_BLOCKS
    """Blocks with full attention per frame, ascending; all of them in Qwen2-VL."""
    tokens_per_second: float = 2.0
    """Temporal positions per second of video; 1.0 in Qwen2-VL: there every frame is one."""

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.width // self.heads

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch: channels x frames x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True)
class TextConfig:
    """The decoder. Both families share it."""

    vocab_size: int
    width: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    """How many rotary frequencies follow time, height and width; the sum is head_dim / 2."""
    max_positions: int = 128_000
    """Tokens of a prompt and its answer that the model was made for."""


@dataclass(frozen=True)
class QwenVLConfig:
    """A whole model of either family."""

    family: Family
    text: TextConfig
    vision: VisionConfig
    tie_word_embeddings: bool = False
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    eos_token_id: int = 151645
    """The first one where ``config.json`` lists several."""
    pad_token_id: int | None = None

    RELEASED: ClassVar[Mapping[str, "QwenVLConfig"]]
    """The seven released sizes, by name: ``Qwen2.5-VL-3B`` ... ``Qwen2-VL-72B``."""


def _released(
    family: Family, sizes: tuple[int, int, int, int, int, int, int], *, tied: bool = False
) -> QwenVLConfig:
    vocab_size, width, intermediate, layers, heads, kv_heads, vision_mlp = sizes
    windowed = family == "qwen2_5_vl"
    return QwenVLConfig(
        family=family,
        text=TextConfig(
            vocab_size,
            width,
            intermediate,
            layers,
            heads,
            kv_heads,
            head_dim=128,
            max_positions=MAX_POSITIONS[family],
        ),
        vision=VisionConfig(
            depth=32,
            width=1280,
            heads=16,
            intermediate=vision_mlp,
            out_size=width,
            window_size=112 if windowed else 0,
            full_blocks=FULL_BLOCKS if windowed else tuple(range(32)),
            tokens_per_second=2.0 if windowed else 1.0,
        ),
        tie_word_embeddings=tied,
    )


# Columns: vocabulary, width, MLP width, layers, query heads, key/value heads, vision MLP width
# (from the Hub's config.json files; the technical report's table differs and is wrong).
# fmt: off
QwenVLConfig.RELEASED = {
    "Qwen2.5-VL-3B":  _released("qwen2_5_vl", (151936, 2048, 11008, 36, 16, 2, 3420), tied=True),
    "Qwen2.5-VL-7B":  _released("qwen2_5_vl", (152064, 3584, 18944, 28, 28, 4, 3420)),
    "Qwen2.5-VL-32B": _released("qwen2_5_vl", (152064, 5120, 27648, 64, 40, 8, 3456)),
    "Qwen2.5-VL-72B": _released("qwen2_5_vl", (152064, 8192, 29568, 80, 64, 8, 3456)),
    "Qwen2-VL-2B":    _released("qwen2_vl", (151936, 1536, 8960, 28, 12, 2, 5120), tied=True),
    "Qwen2-VL-7B":    _released("qwen2_vl", (152064, 3584, 18944, 28, 28, 4, 5120)),
    "Qwen2-VL-72B":   _released("qwen2_vl", (152064, 8192, 29568, 80, 64, 8, 5120)),
}
# fmt: on
