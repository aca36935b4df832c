"""Makes the embedded checkpoint: a weak base model for the tiny default, as a real HF directory.

A Qwen2.5-VL of about 1.2 million parameters is trained from scratch, with the project's own model
and loss, to answer questions about drawn images. Many of its targets break the answer format on
purpose: the result answers correctly and in the format some of the time, as a base model does, and
leaves GRPO something to teach. The finished directory is part of the package, so that no run has to
train it; anyone can make it again (one to two hours on two cores):

    python -m converters.tiny_checkpoint OUT_DIR
"""

import argparse
import json
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from safetensors.numpy import save_file

from converters.tiny_tokenizer import tiny_config, write_sidecars
from vlaa_jax.algos.losses import masked_cross_entropy
from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.rows.batches import BatchLayout, PromptBatch, collate_prompts
from vlaa_jax.data.samples.preprocessor import Encoded, Preprocessor
from vlaa_jax.data.synthetic import TASKS, draw_sample
from vlaa_jax.data.synthetic.sample import SyntheticSample
from vlaa_jax.data.text.chat import Chat
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.hf_config import parse_config
from vlaa_jax.models.qwen_vl.hf_keys import key_table
from vlaa_jax.models.qwen_vl.model import Compute, PromptInputs, init_params, split_model
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.policy.pretrained import pixel_norm
from vlaa_jax.policy.prompts import prompt_inputs

PROMPT_TOKENS = 80
ANSWER_TOKENS = 48
ROWS_PER_BIN = 2

SYSTEM_PROMPT = "Think inside <think> </think>, then answer inside <answer> </answer>."
SIZES: dict[str, Any] = {
    "vision_depth": 3,
    "vision_intermediate": 192,
    "full_blocks": (1,),
    "text_layers": 3,
    "text_intermediate": 320,
}
"""Sizes that differ from `tiny_config`'s: small enough to train on one core."""


@dataclass(frozen=True)
class Stage:
    """A stretch of training with a learning-rate schedule of its own.

    Attributes:
        steps: optimizer steps.
        rows: samples per step.
        lr: peak learning rate, after 100 steps of warm-up.
        decay_steps: where the cosine reaches its floor; later than `steps` to stop before it.
        in_format: share of targets in the answer format.
        seed: of the samples.
    """

    steps: int
    rows: int
    lr: float
    decay_steps: int
    in_format: float
    seed: int


STAGES = (
    Stage(1600, 32, 2.5e-3, 1600, 0.5, 20250411),
    Stage(650, 20, 1.5e-3, 2000, 0.5, 777),
    Stage(1100, 20, 1.3e-3, 1100, 0.3, 991),
    Stage(3000, 20, 1.5e-3, 3000, 0.3, 4242),
)
"""How the checkpoint in the package was made, as it happened: what the first stages gave answered
too seldom right, so it was trained on, the last stages with fewer targets in the format."""


def target_text(sample: SyntheticSample, rng: np.random.Generator, in_format: float) -> str:
    """A completion to imitate; with probability 1 - `in_format` it breaks the format."""
    if rng.random() < in_format:
        return sample.target
    breaks = (
        f"{sample.reasoning} {sample.answer}",
        f"<think> {sample.reasoning} </think> {sample.answer}",
        f"{sample.reasoning} The answer is {sample.answer}",
        f"<think> {sample.reasoning} <answer> {sample.answer}",
    )
    return breaks[rng.integers(len(breaks))]


class Batches:
    """Endless batches of freshly drawn samples, made ahead in a thread."""

    def __init__(
        self, directory: Path, *, rows: int, system_prompt: str, in_format: float, seed: int
    ) -> None:
        self._chat = Chat.from_dir(directory)
        self._processor = ImageProcessor.from_dir(directory)
        self._rows = rows
        self._system_prompt = system_prompt
        self._in_format = in_format
        self._rng = np.random.default_rng(seed)
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=4)
        threading.Thread(target=self._fill, daemon=True).start()

    def __iter__(self) -> Iterator[tuple[PromptBatch, np.ndarray, np.ndarray]]:
        while True:
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    def _fill(self) -> None:
        try:
            while True:
                self._queue.put(self._batch())
        except Exception as error:
            self._queue.put(error)

    def _batch(self) -> tuple[PromptBatch, np.ndarray, np.ndarray]:
        prompts: list[Encoded] = []
        tokens = np.zeros((self._rows, 1, ANSWER_TOKENS), np.int32)
        mask = np.zeros(tokens.shape, bool)
        while len(prompts) < self._rows:
            task = list(TASKS)[len(prompts) % len(TASKS)]
            sample = draw_sample(task, self._rng)
            text = target_text(sample, self._rng, self._in_format)
            answer = [*self._chat.encode(text), self._chat.encode("<|im_end|>")[0]]
            prompt = Preprocessor(self._chat, self._processor, self._system_prompt).encode(
                sample.record("sample", "image.png"), [sample.image]
            )
            if prompt.length > PROMPT_TOKENS or len(answer) > ANSWER_TOKENS:
                continue
            tokens[len(prompts), 0, : len(answer)] = answer
            mask[len(prompts), 0, : len(answer)] = True
            prompts.append(prompt)
        batch = collate_prompts(
            prompts, BatchLayout(pad_id=0, rows_per_bin=ROWS_PER_BIN), min_tokens=PROMPT_TOKENS
        )
        return _crop(batch), tokens, mask


