"""Model, GRPO step and SFT step at 3B shapes on the device at hand, into one JSON file.

    bash benchmarks/gpu.sh results.json            # 9 minutes at most
    bash benchmarks/gpu.sh results.json --tiny     # the same code at a size for a CPU
    bash benchmarks/gpu.sh results.json --option model.unroll=0

Weights are random; a step's shapes are those of the paper's recipe (prompts of 2,048 positions with
an image each, four completions of 1,024 tokens that never end early), but fewer prompts. The
programs are the run's own, put together by vlaa_jax/plan/programs.py. First of all, the model at
true widths and few layers must give the same log-probabilities and gradients in float32 on this
device as on the host's CPU, and its sampler those of its trainer; what bfloat16 makes of them is
reported. A second step is timed, with everything compiled. The file is written after every part, so
an interrupted run keeps what it has.

    grpo/bandwidth_share       bytes that decoding must read (weights, and caches as far as they are
                               written) over those that the memory could have given in its time
    grpo/update_mfu, sft/mfu   products that must be done over those of the peak; what is computed
                               again and padding are no work
    grpo/responses_per_s       of a whole step: weights, rollout, scoring twice, updates
"""

import argparse
import dataclasses
import datetime
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from configs.grpo import get_config
from configs.sft import get_config as sft_config
from vlaa_jax.data.rows.batches import collate_prompts, collate_rows
from vlaa_jax.data.samples.preprocessor import Encoded
from vlaa_jax.data.text.positions import mrope_positions
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.flops import group_flops, row_flops, vision_flops
from vlaa_jax.models.qwen_vl.model import Compute, init_params, split_model
from vlaa_jax.models.qwen_vl.trees import partition
from vlaa_jax.models.qwen_vl.vision import PixelNorm
from vlaa_jax.parallel.mesh import make_mesh, replicated
from vlaa_jax.plan.__main__ import read_settings
from vlaa_jax.plan.check import chip_here
from vlaa_jax.plan.formulas import sizes_of
from vlaa_jax.plan.programs import _distribution, make_model, make_parts
from vlaa_jax.plan.shapes import shapes_of
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.policy.prompts import prompt_inputs
from vlaa_jax.policy.rows import row_targets
from vlaa_jax.rollout.engine import Engine
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.train.grpo_loss import Context, GroupBatch
from vlaa_jax.train.sft_loss import sft_loss
from vlaa_jax.train.state import new_state
from vlaa_jax.train.update import Update

NEVER = -1
"""An end token that nothing samples."""
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


# -- correctness ------------------------------------------------------------------------------


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
    batch = collate_prompts(prompts, pad_id=0, min_tokens=64, dtype=np.uint8)
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
        completions=2,
        max_new_tokens=16,
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


# -- a GRPO step ------------------------------------------------------------------------------


