"""What is measured: sizes, settings, random samples, clock and memory."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vlaa_jax.data.samples.preprocessor import Encoded
from vlaa_jax.data.text.positions import mrope_positions
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.parallel.mesh import make_mesh
from vlaa_jax.plan.__main__ import read_settings

Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of the measurement.

    Attributes:
        config: the model.
        grpo: options of configs/grpo.py.
        sft: options of configs/sft.py.
        side: pixels of an image's side.
        near: layers of decoder and tower where devices are compared.
        options: further ones, of the command line.
    """

    config: QwenVLConfig
    grpo: dict[str, Any]
    sft: dict[str, Any]
    side: int
    near: int
    options: list[str]


def scale(tiny: bool, options: list[str]) -> Scale:
    """3B, or small enough for two CPU cores."""
    three = QwenVLConfig.RELEASED["Qwen2.5-VL-3B"]
    mesh = {"mesh.fsdp": 1}
    if not tiny:
        step = {"rollout.prompts": 64, "rollout.batch_prompts": 64, "rollout.prefill_prompts": 8}
        grpo = {**mesh, **step, "algo.micro_prompts": 4, "algo.updates_per_rollout": 4}
        return Scale(three, grpo, {**mesh, "data.rows": 8, "data.micro_rows": 4}, 504, 2, options)
    text = dataclasses.replace(
        three.text, vocab_size=1024, width=256, intermediate=512, layers=3, heads=2, kv_heads=1
    )
    vision = dataclasses.replace(
        three.vision, depth=3, width=64, heads=2, intermediate=128, out_size=256, full_blocks=(1,)
    )
    config = dataclasses.replace(
        three, text=text, vision=vision, image_token_id=1000, video_token_id=1001
    )
    lengths = {"data.max_prompt_tokens": 128, "data.vision_rows_per_bin": 2}
    step = {"rollout.prompts": 8, "rollout.batch_prompts": 8, "rollout.prefill_prompts": 4}
    short = {"rollout.max_new_tokens": 32, "rollout.burst": 8}
    batch = {"algo.micro_prompts": 2, "algo.updates_per_rollout": 2, "data.min_prompt_bucket": 64}
    rows = {"data.tokens_per_row": 256, "data.rows": 4, "data.micro_rows": 2}
    return Scale(
        config,
        {**mesh, **lengths, **step, **short, **batch},
        {**mesh, **rows, "data.vision_rows_per_bin": 2},
        112,
        2,
        options,
    )


def settings_of(make: Callable[[str], Any], options: dict[str, Any], further: list[str]) -> Any:
    """Settings of a 3B run with some options, and those of the command line that it has."""
    config = make("3b")
    for name, value in options.items():
        group, key = name.split(".")
        config[group][key] = value
    for option in further:
        name, _, value = option.partition("=")
        group, _, key = name.partition(".")
        if group in config:
            config[group][key] = type(config[group][key])(value)
    return read_settings(config.to_dict())


def sample(config: QwenVLConfig, length: int, side: int, rng: np.random.Generator) -> Encoded:
    """Random ids with one random image; everything behind the image is a target."""
    patch = config.vision.patch_size
    grid = (1, side // patch, side // patch)
    units = grid[1] * grid[2] // config.vision.merge_size**2
    ids = rng.integers(3, 900, length).astype(np.int32)
    ids[4 : 4 + units] = config.image_token_id
    positions, delta = mrope_positions(
        ids,
        [grid],
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        tokens_per_second=config.vision.tokens_per_second,
    )
    pixels = rng.integers(0, 256, (grid[1] * grid[2], 3 * patch**2)).astype(np.uint8)
    learnt = np.arange(length) > 4 + units
    image = ids == config.image_token_id
    return Encoded(ids, learnt, positions, delta, (pixels,), (grid,), units, image)


def allowed_ids(config: QwenVLConfig) -> np.ndarray:
    """Everything but placeholders of images, which would be scored as images without features."""
    allowed_V = np.ones(config.text.vocab_size, bool)
    allowed_V[[config.image_token_id, config.video_token_id]] = False
    return allowed_V


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds until everything is there, and what it is."""
    began = time.perf_counter()
    out = jax.block_until_ready(run())
    return time.perf_counter() - began, out


def one_device() -> Mesh:
    """The mesh of the first device."""
    return make_mesh(devices=jax.devices()[:1])


def memory() -> Figures:
    """Most bytes of the device so far, where it says."""
    said = jax.devices()[0].memory_stats() or {}
    return {"peak_gib": said["peak_bytes_in_use"] / 2**30} if "peak_bytes_in_use" in said else {}