def _crop(batch: PromptBatch) -> PromptBatch:
    """Cuts the ladder's padding: this run has one shape and compiles one program anyway."""
    keep = slice(None, PROMPT_TOKENS)
    return batch._replace(
        ids_PT=batch.ids_PT[:, keep],
        positions_PT3=batch.positions_PT3[:, keep],
        unit_src_PT=batch.unit_src_PT[:, keep],
    )


def scaled_init(config: QwenVLConfig, seed: int) -> dict[str, Any]:
    """Parameters with kernels of standard deviation 1/sqrt(fan-in): at this width 0.02 learns
    several times slower."""

    def scale(path: tuple, value: Any) -> Any:
        is_kernel = path[-1].key == "kernel"
        return value * (value.shape[-2] ** -0.5 / 0.02) if is_kernel else value

    return jax.tree_util.tree_map_with_path(scale, init_params(config, seed))


def train(
    config: QwenVLConfig,
    directory: Path,
    stage: Stage,
    params: dict[str, Any],
    *,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains the base model for one stage; returns its float32 parameters."""
    console = console or Console()
    pixels = pixel_norm(ImageProcessor.from_dir(directory))
    graphdef, _ = split_model(config, Compute(unroll=True, pixels=pixels))
    policy = Distribution(graphdef, temperature=1.0, chunk=0, row_shards=1)
    allowed = jnp.ones(config.text.vocab_size, bool)
    schedule = optax.schedules.warmup_cosine_decay_schedule(
        0, stage.lr, 100, stage.decay_steps, 0.02 * stage.lr
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.02)
    )
    opt_state = optimizer.init(params)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, prompt: PromptInputs, tokens: Any, mask: Any) -> Any:
        def loss_fn(params: Any) -> Any:
            logprobs, _ = policy.completion_logprobs(params, prompt, tokens, allowed)
            return masked_cross_entropy(logprobs, mask, mask.sum())

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    batches = Batches(
        directory,
        rows=stage.rows,
        system_prompt=SYSTEM_PROMPT,
        in_format=stage.in_format,
        seed=stage.seed,
    )
    began, recent = time.monotonic(), []
    for number, (batch, tokens, mask) in zip(range(1, stage.steps + 1), batches, strict=False):
        params, opt_state, loss = step(params, opt_state, prompt_inputs(batch), tokens, mask)
        recent.append(loss)
        if number % 50 == 0 or number == stage.steps:
            left = (time.monotonic() - began) / number * (stage.steps - number)
            mean = float(jnp.mean(jnp.stack(recent)))
            console.print(f"step {number}/{stage.steps}  loss {mean:.4f}  {left:.0f} s left")
            recent = []
    return params


def write_directory(
    directory: Path, params: dict[str, Any], hf_config: dict[str, Any], dtype: str = "bfloat16"
) -> None:
    """Adds config.json and model.safetensors to the sidecars: a complete HF directory."""
    config = parse_config(hf_config)
    tensors = {}
    for key in key_table(config):
        leaf = np.asarray(reduce(lambda node, name: node[name], key.path, params))
        layers = [leaf] if key.layers is None else list(leaf)
        for name, layer in zip(key.hf_names(), layers, strict=True):
            theirs = key.transform.to_theirs(layer.astype(jnp.dtype(dtype)), key.hf_shape)
            tensors[name] = np.ascontiguousarray(theirs)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps({**hf_config, "torch_dtype": dtype}, indent=2) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Trains the base model and writes the HF directory."""
    parser = argparse.ArgumentParser(description="Make the embedded checkpoint.")
    parser.add_argument("out_dir", type=Path)
    out_dir = parser.parse_args().out_dir
    hf_config = tiny_config(write_sidecars(out_dir, system_prompt=SYSTEM_PROMPT), **SIZES)
    config = parse_config(hf_config)
    params = scaled_init(config, STAGES[0].seed)
    for stage in STAGES:
        params = train(config, out_dir, stage, params)
    write_directory(out_dir, params, hf_config)


if __name__ == "__main__":
    main()