class Step:
    """A whole GRPO step on one device, at the longest lengths."""

    def __init__(self, size: Scale) -> None:
        settings = self.settings = settings_of(get_config, size.grpo, size.options)
        config = self.config = size.config
        self.mesh = one_device()
        self.parts = make_parts(settings, config, shapes_of(settings, config), self.mesh)
        shapes = self.parts.shapes
        rng = np.random.default_rng(0)
        data, rollout = settings.data, settings.rollout
        self.prompts = [
            sample(config, data.max_prompt_tokens, size.side, rng) for _ in range(rollout.prompts)
        ]
        self.collate = partial(
            collate_prompts,
            pad_id=0,
            tokens=shapes.prompt,
            rows_per_bin=shapes.rows,
            dtype=np.uint8,
        )
        model = self.parts.model
        params = jax.device_put(init_params(config, 0), _places(model.params))
        trainable, self.frozen = partition(params, settings.model.freeze, adapters_only=False)
        self.state = new_state(trainable, model.optimizer, replicated(self.mesh))
        allowed_V = allowed_ids(config)
        self.allowed_V = jax.device_put(allowed_V)
        self.engine = Engine(
            model.graphdef,
            completions=rollout.completions,
            max_new_tokens=rollout.max_new_tokens,
            sampling=Sampling(rollout.temperature),
            eos_id=NEVER,
            allowed_V=allowed_V,
            slots=shapes.slots,
            burst=rollout.burst,
            mesh=self.mesh,
        )
        self.reference = jax.tree.map(jnp.copy, self.engine.weights(params))
        self.score = jax.jit(lambda *given: self.parts.distribution.completion_logprobs(*given)[0])

    def inputs(self, size: int) -> Iterator[Any]:
        """Prompts on the device, some at a time."""
        for start in range(0, len(self.prompts), size):
            batch = self.collate(self.prompts[start : start + size])
            yield jax.device_put(prompt_inputs(batch))

    def __call__(self) -> Figures:
        """One step: seconds of its parts, and what came of it."""
        rollout, shapes = self.settings.rollout, self.parts.shapes
        params = self.state.trainable
        reshard, weights = timed(lambda: self.engine.weights(params))
        parts = list(self.inputs(shapes.prefill))
        prefill, _ = timed(lambda: [self.engine._prefill(weights, part) for part in parts])
        keys = jax.random.split(jax.random.key(1), len(self.prompts))
        seconds, drawn = timed(
            lambda: self.engine.generate(weights, parts, keys, prefix_length=shapes.prompt)
        )
        del weights, parts
        tokens = drawn.tokens_PGT.reshape(-1, shapes.micro, *drawn.tokens_PGT.shape[1:])
        micros = list(self.inputs(shapes.micro))
        score, scored = timed(
            lambda: [
                self.score(weights, prompt, jnp.asarray(own), self.allowed_V)
                for weights in (params, self.reference)
                for prompt, own in zip(micros, tokens, strict=True)
            ]
        )
        old, ref = scored[: len(micros)], scored[len(micros) :]
        gap = max(
            float(np.abs(np.asarray(a).reshape(b.shape) - b).max())
            for a, b in zip(old, drawn.logprobs_PGT.reshape(tokens.shape), strict=True)
        )
        del params
        update, losses = timed(lambda: self.update(micros, tokens, old, ref))
        whole = reshard + seconds + score + update
        return {
            "reshard_s": reshard,
            "prefill_s": prefill,
            "rollout_s": seconds,
            "score_s": score,
            "update_s": update,
            "step_s": whole,
            "responses": rollout.prompts * rollout.completions,
            "responses_per_s": rollout.prompts * rollout.completions / whole,
            "tokens_per_s": float(drawn.length_PG.sum()) / seconds,
            "sampler_gap_max": gap,
            "losses": [float(loss) for loss in losses],
            **self.shares(seconds - prefill, update),
        }

    def update(self, micros: list[Any], tokens: Any, old: list[Any], ref: list[Any]) -> list[Any]:
        """All optimizer updates of the step."""
        algo, rng = self.settings.algo, np.random.default_rng(2)
        own, losses = self.parts.update, []
        per_update = len(micros) // algo.updates_per_rollout
        count = tokens[0].size * per_update
        scalars = (jnp.float32(n) for n in (count, count / tokens.shape[-1], algo.kl_coef))
        context = Context(*scalars, self.allowed_V)
        for start in range(0, len(micros), per_update):
            grads = own.zeros(self.state.trainable)
            for i in range(start, start + per_update):
                advantages = rng.normal(size=tokens[i].shape[:2]).astype(np.float32)
                mask = np.ones(tokens[i].shape, bool)
                batch = GroupBatch(micros[i], tokens[i], mask, advantages, old[i], ref[i], old[i])
                batch = jax.device_put(batch)
                grads, (loss, _) = own.accumulate(
                    grads, self.state.trainable, self.frozen, batch, context
                )
                losses.append(loss)
            self.state, _ = own.apply(self.state, grads)
        return losses

    def shares(self, decoding: float, update: float) -> Figures:
        """Bandwidth of decoding and products of the update, as shares of this device's."""
        rollout, text, sizes = self.settings.rollout, self.config.text, sizes_of(self.config)
        item = 2 if self.settings.model.dtype == "bfloat16" else 4
        kv = 2 * text.layers * text.kv_heads * text.head_dim * item
        weights = (sizes.layers + (sizes.head or sizes.embedding)) * item
        held = self.parts.shapes.slots * (
            self.parts.shapes.prompt + rollout.completions * rollout.max_new_tokens / 2
        )
        rounds = len(self.prompts) // self.parts.shapes.slots
        read = rounds * rollout.max_new_tokens * (weights + held * kv)
        lengths = [sample.length for sample in self.prompts]
        groups = [[rollout.max_new_tokens] * rollout.completions] * len(lengths)
        grids = [sample.grids[0] for sample in self.prompts]
        flops = 3 * group_flops(self.config, lengths, groups, grids)
        chip = chip_here(jax.devices()[0])
        return {
            "decode_s": decoding,
            "decode_bytes_per_s": read / decoding,
            "bandwidth_share": read / decoding / chip.hbm if chip else None,
            "update_flop_per_s": flops / update,
            "update_mfu": flops / update / chip.peak if chip else None,
        }


