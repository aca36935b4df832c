"""A whole GRPO step at its longest lengths."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.grpo import get_config
from gpu_room.correct import NEVER
from gpu_room.scale import (
    Figures,
    Scale,
    allowed_ids,
    memory,
    one_device,
    sample,
    settings_of,
    timed,
)
from vlaa_jax.data.rows.batches import BatchLayout, collate_prompts
from vlaa_jax.models.qwen_vl.flops import group_flops
from vlaa_jax.models.qwen_vl.model import init_params
from vlaa_jax.models.qwen_vl.trees import partition
from vlaa_jax.parallel.mesh import replicated
from vlaa_jax.plan.check import chip_here
from vlaa_jax.plan.formulas import sizes_of
from vlaa_jax.plan.programs import make_parts
from vlaa_jax.plan.shapes import shapes_of
from vlaa_jax.policy.prompts import prompt_inputs
from vlaa_jax.rollout.engine import Decoding, Engine
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.train.grpo_loss import Context, GroupBatch
from vlaa_jax.train.state import new_state


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
            layout=BatchLayout(rows_per_bin=shapes.rows),
            tokens=shapes.prompt,
        )
        model = self.parts.model
        params = jax.device_put(init_params(config, 0), _places(model.params))
        trainable, self.frozen = partition(params, settings.model.freeze, adapters_only=False)
        self.state = new_state(trainable, model.optimizer, replicated(self.mesh))
        allowed_V = allowed_ids(config)
        self.allowed_V = jax.device_put(allowed_V)
        self.engine = Engine(
            model.graphdef,
            Decoding(
                rollout.completions, rollout.max_new_tokens, slots=shapes.slots, burst=rollout.burst
            ),
            sampling=Sampling(rollout.temperature),
            eos_id=NEVER,
            allowed_V=allowed_V,
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
        sequences = jnp.float32(count / tokens.shape[-1])
        kl_coef = jnp.float32(algo.kl_coef)
        context = Context(jnp.float32(count), sequences, kl_coef, self.allowed_V)
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


def grpo(size: Scale) -> Iterator[Figures]:
    """A step that compiles, then one that is timed."""
    step = Step(size)
    seconds, _ = timed(lambda: step() and None)
    yield {"compiling_step_s": seconds}
    yield {"compiling_step_s": seconds, **step(), **memory()}
