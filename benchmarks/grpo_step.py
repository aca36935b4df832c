"""One GRPO step three ways, same weights: ours, our own layout with prompts repeated, HF in torch.

    python benchmarks/grpo_step.py --rounds 3 --json grpo_step.json

P prompts of 64 text and 256 visual tokens, G completions each of 64 tokens (nothing ends earlier),
a Qwen2.5-VL of 38 million parameters in float32. A step is a rollout, a scoring pass for the
reference, and an update (forward, loss, backward, AdamW). The contenders take turns within each
round; figures are medians, and ratios are taken within rounds. Before anything is timed, the three
must give the same log-probabilities of the same completions.

FLOPs are counted by hand from the layer shapes (two per multiply-add; a backward pass costs twice
its forward; a token that is decoded costs what it costs in a forward pass); the floor is the fewest
a phase needs, each prompt and image once, divided by the fastest matrix product measured in the
same run. Memory is what the compiler plans for the gradient program: arguments, results and
temporaries. Needs torch and transformers (the test extra), and 20 GiB for the repeated layout.
"""

import argparse
import ctypes
import gc
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers

from vlaa_jax.data.rows.batches import BatchLayout, collate_prompts
from vlaa_jax.data.samples.preprocessor import Encoded
from vlaa_jax.data.text.positions import mrope_positions
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.hf_config import parse_config
from vlaa_jax.models.qwen_vl.hf_keys import key_table
from vlaa_jax.models.qwen_vl.model import Compute, PromptInputs, init_params, split_model
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.policy.prompts import prompt_inputs
from vlaa_jax.rollout.engine import Engine
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.settings.grpo import AlgoSettings
from vlaa_jax.train.grpo_loss import Context, GroupBatch, grpo_loss
from vlaa_jax.train.state import new_state
from vlaa_jax.train.update import Update

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
LR, KL = 1e-6, 1e-3


@dataclass(frozen=True)
class Shape:
    """P prompts, G completions."""

    prompts: int
    completions: int


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


class Ours:
    """Our step; with `repeat`, every completion has its own copy of prompt and image."""

    def __init__(self, config: QwenVLConfig, samples: list[Encoded], g: int, repeat: bool) -> None:
        self.repeat = repeat
        if repeat:
            samples, g = [s for s in samples for _ in range(g)], 1
        self.shape = Shape(len(samples), g)
        batch = collate_prompts(samples, BatchLayout(pad_id=0, rows_per_bin=16), min_tokens=8)
        self.prompt: PromptInputs = jax.device_put(prompt_inputs(batch))
        graphdef, _ = split_model(config, Compute(unroll=True))
        algo = AlgoSettings(kl_coef=KL, kl_target=0.0, updates_per_rollout=1)
        optimizer = optax.adamw(LR, b2=0.95, weight_decay=0.0)
        policy = Distribution(graphdef, temperature=1.0, chunk=0, row_shards=1)
        self.allowed = jnp.ones(config.text.vocab_size, bool)
        self.steps = Update(partial(grpo_loss, policy, algo, NEW), optimizer)
        self.score_ = jax.jit(lambda *a: policy.completion_logprobs(*a)[0])
        everywhere = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        # Put there on purpose: arrays that jax may move, then arrays that it may not, would be two
        # programs.
        self.params = jax.device_put(init_params(config, 0), everywhere)
        start = jax.tree.map(jnp.copy, self.params)
        self.state = new_state(start, optimizer, everywhere)  # type: ignore[arg-type]
        self.engine = Engine(
            graphdef,
            completions=g,
            max_new_tokens=NEW,
            sampling=Sampling(),
            eos_id=-1,  # nobody ends early
            allowed_V=np.ones(config.text.vocab_size, bool),
        )

    def rollout(self) -> np.ndarray:
        """Samples; gives tokens [P * G, T]."""
        keys = jax.random.split(jax.random.key(0), self.shape.prompts)
        length = self.prompt.ids_PT.shape[1]
        rollout = self.engine.generate(self.params, [self.prompt], keys, prefix_length=length)
        return rollout.tokens_PGT.reshape(-1, NEW)

    def score(self, tokens_NT: np.ndarray) -> np.ndarray:
        """Log-probabilities under the starting parameters, [P * G, T]."""
        tokens = tokens_NT.reshape(self.shape.prompts, self.shape.completions, NEW)
        out = self.score_(self.params, self.prompt, jnp.asarray(tokens), self.allowed)
        return np.asarray(out).reshape(-1, NEW)

    def gradient_arguments(
        self, tokens_NT: np.ndarray, advantages_N: np.ndarray, ref_NT: np.ndarray
    ) -> tuple:
        lead = (self.shape.prompts, self.shape.completions)
        tokens, ref = (jnp.asarray(a.reshape(*lead, NEW)) for a in (tokens_NT, ref_NT))
        mask = jnp.ones((*lead, NEW), bool)
        advantages = jnp.asarray(advantages_N.reshape(lead), jnp.float32)
        batch = GroupBatch(self.prompt, tokens, mask, advantages, ref, ref, ref)
        totals = jnp.float32(tokens_NT.size), jnp.float32(len(tokens_NT))
        return self.state.trainable, {}, batch, Context(*totals, jnp.float32(KL), self.allowed)

    def update(self, tokens_NT: np.ndarray, advantages_N: np.ndarray, ref_NT: np.ndarray) -> float:
        """Forward, loss, backward, AdamW."""
        arguments = self.gradient_arguments(tokens_NT, advantages_N, ref_NT)
        grads, (loss, _) = self.steps.gradients(*arguments)
        self.state, norm = self.steps.apply(self.state, grads)
        jax.block_until_ready(norm)
        return float(loss)

    def memory(self, tokens_NT: np.ndarray, advantages_N: np.ndarray, ref_NT: np.ndarray) -> int:
        """Peak bytes of the gradient program, as its compiler planned them."""
        arguments = self.gradient_arguments(tokens_NT, advantages_N, ref_NT)
        planned = self.steps.gradients.lower(*arguments).compile().memory_analysis()
        return int(
            planned.argument_size_in_bytes
            + planned.output_size_in_bytes
            + planned.temp_size_in_bytes
        )