def _places(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def one_device() -> Mesh:
    """The mesh of the first device."""
    return make_mesh(devices=jax.devices()[:1])


def grpo(size: Scale) -> Iterator[Figures]:
    """A step that compiles, then one that is timed."""
    step = Step(size)
    seconds, _ = timed(lambda: step() and None)
    yield {"compiling_step_s": seconds}
    yield {"compiling_step_s": seconds, **step(), **memory()}


# -- an SFT step ------------------------------------------------------------------------------


def sft(size: Scale) -> Iterator[Figures]:
    """A supervised update on full rows, timed twice after it is compiled."""
    settings, config = settings_of(sft_config, size.sft, size.options), size.config
    mesh, data, rng = one_device(), settings.data, np.random.default_rng(0)
    model = make_model(settings, config, mesh)
    distribution = _distribution(model, settings, 1.0, settings.logprob_chunk)
    own = Update(partial(sft_loss, distribution), model.optimizer, model.state)
    abstract = model.params
    params = jax.tree.map(
        lambda leaf, at: jax.device_put(leaf.astype(at.dtype), at.sharding),
        init_params(config, 0),
        abstract,
    )
    trainable, frozen = partition(params, settings.model.freeze, adapters_only=False)
    state = new_state(trainable, model.optimizer, replicated(mesh))
    del params, trainable
    per_row = max(data.tokens_per_row // 1024, 1)
    length = data.tokens_per_row // per_row
    micros = []
    for _ in range(data.rows // data.rows_at_once):
        rows = [
            [sample(config, length, size.side, rng) for _ in range(per_row)]
            for _ in range(data.rows_at_once)
        ]
        batch = collate_rows(
            rows,
            pad_id=0,
            tokens_per_row=data.tokens_per_row,
            rows_per_bin=data.vision_rows_per_bin,
            bins_per_shard=data.rows_at_once * per_row,
            dtype=np.uint8,
        )
        micros.append(jax.device_put(row_targets(batch, vision=True)))
    targets = jnp.float32(data.rows * data.tokens_per_row)

    def update(state: Any) -> tuple[Any, Any]:
        grads = own.zeros(state.trainable)
        for micro in micros:
            grads, (loss, _) = own.accumulate(grads, state.trainable, frozen, micro, targets)
        return own.apply(state, grads)[0], loss

    compiling, (state, _) = timed(lambda: update(state))
    yield {"compiling_step_s": compiling}
    seconds, (state, loss) = timed(lambda: update(state))
    count = data.rows * per_row
    grid = (1, size.side // 14, size.side // 14)
    flops = 3 * row_flops(config, [length] * count, [])
    flops += count * vision_flops(config.vision, grid)  # the tower is frozen
    chip = chip_here(jax.devices()[0])
    yield {
        "compiling_step_s": compiling,
        "step_s": seconds,
        "tokens_per_s": data.rows * data.tokens_per_row / seconds,
        "flop_per_s": flops / seconds,
        "mfu": flops / seconds / chip.peak if chip else None,
        "loss": float(loss),
        **memory(),
    }


# -- the file ---------------------------------------------------------------------------------


def memory() -> Figures:
    """Most bytes of the device so far, where it says."""
    said = jax.devices()[0].memory_stats() or {}
    return {"peak_gib": said["peak_bytes_in_use"] / 2**30} if "peak_bytes_in_use" in said else {}


def about() -> Figures:
    """Date, commit, card, versions."""

    def said(*words: str) -> str:
        try:
            return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": said("git", "rev-parse", "--short", "HEAD"),
        "dirty": bool(said("git", "status", "--porcelain", "--untracked-files=no")),
        "card": device.device_kind,
        "driver": said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "jax": jax.__version__,
    }


def main() -> None:
    """Correctness, GRPO step, SFT step; a part that fails is named and the others go on."""
    parser = argparse.ArgumentParser(description="Measure this device at 3B shapes.")
    parser.add_argument("json", type=Path, help="write the figures there")
    parser.add_argument("--tiny", action="store_true", help="a size for two CPU cores")
    parser.add_argument(
        "--option", action="append", default=[], help="of the configs, as model.unroll=0"
    )
    args = parser.parse_args()
    size, began = scale(args.tiny, args.option), time.monotonic()
    found: Figures = {"about": about(), "tiny": args.tiny, "options": args.option}

    def keep(name: str, figures: Figures) -> None:
        found[name] = figures
        found["seconds"] = round(time.monotonic() - began, 1)
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"[{found['seconds']} s] {name}: {json.dumps(figures)}", flush=True)

    keep("correctness", compare(size))
    failed = False
    for name, run in (("grpo", grpo), ("sft", sft)):
        try:
            for figures in run(size):
                keep(name, figures)
        except Exception as error:  # out of memory, a compiler's refusal: the other part may work
            failed = True
            words = str(error).splitlines() or [repr(error)]
            keep(name, {**found.get(name, {}), "error": words[0][:500]})
        jax.clear_caches()
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
