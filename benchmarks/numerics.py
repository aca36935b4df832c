"""How far sampler and trainer are apart, in plain bfloat16 and in the exact mode, and its cost.

    python benchmarks/numerics.py --rounds 3 --json numerics.json

The mini model of benchmarks/grpo_step.py, its matrices scaled up so that the distribution is far
from uniform; 16 prompts of 64 text and 256 visual tokens, 2 completions of 64 tokens each. The gap
is that between log-probabilities as sampled and as scored with a micro-batch of 1, 2, 4 or 16
prompts. Costs are medians of a rollout and of a gradient pass, the modes taking turns.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from step_room.mini import MINI, NEW, encoded_prompts
from vlaa_jax.data.rows.batches import BatchLayout, collate_prompts
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.hf_config import parse_config
from vlaa_jax.models.qwen_vl.model import Compute, init_params, split_model
from vlaa_jax.parallel.sharding import dotted
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.policy.prompts import prompt_inputs
from vlaa_jax.rollout.engine import Decoding, Engine
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.rollout.weights import is_matrix

PROMPTS, COMPLETIONS, MICRO = 16, 2, (1, 2, 4, 16)
MODES = {
    "exact": Compute(exact=jax.lax.Precision.HIGHEST, unroll=True),
    "plain bfloat16": Compute(dtype="bfloat16", unroll=True),
    "plain float32": Compute(unroll=True),
}


class Mode:
    """Rollouts, scores and gradients of one mode."""

    def __init__(self, config: QwenVLConfig, compute: Compute, params: Any) -> None:
        samples = encoded_prompts(config, PROMPTS)
        self.parts = {n: self._parts(samples, n) for n in MICRO}
        graphdef, _ = split_model(config, compute)
        policy = Distribution(graphdef, temperature=1.0, chunk=0, row_shards=1)
        self.params = params
        self.allowed = np.ones(config.text.vocab_size, bool)
        self.engine = Engine(
            graphdef,
            Decoding(COMPLETIONS, NEW),
            sampling=Sampling(),
            eos_id=-1,
            allowed_V=self.allowed,
        )

        def score(params: Any, prompt: Any, tokens: Any) -> Any:
            return policy.completion_logprobs(params, prompt, tokens, self.allowed)[0]

        self.score = jax.jit(score)
        self.gradient = jax.jit(jax.grad(lambda *given: score(*given).sum()))

    @staticmethod
    def _parts(samples: list, count: int) -> list:
        batches = (samples[i : i + count] for i in range(0, len(samples), count))
        where = BatchLayout(pad_id=0, rows_per_bin=16)
        return [
            jax.device_put(prompt_inputs(collate_prompts(b, where, min_tokens=8))) for b in batches
        ]

    def rollout(self) -> Any:
        keys = jax.random.split(jax.random.key(0), PROMPTS)
        (whole,) = self.parts[PROMPTS]
        length = whole.ids_PT.shape[1]
        return self.engine.generate(self.params, [whole], keys, prefix_length=length)

    def gap(self, rollout: Any, micro: int) -> np.ndarray:
        tokens = rollout.tokens_PGT.reshape(-1, micro, COMPLETIONS, NEW)
        scored = [
            np.asarray(self.score(self.params, part, jnp.asarray(own)))
            for part, own in zip(self.parts[micro], tokens, strict=True)
        ]
        return np.abs(np.concatenate(scored) - rollout.logprobs_PGT)


def seconds(run: Any) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args()
    config = parse_config(MINI)
    params = jax.tree_util.tree_map_with_path(
        lambda path, a: 2 * a if is_matrix(dotted(path)) else a, init_params(config, 0)
    )
    modes = {name: Mode(config, MODES[name], params) for name in arguments.modes}
    found, rollouts = {}, {}
    for name, mode in modes.items():
        rollouts[name] = mode.rollout()
        found[name] = {}
        for micro in MICRO:
            gap = mode.gap(rollouts[name], micro)
            found[name][f"micro {micro}"] = {"mean": float(gap.mean()), "max": float(gap.max())}
        print(name, found[name], flush=True)
    times: dict[str, dict[str, list[float]]] = {n: {"rollout": [], "gradient": []} for n in modes}
    for _ in range(arguments.rounds + 1):
        for name, mode in modes.items():
            tokens = jnp.asarray(rollouts[name].tokens_PGT[:4])
            run = lambda m=mode, t=tokens: m.gradient(m.params, m.parts[4][0], t)  # noqa: E731
            times[name]["rollout"].append(seconds(lambda m=mode: m.rollout().tokens_PGT))
            times[name]["gradient"].append(seconds(run))
    for name, kinds in times.items():
        found[name] |= {kind: statistics.median(own[1:]) for kind, own in kinds.items()}
        print(name, {kind: round(found[name][kind], 2) for kind in kinds}, flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
