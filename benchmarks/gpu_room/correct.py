"""The model of this device against the CPU of its host, and the sampler against the trainer."""

import dataclasses
from typing import Any

import jax
import numpy as np

from gpu_room.scale import Figures, Scale, allowed_ids, sample
from vlaa_jax.data.rows.batches import BatchLayout, collate_prompts
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.model import Compute, init_params, split_model
from vlaa_jax.models.qwen_vl.vision import PixelNorm
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.policy.prompts import prompt_inputs
from vlaa_jax.rollout.engine import Decoding, Engine
from vlaa_jax.rollout.sampling import Sampling

NEVER = -1
"""An end token that nothing samples."""


def compare(size: Scale) -> Figures:
    """Float32 here against float32 on the CPU, and bfloat16 and the sampler against it.

    Raises:
        SystemExit: the devices do not compute the same model.
    """
    text, vision = size.config.text, size.config.vision
    config = dataclasses.replace(
        size.config,
        text=dataclasses.replace(text, layers=size.near),
        vision=dataclasses.replace(vision, depth=size.near, full_blocks=(1,)),
    )
    rng = np.random.default_rng(0)
    units = (size.side // 28) ** 2
    prompts = [sample(config, units + extra, size.side, rng) for extra in (24, 40)]
    batch = collate_prompts(prompts, BatchLayout())
    tokens = rng.integers(3, 900, (2, 2, 16)).astype(np.int32)
    given = prompt_inputs(batch), tokens, np.ones(config.text.vocab_size, bool)
    host, here = jax.devices("cpu")[0], jax.devices()[0]
    params = jax.device_get(init_params(config, 0))
    exact = _scores(config, params, given, host, "float32")
    found = _scores(config, params, given, here, "float32")
    rounded = _scores(config, params, given, here, "bfloat16")
    gap = float(np.abs(exact[0] - found[0]).max())
    gradient = _distance(exact[1], found[1])
    figures = {
        "float32_logprob_gap_max": gap,
        "float32_gradient_distance": gradient,
        "float32_sampler_gap_max": _sampler_gap(config, params, given[0], here, "float32"),
        "bfloat16_logprob_gap_mean": float(np.abs(exact[0] - rounded[0]).mean()),
        "bfloat16_logprob_gap_max": float(np.abs(exact[0] - rounded[0]).max()),
        "bfloat16_gradient_distance": _distance(exact[1], rounded[1]),
        "bfloat16_sampler_gap_max": _sampler_gap(config, params, given[0], here, "bfloat16"),
    }
    if gap > 1e-3 or gradient > 1e-3 or figures["float32_sampler_gap_max"] > 1e-3:
        raise SystemExit(f"this device does not compute the same model: {figures}")
    return figures


def _compute(config: QwenVLConfig, dtype: str) -> Compute:
    norm = PixelNorm(1 / 255, (0.5,) * 3, (0.5,) * 3, config.vision.temporal_patch_size)
    return Compute(dtype=dtype, remat="full", unroll=1, pixels=norm)


def _scores(config: QwenVLConfig, params: Any, given: tuple, device: Any, dtype: str) -> tuple:
    """Log-probabilities of some completions, and the gradient of their mean."""
    graphdef, _ = split_model(config, _compute(config, dtype))
    policy = Distribution(graphdef, temperature=1.0, chunk=0, row_shards=1)

    def loss(params: Any, given: tuple) -> Any:
        logprobs = policy.completion_logprobs(params, *given)[0]
        return logprobs.mean(), logprobs

    there = jax.device_put((params, given), device)
    with jax.default_matmul_precision("highest"):
        (_, logprobs), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(*there)
    return jax.device_get((logprobs, gradient))


def _distance(a: Any, b: Any) -> float:
    """Norm of the difference of two trees over that of the first."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    apart = sum(float(np.sum(np.square(x.astype(float) - y.astype(float)))) for x, y in pairs)
    return float((apart / sum(float(np.sum(np.square(x, dtype=float))) for x in _leaves(a))) ** 0.5)


def _leaves(tree: Any) -> list[Any]:
    return list(jax.tree.leaves(tree))


def _sampler_gap(config: QwenVLConfig, params: Any, prompt: Any, device: Any, dtype: str) -> float:
    """Largest difference between a token's log-probability when drawn and when scored."""
    graphdef, _ = split_model(config, _compute(config, dtype))
    policy = Distribution(graphdef, temperature=1.0, chunk=0, row_shards=1)
    allowed = allowed_ids(config)
    params, prompt, allowed_V = jax.device_put((params, prompt, allowed), device)
    engine = Engine(
        graphdef,
        Decoding(2, 16),
        sampling=Sampling(),
        eos_id=NEVER,
        allowed_V=allowed,
    )
    keys = jax.random.split(jax.random.key(0), 2)
    with jax.default_matmul_precision("highest"):
        drawn = engine.generate(params, [prompt], keys, prefix_length=prompt.ids_PT.shape[1])
        tokens = drawn.tokens_PGT[:, :, :16]
        scored = jax.jit(policy.completion_logprobs)(params, prompt, tokens, allowed_V)[0]
    return float(np.abs(drawn.logprobs_PGT[:, :, :16] - np.asarray(scored)).max())
