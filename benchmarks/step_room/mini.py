"""The model and the prompts of the contenders: 38 million parameters, an image in each prompt."""

from typing import Any

import numpy as np

from vlaa_jax.data.samples.preprocessor import Encoded
from vlaa_jax.data.text.positions import mrope_positions
from vlaa_jax.models.qwen_vl.config import QwenVLConfig

IMAGE, VIDEO, START, END = 4000, 4001, 4002, 4003
MINI: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 384,
    "intermediate_size": 3072,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
    "tie_word_embeddings": True,
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "eos_token_id": 4095,
    "vision_config": {
        "model_type": "qwen2_5_vl",
        "depth": 4,
        "hidden_size": 192,
        "num_heads": 4,
        "intermediate_size": 512,
        "out_hidden_size": 384,
        "fullatt_block_indexes": [3],
        "window_size": 112,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "in_channels": 3,
        "tokens_per_second": 2,
    },
}
TEXT, GRID, NEW = 64, (1, 32, 32), 64


def encoded_prompts(config: QwenVLConfig, count: int) -> list[Encoded]:
    """Prompts of random ids with one random image each."""
    rng = np.random.default_rng(0)
    units = GRID[1] * GRID[2] // 4
    samples = []
    for _ in range(count):
        text = rng.integers(3, 3900, TEXT - 2)
        image = [START, *[IMAGE] * units, END]
        ids = np.concatenate([text[:8], image, text[8:]]).astype(np.int32)
        positions, delta = mrope_positions(
            ids,
            [GRID],
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            tokens_per_second=config.vision.tokens_per_second,
        )
        patches = rng.normal(size=(GRID[1] * GRID[2], 1176)).astype(np.float32)
        nothing = np.zeros(len(ids), bool)
        samples.append(
            Encoded(ids, nothing, positions, delta, (patches,), (GRID,), units, ids == IMAGE)
        )
    return samples
