"""Times our model beside transformers on torch: forward, train step, sampled decoding.

    python benchmarks/model.py --json model.json
    python benchmarks/model.py --what decode --dtype bfloat16 --rounds 5

One process, one mini Qwen2.5-VL of 38 million parameters with the same weights, the same batch, the
same precision, two threads. In each round both sides do the same work once, one after the other;
reported are medians, the median of the ratios within rounds, and the floor: counted FLOPs over the
rate of a matrix product of the model's own shapes, measured here, in the faster of both libraries.

bfloat16 means: forward and decoding with bfloat16 weights; training with float32 weights and AdamW,
under autocast in torch and with bfloat16 activations in ours.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers
from flax import nnx

from vlaa_jax.algos.logprobs import token_logprobs
from vlaa_jax.data.images.planner import gather_patches, plan_vision
from vlaa_jax.data.text.positions import mrope_positions
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.hf_config import parse_config
from vlaa_jax.models.qwen_vl.hf_keys import canonical, key_table, nest
from vlaa_jax.models.qwen_vl.layers import matmul
from vlaa_jax.models.qwen_vl.model import Compute, PromptInputs, RowInputs, split_model
from vlaa_jax.models.qwen_vl.vision import VisionInputs
from vlaa_jax.rollout.engine import Decoding, Engine
from vlaa_jax.rollout.sampling import Sampling

IMAGE = 4000
HF_CONFIG: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 384,
    "intermediate_size": 3072,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "image_token_id": IMAGE,
    "video_token_id": IMAGE + 1,
    "vision_start_token_id": IMAGE + 2,
    "vision_end_token_id": IMAGE + 3,
    "tie_word_embeddings": False,
    "vision_config": {
        "depth": 4,
        "hidden_size": 192,
        "out_hidden_size": 384,
        "intermediate_size": 768,
        "num_heads": 4,
        "fullatt_block_indexes": [3],
        "window_size": 112,
        "tokens_per_second": 2,
    },
}
ROWS, TOKENS, GRID = 4, 256, (1, 8, 8)
DECODE_ROWS, PROMPT, NEW = 16, 64, 128
THREADS = 2


Work = Callable[[], Any]


def make_oracle() -> tuple[Any, QwenVLConfig, dict[str, Any]]:
    """The transformers model, our configuration, and our float32 parameters."""
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(**HF_CONFIG)
    ).eval()
    config = parse_config({**HF_CONFIG, "model_type": "qwen2_5_vl"})
    theirs = {canonical(n): p.detach().numpy() for n, p in model.named_parameters()}
    flat = {}
    for key in key_table(config):
        parts = [key.transform.to_ours(theirs[canonical(n)]) for n in key.hf_names()]
        flat[key.path] = jnp.asarray(np.stack(parts) if key.layers is not None else parts[0])
    return model, config, nest(flat)


def make_batch(config: QwenVLConfig) -> tuple[dict[str, torch.Tensor], RowInputs]:
    """One image and text up to TOKENS in every row, for both sides."""
    rng = np.random.default_rng(0)
    units = GRID[1] * GRID[2] // 4
    ids = rng.integers(3, IMAGE, (ROWS, TOKENS))
    ids[:, 4], ids[:, 5 + units] = IMAGE + 2, IMAGE + 3
    ids[:, 5 : 5 + units] = IMAGE
    images = [rng.normal(size=(GRID[1] * GRID[2], 1176)).astype(np.float32) for _ in range(ROWS)]
    hf = {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.ones((ROWS, TOKENS), dtype=torch.long),
        "mm_token_type_ids": torch.tensor((ids == IMAGE).astype(np.int64)),
        "pixel_values": torch.tensor(np.concatenate(images)),
        "image_grid_thw": torch.tensor([GRID] * ROWS),
    }
    plan = plan_vision([[GRID] * ROWS], window_units=4, rows_per_bin=1)
    unit_src = np.full(ids.shape, -1, np.int32)
    for row, units_of_image in enumerate(plan.units[0]):
        unit_src[row, ids[row] == IMAGE] = units_of_image
    positions = [
        mrope_positions(row, [GRID], image_token_id=config.image_token_id)[0] for row in ids
    ]
    rows = RowInputs(
        jnp.asarray(ids, jnp.int32),
        jnp.asarray(np.stack(positions)),
        jnp.ones((ROWS, TOKENS), jnp.int32),
        jnp.asarray(unit_src),
        VisionInputs(
            *map(
                jnp.asarray,
                (
                    gather_patches(plan, [images]),
                    plan.pos_hw_SR642,
                    plan.win_id_SR64,
                    plan.seg_id_SQ,
                ),
            )
        ),
    )
    return hf, rows


def forward_pair(model: Any, config: QwenVLConfig, params: Any, dtype: str, unroll: int) -> tuple:
    """Logits of the whole batch: (ours, theirs)."""
    hf, rows = make_batch(config)
    graphdef, _ = split_model(config, Compute(dtype=dtype, unroll=unroll or True))
    params = jax.tree.map(lambda a: a.astype(dtype), params)
    model = model.to(getattr(torch, dtype))

    @jax.jit
    def run(params: Any, rows: RowInputs) -> jax.Array:
        ours = nnx.merge(graphdef, params)
        hidden = ours.hidden_rows(rows)
        return matmul(hidden.reshape(-1, hidden.shape[-1]), ours.head_kernel_DV)

    def theirs() -> Any:
        with torch.no_grad():
            return model(**hf, use_cache=False).logits

    return lambda: jax.block_until_ready(run(params, rows)), theirs


def check_equal() -> None:
    """Stops unless both sides compute the same logits; times of different models mean nothing."""
    ours, theirs = forward_pair(*make_oracle(), "float32", 0)
    expected = theirs().numpy()
    gap = np.abs(np.asarray(ours()).reshape(expected.shape) - expected).max()
    if not gap <= 1e-5 * np.abs(expected).max():
        raise SystemExit(f"logits differ by {gap}")
    print(f"logits differ by at most {gap:.1e} (largest {np.abs(expected).max():.2f})")


def train_pair(model: Any, config: QwenVLConfig, params: Any, dtype: str, unroll: int) -> tuple:
    """Forward, backward and AdamW with every parameter: (ours, theirs)."""
    hf, rows = make_batch(config)
    graphdef, _ = split_model(config, Compute(dtype=dtype, unroll=unroll or True))
    optimizer = optax.adamw(1e-4)
    kept = [params, optimizer.init(params)]
    targets = rows.ids_BT[:, 1:].reshape(-1)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, moments: Any) -> tuple[Any, Any, jax.Array]:
        def loss(params: Any) -> jax.Array:
            ours = nnx.merge(graphdef, params)
            hidden = ours.hidden_rows(rows)[:, :-1].reshape(-1, config.text.width)
            return -token_logprobs(hidden, ours.head_kernel_DV.astype(dtype), targets)[0].mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, value

    def ours() -> Any:
        *kept[:], value = step(*kept)
        return jax.block_until_ready(value)

    model = model.to(torch.float32).train()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    labels = hf["input_ids"]

    def theirs() -> Any:
        adamw.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(**hf, labels=labels, use_cache=False).loss
        loss.backward()
        adamw.step()
        return loss

    return ours, theirs


def decode_pair(model: Any, config: QwenVLConfig, params: Any, dtype: str, unroll: int) -> tuple:
    """NEW sampled tokens behind each of DECODE_ROWS different prompts: (ours, theirs)."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, IMAGE, (DECODE_ROWS, PROMPT))
    graphdef, _ = split_model(config, Compute(dtype=dtype, unroll=unroll or True))
    params = jax.tree.map(lambda a: a.astype(dtype), params)
    positions = np.broadcast_to(np.arange(PROMPT)[:, None], (DECODE_ROWS, PROMPT, 3))
    prompt = PromptInputs(
        jnp.asarray(ids, jnp.int32),
        jnp.asarray(positions, jnp.int32),
        jnp.full((DECODE_ROWS,), PROMPT, jnp.int32),
        jnp.full(ids.shape, -1, jnp.int32),
        None,
    )

    engine = Engine(
        graphdef,
        Decoding(1, NEW),
        sampling=Sampling(),
        eos_id=-1,
        allowed_V=np.ones(config.text.vocab_size, bool),
    )
    keys = jax.random.split(jax.random.key(0), DECODE_ROWS)
    model = model.to(getattr(torch, dtype)).eval()
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.ones_like(torch.tensor(ids))}
    sampling = transformers.GenerationConfig(
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=1.0,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=1,
    )

    def theirs() -> Any:
        with torch.no_grad():
            out = model.generate(**inputs, generation_config=sampling)
        assert out.shape == (DECODE_ROWS, PROMPT + NEW)
        return out

    def ours() -> Any:
        rollout = engine.generate(params, [prompt], keys, prefix_length=PROMPT)
        assert rollout.length_PG.min() == NEW
        return rollout

    return ours, theirs