class Torch:
    """A plain step with transformers: generate, log-probabilities, loss, backward, AdamW."""

    def __init__(self, config: QwenVLConfig, samples: list[Encoded], g: int) -> None:
        self.model = transformers.Qwen2_5_VLForConditionalGeneration(
            transformers.Qwen2_5_VLConfig(**MINI)
        )
        self.model.load_state_dict(hf_state(config, init_params(config, 0)), strict=False)
        self.model.tie_weights()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=0.0)
        repeated = [s for s in samples for _ in range(g)]
        self.ids = torch.tensor(np.stack([s.ids_T for s in repeated])).long()
        self.images = {
            "pixel_values": torch.tensor(np.concatenate([s.patches[0] for s in repeated])),
            "image_grid_thw": torch.tensor([GRID for _ in repeated]),
        }

    def _inputs(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == IMAGE).long(),
            **self.images,
        }

    def rollout(self) -> np.ndarray:
        """Samples; gives tokens [P * G, T]."""
        settings = transformers.GenerationConfig(
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            max_new_tokens=NEW,
            pad_token_id=0,
            suppress_tokens=[IMAGE],  # it would then be scored as an image without features
        )
        with torch.no_grad():
            out = self.model.generate(**self._inputs(self.ids), generation_config=settings)
        return out[:, self.ids.shape[1] :].numpy().astype(np.int32)

    def logprobs(self, tokens: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [P * G, T] of the completions; logits of completions only."""
        ids = torch.cat([self.ids, tokens], dim=1)
        logits = self.model(**self._inputs(ids), logits_to_keep=NEW + 1).logits[:, :-1]
        return torch.log_softmax(logits, -1).gather(-1, tokens[..., None])[..., 0]

    def score(self, tokens_NT: np.ndarray) -> np.ndarray:
        """Log-probabilities under the present parameters, [P * G, T]."""
        with torch.no_grad():
            return self.logprobs(torch.tensor(tokens_NT).long()).numpy()

    def update(self, tokens_NT: np.ndarray, advantages_N: np.ndarray, ref_NT: np.ndarray) -> float:
        """Forward, loss, backward, AdamW."""
        logprobs = self.logprobs(torch.tensor(tokens_NT).long())
        ratio = torch.exp(logprobs - logprobs.detach())
        gap = torch.tensor(ref_NT) - logprobs
        advantages = torch.tensor(advantages_N)[:, None]
        clipped = torch.clamp(ratio, 0.8, 1.2) * advantages
        per_token = -torch.minimum(ratio * advantages, clipped) + KL * (torch.exp(gap) - gap - 1)
        loss = per_token.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def hf_state(config: QwenVLConfig, params: Any) -> dict[str, torch.Tensor]:
    """Our parameters under the names of transformers' module tree."""
    state = {}
    for key in key_table(config):
        leaf = params
        for part in key.path:
            leaf = leaf[part]
        layers = [leaf] if key.layers is None else list(leaf)
        for name, layer in zip(key.hf_names(), layers, strict=True):
            ours = key.transform.to_theirs(np.asarray(layer), key.hf_shape)
            new = name.replace("visual.", "model.visual.", 1)
            if name.startswith("model."):
                new = name.replace("model.", "model.language_model.", 1)
            state[new] = torch.tensor(np.ascontiguousarray(ours))
    return state


def forward_flops(
    config: QwenVLConfig, *, images: int, prefix: int, prompts: int, rows: int
) -> int:
    """FLOPs of a forward pass over `prompts` prefixes and `rows` completions of NEW tokens each."""
    text, vision = config.text, config.vision
    attention = text.width * text.head_dim * (2 * text.heads + 2 * text.kv_heads)
    per_token = 2 * text.layers * (attention + 3 * text.width * text.intermediate)
    seen = prompts * prefix**2 / 2 + rows * (NEW * prefix + NEW**2 / 2)
    scores = 4 * text.layers * text.heads * text.head_dim * seen
    head = 2 * rows * NEW * text.width * text.vocab_size
    patches = GRID[1] * GRID[2]
    width = vision.width
    per_patch = 2 * vision.depth * (4 * width**2 + 3 * width * vision.intermediate)
    spans = len(vision.full_blocks) * patches + (vision.depth - len(vision.full_blocks)) * 64
    per_patch += 4 * width * spans + 2 * 1176 * width
    merged = 4 * width
    per_patch += 2 * (merged * merged + merged * text.width) / 4
    tokens = prompts * prefix + rows * NEW
    return round(tokens * per_token + scores + head + images * patches * per_patch)


def peak_flops() -> float:
    """Fastest float32 matrix product of a few, in torch and in jax, FLOP/s."""
    product = jax.jit(jnp.matmul)
    best = 0.0
    for m, k, n in ((1024, 1024, 1024), (2048, 384, 3072)):
        a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
        x, y = jnp.asarray(a), jnp.asarray(b)
        runs = (
            partial(lambda x, y: product(x, y).block_until_ready(), x, y),
            partial(torch.matmul, torch.tensor(a), torch.tensor(b)),
        )
        for run in runs:
            run()
            best = max(best, *(2 * m * k * n / seconds(run)[0] for _ in range(8)))
    return best


def release_memory() -> None:
    """Gives freed memory back to the system, so that no contender pays for the one before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of a call, and what it gave."""
    start = time.perf_counter()
    out = run()
    return time.perf_counter() - start, out


def check(ours: Ours, naive: Ours, hf: Torch) -> dict[str, float]:
    """Same completions, same log-probabilities."""
    tokens = np.random.default_rng(1).integers(3, 3900, (len(hf.ids), NEW)).astype(np.int32)
    a, b, c = ours.score(tokens), naive.score(tokens), hf.score(tokens)
    gaps = {"ours_naive": float(np.abs(a - b).max()), "ours_hf": float(np.abs(a - c).max())}
    if max(gaps.values()) > 1e-3:
        raise SystemExit(f"the three do not compute the same model: {gaps}")
    return gaps


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All figures after each round, so that an interrupted measurement keeps those it has."""
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    config = parse_config(MINI)
    samples = encoded_prompts(config, args.prompts)
    rows = args.prompts * args.completions
    runs: dict[str, Any] = {
        "ours": Ours(config, samples, args.completions, repeat=False),
        "naive": Ours(config, samples, args.completions, repeat=True),
        "hf": Torch(config, samples, args.completions),
    }
    gaps = check(runs["ours"], runs["naive"], runs["hf"])
    rng = np.random.default_rng(2)
    advantages = rng.normal(size=rows).astype(np.float32)
    memory = {}
    for name in ("ours", "naive"):
        tokens = rng.integers(3, 3900, (rows, NEW)).astype(np.int32)
        memory[name] = runs[name].memory(tokens, advantages, np.zeros((rows, NEW), np.float32))
    times: dict[str, dict[str, list[float]]] = {
        name: {"rollout": [], "score": [], "update": []} for name in runs
    }
    peak = peak_flops()
    for round_ in range(args.rounds + 1):
        for name, run in runs.items():
            rollout_s, tokens = seconds(run.rollout)
            score_s, ref = seconds(lambda run=run, tokens=tokens: run.score(tokens))
            update_s, _ = seconds(lambda r=run, t=tokens, f=ref: r.update(t, advantages, f))
            print(
                f"round {round_}{' (warm-up)' if not round_ else ''}  {name:6}"
                f"  rollout {rollout_s:6.2f} s  score {score_s:6.2f} s  update {update_s:6.2f} s",
                flush=True,
            )
            release_memory()
            if round_:
                for phase, value in zip(times[name], (rollout_s, score_s, update_s), strict=True):
                    times[name][phase].append(value)
        if round_:
            yield summary(round_, args, config, times, gaps, memory, peak)


def summary(
    rounds: int,
    args: argparse.Namespace,
    config: QwenVLConfig,
    times: dict[str, dict[str, list[float]]],
    gaps: dict[str, float],
    memory: dict[str, int],
    peak: float,
) -> dict[str, Any]:
    """Medians, ratios within rounds, and shares of the floor."""
    rows, prefix = args.prompts * args.completions, TEXT + GRID[1] * GRID[2] // 4
    least = forward_flops(
        config, images=args.prompts, prefix=prefix, prompts=args.prompts, rows=rows
    )
    repeated = forward_flops(config, images=rows, prefix=prefix, prompts=rows, rows=rows)
    flops = {
        name: {"rollout": forward, "score": forward, "update": 3 * forward}
        for name, forward in (("ours", least), ("naive", repeated), ("hf", repeated))
    }
    floor = {phase: count / peak for phase, count in flops["ours"].items()}

    def ratio(a: str, b: str, phase: str) -> float:
        pairs = zip(times[a][phase], times[b][phase], strict=True)
        return statistics.median(x / y for x, y in pairs)

    medians = {
        name: {phase: statistics.median(values) for phase, values in phases.items()}
        for name, phases in times.items()
    }
    return {
        "prompts": args.prompts,
        "completions": args.completions,
        "rounds": rounds,
        "parameters": sum(a.size for a in jax.tree.leaves(init_params(config, 0))),
        "median_s": medians,
        "update_speedup_vs_naive": ratio("naive", "ours", "update"),
        "update_speedup_vs_hf": ratio("hf", "ours", "update"),
        "score_speedup_vs_naive": ratio("naive", "ours", "score"),
        "score_speedup_vs_hf": ratio("hf", "ours", "score"),
        "rollout_speedup_vs_naive": ratio("naive", "ours", "rollout"),
        "rollout_speedup_vs_hf": ratio("hf", "ours", "rollout"),
        "completions_per_s": {n: rows / m["rollout"] for n, m in medians.items()},
        "flops": flops,
        "peak_flop_per_s": peak,
        "floor_s": floor,
        "share_of_floor": {
            name: {phase: floor[phase] / m[phase] for phase in floor} for name, m in medians.items()
        },
        "gradient_peak_bytes": memory,
        "memory_share_of_naive": memory["ours"] / memory["naive"],
        "largest_logprob_gap": gaps,
        "max_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def report(found: dict[str, Any]) -> None:
    """Prints the figures."""
    print(f"\n{found['parameters'] / 1e6:.1f} M parameters, float32")
    print(f"largest gaps of log-probabilities: {found['largest_logprob_gap']}")
    for name, medians in found["median_s"].items():
        phases = "  ".join(
            f"{phase} {value:6.2f} s, {found['flops'][name][phase] / 1e9:5.0f} GFLOP counted, "
            f"{found['share_of_floor'][name][phase]:4.0%} of the floor's speed;"
            for phase, value in medians.items()
        )
        print(f"{name:6} {phases}  {found['completions_per_s'][name]:5.1f} completions/s")
    floors = ", ".join(f"{phase} {value:.2f} s" for phase, value in found["floor_s"].items())
    print(f"floors: {floors} ({found['peak_flop_per_s'] / 1e9:.0f} GFLOP/s measured)")
    for phase in ("update", "score", "rollout"):
        print(
            f"{phase}: {found[f'{phase}_speedup_vs_naive']:.2f}x naive, "
            f"{found[f'{phase}_speedup_vs_hf']:.2f}x HF"
        )
    sizes = {name: f"{size / 2**30:.1f} GiB" for name, size in found["gradient_peak_bytes"].items()}
    share = found["memory_share_of_naive"]
    print(f"memory of the gradient program: {sizes}, {share:.0%} of naive")


def main() -> None:
    """Parses, measures, reports."""
    parser = argparse.ArgumentParser(description="Time a GRPO step three ways.")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for found in measure(args):
        if args.json:
            Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if found:
        report(found)


if __name__ == "__main__":
    main()
