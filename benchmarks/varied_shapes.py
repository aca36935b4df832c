"""Compiled programs and the sampler-trainer gap over steps of varied image sizes and lengths.

    python benchmarks/varied_shapes.py --steps 50 --json varied_shapes.json

Every step draws prompts with images of random size and texts of random length, samples completions
with the embedded checkpoint, scores them, and updates, as training does. Shapes come from the
bucket ladder: the number of programs may grow only when a rung is met for the first time. Printed
are the programs, the rungs met, and `policy/logprob_gap_mean` and `_max` between sampler and
trainer, in float32 and in bfloat16 (float32 parameters).
"""

import argparse
import dataclasses
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from configs import grpo as recipe
from vlaa_jax.algos import losses
from vlaa_jax.data.samples.preprocessor import Preprocessor
from vlaa_jax.parallel.mesh import make_mesh, replicated
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.policy.pretrained import Pretrained, open_pretrained
from vlaa_jax.policy.prompts import Collator, Prompt
from vlaa_jax.rollout.engine import Decoding, Engine
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.schema import Record
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.settle import settle
from vlaa_jax.train.grpo_loss import Context, GroupBatch, grpo_loss
from vlaa_jax.train.optimizer import make_optimizer
from vlaa_jax.train.state import new_state
from vlaa_jax.train.update import Update

PROMPTS, COMPLETIONS, NEW = 4, 4, 32
WORDS = ["How", "many", "red", "blue", "green", "circles", "squares", "are", "left", "of", "the"]


def settings_for(dtype: str) -> GrpoSettings:
    """The tiny recipe without limits on the shapes it draws."""
    config = recipe.get_config("tiny")
    config.model.dtype = dtype
    config.data.update(
        vision_bins_per_shard=0, vision_rows_per_bin=8, min_prompt_bucket=32, max_prompt_tokens=512
    )
    return settle(config.to_dict())


def draw(rng: np.random.Generator, checkpoint: Pretrained) -> Prompt:
    """A prompt with one image of random size and a random number of words."""
    width, height = (int(28 * rng.integers(2, 11)) for _ in range(2))
    image = Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8))
    words = rng.choice(WORDS, int(rng.integers(4, 90)))
    record = Record(id="x", images=("x.png",), question=" ".join(words), gt="1")
    encoded = Preprocessor(checkpoint.chat, checkpoint.processor).encode(record, [image])
    return Prompt(record, encoded, image.size)


class Loop:
    """Sampling, scoring and updating, as a run has them."""

    def __init__(self, settings: GrpoSettings) -> None:
        self.mesh = make_mesh(devices=jax.devices()[:1])
        self.checkpoint = open_pretrained(settings.model, settings.data, self.mesh)
        self.collate = Collator(self.checkpoint, settings.data, self.mesh)
        optimizer, _ = make_optimizer(settings.optimizer, 100)
        policy = Distribution(self.checkpoint.graphdef, temperature=1.0, chunk=0, row_shards=1)
        algo = dataclasses.replace(settings.algo, kl_coef=1e-3)
        self.steps = Update(partial(grpo_loss, policy, algo, NEW), optimizer)
        self.score: Any = jax.jit(lambda *a: policy.completion_logprobs(*a)[0])
        self.state = new_state(self.checkpoint.load_params(), optimizer, replicated(self.mesh))
        self.engine = Engine(
            self.checkpoint.graphdef,
            Decoding(COMPLETIONS, NEW),
            sampling=Sampling(),
            eos_id=self.checkpoint.chat.end_of_turn_id,
            allowed_V=self.checkpoint.allowed_V,
            mesh=self.mesh,
        )

    def step(self, number: int, prompts: list[Prompt]) -> tuple[tuple, dict[str, Any]]:
        """One step; gives its shapes and diagnostics."""
        inputs, batch = self.collate(prompts)
        keys = jax.random.split(jax.random.key(number), len(prompts))
        length = self.collate.prompt_bucket(prompts)
        rollout = self.engine.generate(self.state.trainable, [inputs], keys, prefix_length=length)
        allowed = jnp.asarray(self.checkpoint.allowed_V)
        tokens, mask = jnp.asarray(rollout.tokens_PGT), jnp.asarray(rollout.mask_PGT)
        ref = self.score(self.state.trainable, inputs, tokens, allowed)
        noise = np.random.default_rng(number).normal(size=mask.shape[:2])
        advantages = jnp.asarray(noise, jnp.float32)
        sampled = jnp.asarray(rollout.logprobs_PGT)
        group = GroupBatch(inputs, tokens, mask, advantages, sampled, ref, sampled)
        totals = jnp.float32(mask.sum()), jnp.float32(mask.shape[0] * mask.shape[1])
        context = Context(*totals, jnp.float32(1e-3), allowed)
        grads, (_, report) = self.steps.gradients(self.state.trainable, {}, group, context)
        self.state, _ = self.steps.apply(self.state, grads)
        shapes = (batch.ids_PT.shape[1], batch.vision.patches_SR64C.shape[:2], tokens.shape[2])
        found = losses.summarise_diagnostics(report)
        return shapes, {
            "mean": float(found["logprob_gap"]),
            "max": float(found["logprob_gap_max"]),
        }

    @property
    def programs(self) -> int:
        """Compiled programs of the model."""
        return self.engine.compile_count + self.steps.compile_count + self.score._cache_size()


def measure(dtype: str, steps: int) -> dict[str, Any]:
    """Runs the steps in one dtype."""
    loop, rng = Loop(settings_for(dtype)), np.random.default_rng(0)
    rungs: set[tuple] = set()
    history, gaps, growth_without_rung = [], [], 0
    for number in range(steps):
        before = loop.programs
        shapes, gap = loop.step(number, [draw(rng, loop.checkpoint) for _ in range(PROMPTS)])
        new_rung = shapes not in rungs
        rungs.add(shapes)
        growth_without_rung += loop.programs > before and not new_rung
        history.append(loop.programs)
        gaps.append(gap)
        if (number + 1) % 10 == 0 or number + 1 == steps:
            print(
                f"{dtype:8} step {number + 1:>3}  programs {loop.programs:>3}  rungs {len(rungs)}"
                f"  gap mean {gap['mean']:.1e} max {gap['max']:.1e}",
                flush=True,
            )
    return {
        "steps": steps,
        "programs": history,
        "rungs": sorted(map(str, rungs)),
        "steps_that_compiled_without_a_new_rung": growth_without_rung,
        "logprob_gap_mean": float(np.mean([g["mean"] for g in gaps])),
        "logprob_gap_max": float(np.max([g["max"] for g in gaps])),
    }


def main() -> None:
    """Parses, measures, reports."""
    parser = argparse.ArgumentParser(description="Count programs over varied shapes.")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    found = {dtype: measure(dtype, args.steps) for dtype in ("float32", "bfloat16")}
    for dtype, figures in found.items():
        print(
            f"{dtype}: {figures['programs'][-1]} programs for {len(figures['rungs'])} combinations"
            f" of rungs in {figures['steps']} steps; gap mean {figures['logprob_gap_mean']:.1e},"
            f" max {figures['logprob_gap_max']:.1e}; steps that compiled without a new rung:"
            f" {figures['steps_that_compiled_without_a_new_rung']}"
        )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