PAIRS = {"forward": forward_pair, "train": train_pair, "decode": decode_pair}


def flops(config: QwenVLConfig, what: str) -> float:
    """Multiply-adds times two of what is asked for; training is three forwards."""
    text, vision = config.text, config.vision
    inner, kv = text.heads * text.head_dim, text.kv_heads * text.head_dim
    layer = 2 * text.width * inner + 2 * text.width * kv + 3 * text.width * text.intermediate
    weights = 2 * (layer * text.layers + text.width * text.vocab_size)
    attention = 4 * inner * text.layers
    if what == "decode":
        seen = sum(range(PROMPT, PROMPT + NEW))
        prefill = PROMPT * (weights + attention * PROMPT / 2)
        return DECODE_ROWS * (NEW * weights + attention * seen + prefill)
    patches = GRID[1] * GRID[2]
    block = 4 * vision.width**2 + 3 * vision.width * vision.intermediate
    wide = 4 * vision.width
    merger = (wide * wide + wide * vision.out_size) / 4
    per_patch = 2 * (1176 * vision.width + vision.depth * block + merger)
    per_patch += 4 * vision.width * vision.depth * patches
    row = TOKENS * (weights + attention * TOKENS / 2) + patches * per_patch
    return ROWS * row * (3 if what == "train" else 1)


