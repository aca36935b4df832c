"""Floating-point operations of a forward pass, counted from shapes: two per multiply-add.

Only real work counts: tokens and patches that exist, each prompt once per group, logits of
completion tokens. Padding is not work, so a utilisation that divides by these figures pays for it.
A backward pass costs twice its forward where everything trains.
"""

from collections.abc import Sequence

from vlaa_jax.models.qwen_vl.config import QwenVLConfig, TextConfig, VisionConfig
from vlaa_jax.schema import Grid


def group_flops(
    config: QwenVLConfig,
    prompt_lengths: Sequence[int],
    completion_lengths: Sequence[Sequence[int]],
    grids: Sequence[Grid],
) -> float:
    """Forward pass over prompts with their completions.

    Args:
        config: the model.
        prompt_lengths: tokens of each prompt.
        completion_lengths: tokens of each of a prompt's completions.
        grids: the images of all prompts, each counted once.
    """
    text = config.text
    own = [length for group in completion_lengths for length in group]
    pairs = sum(length * length / 2 for length in prompt_lengths)
    pairs += sum(
        length * prompt + length * length / 2
        for prompt, group in zip(prompt_lengths, completion_lengths, strict=True)
        for length in group
    )
    tokens = sum(prompt_lengths) + sum(own)
    head = 2 * sum(own) * text.width * text.vocab_size
    return (
        text_flops(text, tokens, pairs) + head + sum(vision_flops(config.vision, g) for g in grids)
    )


def row_flops(config: QwenVLConfig, lengths: Sequence[int], frames: Sequence[int]) -> float:
    """Forward pass over packed samples, the head at every token.

    Args:
        config: the model.
        lengths: tokens of each sample.
        frames: patches of each image.
    """
    text, tokens = config.text, sum(lengths)
    pairs = sum(length * length / 2 for length in lengths)
    head = 2 * tokens * text.width * text.vocab_size
    images = sum(vision_flops(config.vision, (1, patches, 1)) for patches in frames)
    return text_flops(text, tokens, pairs) + head + images


def text_flops(text: TextConfig, tokens: int, pairs: float) -> float:
    """The decoder's layers for some tokens and pairs of query and visible key."""
    projections = text.width * text.head_dim * 2 * (text.heads + text.kv_heads)
    per_token = 2 * (projections + 3 * text.width * text.intermediate)
    return text.layers * (tokens * per_token + 4 * text.heads * text.head_dim * pairs)


def vision_flops(vision: VisionConfig, grid: Grid) -> float:
    """The vision tower and merger for one image or video."""
    frames, rows, columns = grid
    patches = frames * rows * columns
    gated = vision.window_size > 0
    mlp = (3 if gated else 2) * vision.width * vision.intermediate
    blocks = 2 * vision.depth * patches * (4 * vision.width**2 + mlp)
    full = len(vision.full_blocks)
    window = (vision.window_size // vision.patch_size) ** 2
    pairs = full * patches * rows * columns + (vision.depth - full) * patches * window
    merged = vision.width * vision.merge_size**2
    merger = 2 * (patches / vision.merge_size**2) * merged * (merged + vision.out_size)
    return (
        blocks + 4 * vision.width * pairs + 2 * patches * vision.patch_dim * vision.width + merger
    )
