"""The smallest model and batch that an update takes."""

import numpy as np

from vlaa_jax.models.qwen_vl.config import QwenVLConfig, TextConfig, VisionConfig
from vlaa_jax.models.qwen_vl.model import PromptInputs
from vlaa_jax.train.grpo_loss import GroupBatch

VOCAB, P, G, T, S = 40, 4, 3, 6, 5
CONFIG = QwenVLConfig(
    family="qwen2_5_vl",
    text=TextConfig(VOCAB, 16, 24, 2, 2, 1, 8, 1e-6, 1e6, (2, 1, 1)),
    vision=VisionConfig(2, 16, 2, 24, 16, full_blocks=(1,)),
    tie_word_embeddings=True,
    image_token_id=30,
    video_token_id=31,
    vision_start_token_id=32,
    vision_end_token_id=33,
    eos_token_id=7,
    pad_token_id=0,
)


def batch():
    rng = np.random.default_rng(0)
    positions = np.broadcast_to(np.arange(S)[None, :, None], (P, S, 3)).astype(np.int32)
    prompt = PromptInputs(
        rng.integers(0, 30, (P, S)).astype(np.int32),
        positions,
        np.array([5, 3, 4, 2], np.int32),
        np.full((P, S), -1),
        None,
    )
    lengths = rng.integers(1, T + 1, (P, G))
    old = rng.normal(-3, 0.1, (P, G, T)).astype(np.float32)
    return GroupBatch(
        prompt,
        rng.integers(0, 30, (P, G, T)).astype(np.int32),
        np.arange(T) < lengths[..., None],
        rng.normal(size=(P, G)).astype(np.float32),
        old,
        old + 0.1,
        old,
    )