def matmul_gflops(rows: int, dtype: str, config: QwenVLConfig) -> dict[str, float]:
    """Best rate of x @ up_proj and back in each library, over the weights of all layers."""
    width, hidden, count = config.text.width, config.text.intermediate, config.text.layers
    rng = np.random.default_rng(0)
    ups = [rng.normal(size=(width, hidden)).astype(np.float32) for _ in range(count)]
    downs = [rng.normal(size=(hidden, width)).astype(np.float32) for _ in range(count)]
    x = rng.normal(size=(rows, width)).astype(np.float32)
    work = 4 * rows * width * hidden * count

    @jax.jit
    def ours(x: jax.Array, ups: Any, downs: Any) -> jax.Array:
        for up, down in zip(ups, downs, strict=True):
            x = matmul(matmul(x, up).astype(x.dtype), down).astype(x.dtype)
        return x

    j = jax.tree.map(lambda a: jnp.asarray(a, dtype), (x, ups, downs))
    tx, tups, tdowns = jax.tree.map(
        lambda a: torch.tensor(a).to(getattr(torch, dtype)), (x, ups, downs)
    )

    def theirs() -> None:
        y = tx
        with torch.no_grad():
            for up, down in zip(tups, tdowns, strict=True):
                y = (y @ up) @ down

    def best(run: Work) -> float:
        run()
        return min(seconds(run) for _ in range(7))

    return {
        "jax": work / best(lambda: jax.block_until_ready(ours(*j))) / 1e9,
        "torch": work / best(theirs) / 1e9,
    }


def seconds(run: Work) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(what: str, dtype: str, rounds: int, unroll: int) -> dict[str, Any]:
    """Paired rounds of one kind of work in one precision."""
    model, config, params = make_oracle()
    ours, theirs = PAIRS[what](model, config, params, dtype, unroll)
    compile_s = seconds(ours)
    for run in (ours, theirs):
        run()
    pairs = []
    for number in range(rounds):
        order = (ours, theirs) if number % 2 == 0 else (theirs, ours)
        times = {run: seconds(run) for run in order}
        pairs.append((times[ours], times[theirs]))
    rate = matmul_gflops(DECODE_ROWS if what == "decode" else ROWS * TOKENS, dtype, config)
    tokens = DECODE_ROWS * NEW if what == "decode" else ROWS * TOKENS
    our_s, their_s = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {
        "what": what,
        "dtype": dtype,
        "rounds": rounds,
        "ours_ms": 1e3 * our_s,
        "hf_ms": 1e3 * their_s,
        "ours_best_ms": 1e3 * min(a for a, _ in pairs),
        "hf_best_ms": 1e3 * min(b for _, b in pairs),
        "speed_over_hf": statistics.median(b / a for a, b in pairs),
        "ours_tokens_per_s": tokens / our_s,
        "hf_tokens_per_s": tokens / their_s,
        "gflop": flops(config, what) / 1e9,
        "matmul_gflops": rate,
        "floor_ms": 1e3 * flops(config, what) / 1e9 / max(rate.values()),
        "our_matmul_floor_ms": 1e3 * flops(config, what) / 1e9 / rate["jax"],
        "first_call_s": compile_s,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", nargs="+", default=list(PAIRS), choices=PAIRS)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--unroll", type=int, default=0, help="layers per scan step; 0: all")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args()
    # The same cores for both: torch is told a number of threads, jax takes all it can see.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    torch.set_num_threads(THREADS)
    params = make_oracle()[2]
    check_equal()
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{count / 1e6:.1f} M parameters, {platform.processor() or platform.machine()}")
    results = []
    for what in arguments.what:
        for dtype in arguments.dtype:
            figures = measure(what, dtype, arguments.rounds, arguments.unroll)
            results.append(figures)
            print(
                f"{what:<8} {dtype:<9} ours {figures['ours_ms']:7.0f} ms  "
                f"transformers {figures['hf_ms']:7.0f} ms  "
                f"{figures['speed_over_hf']:5.2f}x  floor {figures['floor_ms']:6.0f} ms  "
                f"({figures['ours_tokens_per_s']:.0f} against "
                f"{figures['hf_tokens_per_s']:.0f} tokens/s)",
                flush=True,
            )
    if arguments.json:
        report = {
            "parameters": count,
            "threads": THREADS,
            "cpus": os.cpu_count(),
            "unroll": arguments.unroll,
            "versions": {"jax": jax.__version__, "torch": torch.__version__},
            "results": results,
        }
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
