"""Tiny random transformers models and batches for them: the oracle of the model tests."""

from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from vlaa_jax.data.images.planner import gather_patches, plan_vision
from vlaa_jax.data.text.positions import mrope_positions
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.hf_config import parse_config
from vlaa_jax.models.qwen_vl.hf_keys import canonical, key_table, nest
from vlaa_jax.models.qwen_vl.model import RowInputs
from vlaa_jax.models.qwen_vl.vision import VisionInputs

SECOND_PER_GRID = 0.75
IMAGE, VIDEO, VISION_START, VISION_END, VOCAB = 200, 201, 202, 203, 224

TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]},
    "use_sliding_window": False,
    "max_window_layers": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
VISION_25 = {
    "depth": 4,
    "hidden_size": 32,
    "out_hidden_size": 48,
    "intermediate_size": 44,
    "num_heads": 2,
    "fullatt_block_indexes": [1, 3],
    "window_size": 112,
    "tokens_per_second": 2,
}
VISION_2 = {"depth": 3, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 3, "num_heads": 2}


class Oracle(NamedTuple):
    """A transformers model with our configuration and parameters for the same weights."""

    model: Any
    config: QwenVLConfig
    params: dict[str, Any]


def make(family: str, *, tied: bool, seed: int = 0, dtype: torch.dtype = torch.float32) -> Oracle:
    """A random model of the family, weights far from their trivial initial values."""
    is_25 = family == "qwen2_5_vl"
    config_class = transformers.Qwen2_5_VLConfig if is_25 else transformers.Qwen2VLConfig
    model_class = (
        transformers.Qwen2_5_VLForConditionalGeneration
        if is_25
        else transformers.Qwen2VLForConditionalGeneration
    )
    hf_config = {
        **TEXT,
        **TOKENS,
        "model_type": family,
        "tie_word_embeddings": tied,
        "vision_config": dict(VISION_25 if is_25 else VISION_2),
    }
    torch.manual_seed(seed)
    torch.set_num_threads(2)
    config = config_class(**hf_config)
    config._attn_implementation = "eager"
    model = model_class(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            is_norm = "norm" in name or "ln_q" in name
            if is_norm and name.endswith("weight"):
                value.copy_((1 + 0.2 * noise).to(dtype))
            else:
                value.copy_((0.08 * noise).to(dtype))
    ours = parse_config(hf_config)
    return Oracle(model, ours, params_of(model, ours))


def params_of(model: Any, config: QwenVLConfig, *, grad: bool = False) -> dict[str, Any]:
    """Weights (or their gradients) of a transformers model as our nested float32 dict."""
    theirs = {}
    for name, value in model.named_parameters():
        if grad:  # torch keeps none for what took no part
            value = torch.zeros_like(value) if value.grad is None else value.grad
        theirs[canonical(name)] = value.detach().float().numpy()
    flat = {}
    for key in key_table(config):
        parts = [key.transform.to_ours(theirs[canonical(n)]) for n in key.hf_names()]
        flat[key.path] = np.stack(parts) if key.layers is not None else parts[0]
    return nest(flat)


class Sample(NamedTuple):
    """One sequence with its images."""

    ids_T: np.ndarray
    grids: list[tuple[int, int, int]]
    images: list[np.ndarray]
    """Patches of each image, [n, 1176]."""


def sample(rng: np.random.Generator, pieces: list[int | tuple[int, int, int]]) -> Sample:
    """A sequence of text runs (ints: their lengths), images and videos (grids; t > 1 is video)."""
    ids: list[int] = []
    grids = [p for p in pieces if not isinstance(p, int)]
    for piece in pieces:
        if isinstance(piece, int):
            ids += rng.integers(3, IMAGE, piece).tolist()
        else:
            t, h, w = piece
            placeholder = IMAGE if t == 1 else VIDEO
            ids += [VISION_START, *[placeholder] * (t * h * w // 4), VISION_END]
    images = [rng.normal(size=(t * h * w, 1176)).astype(np.float32) for t, h, w in grids]
    return Sample(np.array(ids), grids, images)


def hf_inputs(samples: list[Sample], *, pad: str = "right") -> dict[str, torch.Tensor]:
    """Padded inputs of a transformers model."""
    length = max(len(s.ids_T) for s in samples)
    ids = np.full((len(samples), length), 0)
    mask = np.zeros((len(samples), length), np.int64)
    for row, s in enumerate(samples):
        place = slice(0, len(s.ids_T)) if pad == "right" else slice(length - len(s.ids_T), None)
        ids[row, place] = s.ids_T
        mask[row, place] = 1
    inputs = {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "mm_token_type_ids": torch.tensor((ids == IMAGE) + 2 * (ids == VIDEO)),
    }
    names = {
        False: ("pixel_values", "image_grid_thw"),
        True: ("pixel_values_videos", "video_grid_thw"),
    }
    for is_video, (pixels, grid) in names.items():
        chosen = [
            (g, p)
            for s in samples
            for g, p in zip(s.grids, s.images, strict=True)
            if (g[0] > 1) == is_video
        ]
        if chosen:
            inputs[pixels] = torch.tensor(np.concatenate([p for _, p in chosen]))
            inputs[grid] = torch.tensor([g for g, _ in chosen])
    return inputs


def our_positions(config: QwenVLConfig, s: Sample) -> np.ndarray:
    """M-RoPE positions [T, 3] of a sample."""
    return mrope_positions(
        s.ids_T,
        s.grids,
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        tokens_per_second=config.vision.tokens_per_second,
        second_per_grid=SECOND_PER_GRID if config.family == "qwen2_5_vl" else 1.0,
    )[0]


def window_units(config: QwenVLConfig) -> int:
    """Units along a window's side; 0 for towers without windows."""
    return 4 if config.family == "qwen2_5_vl" else 0


def our_vision(
    config: QwenVLConfig, shards: list[list[Sample]], *, noise: float = 0.0, seed: int = 0
) -> tuple[VisionInputs, list[list[np.ndarray]]]:
    """The planner's buffer for samples dealt to shards; padding slots hold noise.

    Returns the buffer and, per shard and image, the unit index behind each visual token.
    """
    plan = plan_vision(
        [[g for s in shard for g in s.grids] for shard in shards],
        window_units=window_units(config),
    )
    images = [[p for s in shard for p in s.images] for shard in shards]
    if any(images):
        patches = gather_patches(plan, images)
    else:
        patches = np.zeros((*plan.src_SR64.shape, 1176), np.float32)
    if noise:
        filler = np.random.default_rng(seed).normal(size=patches.shape) * noise
        patches = np.where(plan.src_SR64[..., None] < 0, filler, patches).astype(np.float32)
    buffer = VisionInputs(patches, plan.pos_hw_SR642, plan.win_id_SR64, plan.seg_id_SQ)
    return buffer, plan.units


def our_rows(
    config: QwenVLConfig,
    rows: list[list[Sample]],
    *,
    n_shards: int = 1,
    length: int | None = None,
    noise: float = 0.0,
) -> RowInputs:
    """Packed rows; row r belongs to shard r // (rows per shard)."""
    length = length or max(sum(len(s.ids_T) for s in row) for row in rows)
    shape = (len(rows), length)
    ids, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    positions, unit_src = np.zeros((*shape, 3), np.int32), np.full(shape, -1, np.int32)
    per_shard = len(rows) // n_shards
    shards = [
        [s for row in rows[i * per_shard : (i + 1) * per_shard] for s in row]
        for i in range(n_shards)
    ]
    buffer, units = our_vision(config, shards, noise=noise)
    queues = [iter(u) for u in units]
    for r, row in enumerate(rows):
        at = 0
        for number, s in enumerate(row, 1):
            span = slice(at, at + len(s.ids_T))
            ids[r, span], segments[r, span] = s.ids_T, number
            positions[r, span] = our_positions(config, s)
            src = [next(queues[r // per_shard]) for _ in s.grids]
            if src:
                unit_src[r, span][np.isin(s.ids_T, (IMAGE, VIDEO))] = np.concatenate(src)
            at += len(s.ids_T)
    return RowInputs(ids, positions, segments, unit_src, buffer)


def relative_error(ours: Any, theirs: Any) -> float:
    """Largest absolute difference over the largest absolute value of the oracle."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
