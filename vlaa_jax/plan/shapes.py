"""Sizes that decide what a step takes, read from its settings."""

from dataclasses import dataclass

from vlaa_jax.data.images.bins import PATCHES_PER_ROW
from vlaa_jax.data.images.planner import ladder
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.settings.sft import RowSettings
from vlaa_jax.settings.shared import PromptSettings

SAMPLE_TOKENS = 1024
"""Of a sample in packed rows, for planning: 128 of them fill 32 rows of 4,096 (configs/sft.py)."""


@dataclass(frozen=True)
class Shapes:
    """Static sizes of a GRPO step's programs.

    Attributes:
        prompt: positions of a prompt.
        answer: positions of a completion.
        rows: rows of 64 patches in a prompt's bin.
        patch: bytes of a patch of one frame.
        prefill: prompts whose prefixes are computed at once.
        slots: prompts decoded at once.
        burst: tokens between two looks of the host.
        past: positions of a completion's cache before the burst.
        micro: prompts of a gradient pass.
    """

    prompt: int
    answer: int
    rows: int
    patch: int
    prefill: int
    slots: int
    burst: int
    past: int
    micro: int

    @classmethod
    def of_rows(cls, data: RowSettings, config: QwenVLConfig) -> "Shapes":
        """Sizes of packed rows' images; nothing is sampled."""
        patch = config.vision.in_channels * config.vision.patch_size**2
        return cls(0, 0, vision_rows(data, config), patch, 0, 0, 0, 0, data.rows_at_once)


def shapes_of(settings: GrpoSettings, config: QwenVLConfig) -> Shapes:
    """The largest shapes that a run with these settings meets."""
    rollout, data, vision = settings.rollout, settings.data, config.vision
    limit = rollout.max_new_tokens
    burst = min(rollout.burst or limit, limit)
    return Shapes(
        prompt=ladder(data.max_prompt_tokens, data.min_prompt_bucket),
        answer=ladder(limit, 32),
        rows=vision_rows(data, config),
        patch=vision.in_channels * vision.patch_size**2,
        prefill=rollout.at_once,
        slots=rollout.batch_prompts or rollout.prompts,
        burst=burst,
        past=0 if burst >= limit else limit,
        micro=settings.micro_prompts,
    )


def vision_rows(data: PromptSettings, config: QwenVLConfig) -> int:
    """Rows of 64 patches that hold the largest image."""
    pixels = data.max_pixels or 1280 * 28 * 28
    patches = pixels // config.vision.patch_size**2
    return data.vision_rows_per_bin or ladder(-(-patches // PATCHES_PER_ROW), 4)


def bins_per_row(tokens: int) -> int:
    """Vision bins of a packed row: one image for every SAMPLE_TOKENS."""
    return max(tokens // SAMPLE_TOKENS, 1)
