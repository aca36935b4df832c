"""A step of this project: each prompt once per group or, as elsewhere, repeated."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from step_room.mini import NEW
from vlaa_jax.data.rows.batches import BatchLayout, collate_prompts
from vlaa_jax.data.samples.preprocessor import Encoded
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.model import Compute, PromptInputs, init_params, split_model
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.policy.prompts import prompt_inputs
from vlaa_jax.rollout.engine import Decoding, Engine
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.settings.grpo import AlgoSettings
from vlaa_jax.train.grpo_loss import Context, GroupBatch, grpo_loss
from vlaa_jax.train.state import new_state
from vlaa_jax.train.update import Update

LR, KL = 1e-6, 1e-3


@dataclass(frozen=True)
class Shape:
    """P prompts, G completions."""

    prompts: int
    completions: int


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
            Decoding(g, NEW),
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
