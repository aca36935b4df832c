"""Makes the embedded checkpoint: a weak base model for the tiny default, as a real HF directory.

A Qwen2.5-VL of about 1.2 million parameters is trained to answer questions about drawn images, by
the project's own SFT (`configs/sft.py:base`), from random weights or from where a former base
stands. Many of its targets break the answer format on purpose: the result answers correctly and in
the format some of the time, as a base model does, and leaves GRPO something to teach. The finished
directory is part of the package, so that no run has to train it (how it was made: docs/sft.md). The
same command goes on after a stop:

    python -m converters.tiny_checkpoint OUT_DIR --work=WORK_DIR [--start=HF_DIR] [--config...=...]
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from converters.jax_to_hf import export
from converters.tiny_tokenizer import tiny_config, write_sidecars
from vlaa_jax import disk
from vlaa_jax.data.synthetic import draw_sample
from vlaa_jax.data.synthetic.canvas import COLORS, pick, pick_several
from vlaa_jax.data.synthetic.diagrams import ANGLES, LETTERS, with_choices
from vlaa_jax.data.synthetic.sample import in_format
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.hf_config import parse_config
from vlaa_jax.models.qwen_vl.hf_keys import key_table
from vlaa_jax.models.qwen_vl.model import init_params

SYSTEM_PROMPT = "Think inside <think> </think>, then answer inside <answer> </answer>."
SIZES: dict[str, Any] = {
    "vision_depth": 3,
    "vision_intermediate": 192,
    "full_blocks": (1,),
    "text_layers": 3,
    "text_intermediate": 320,
}
"""Sizes that differ from `tiny_config`'s: small enough to train on one core."""

SEED = 20250411
SAMPLES = 50_000
IN_FORMAT = 0.3
"""Share of targets in the answer format."""
TURNS = ("iou", "mcq", "digit", "iou", "recall", "math", "iou", "mcq", "open_ended", "iou")
"""What is drawn in turn: boxes are learnt last; `recall` is what multiple choice lacks most."""


class Lesson(NamedTuple):
    """Attributes: a question, its image if it has one, and how it is thought over and answered."""

    question: str
    image: Image.Image | None
    reasoning: str
    answer: str


def draw_lesson(task: str, rng: np.random.Generator) -> Lesson:
    """Something to learn: a sample of a task, or choices to be recalled."""
    if task == "recall":
        return recalling(rng)
    sample = draw_sample(task, rng)
    return Lesson(sample.question, sample.image, sample.reasoning, sample.answer)


def recalling(rng: np.random.Generator) -> Lesson:
    """Choices without an image: the letter of each is told, last of the one that is asked for.

    The model has to find the letter that stands before a text; a question on an image asks that of
    it once, and of most of its tokens other things.
    """
    if rng.random() < 0.6:
        texts, subject = pick_several(rng, tuple(COLORS), 4), "The {} bar is {}."
    else:
        texts, subject = [f"{a}°" for a in pick_several(rng, ANGLES, 4)], "The angle is {1}."
    extreme = pick(rng, ("tallest", "shortest"))
    letters = dict(zip(texts, LETTERS, strict=True))
    told = pick_several(rng, texts, 4)
    said = [f"{subject.format(extreme, text)} Choice {letters[text]} is {text}." for text in told]
    question = with_choices(f"Which choice is {told[-1]}?", texts)
    return Lesson(question, None, " ".join(said), letters[told[-1]])


def target_text(lesson: Lesson, rng: np.random.Generator, share: float) -> str:
    """A completion to imitate; with probability 1 - `share` it breaks the format."""
    thought, answer = lesson.reasoning, lesson.answer
    if rng.random() < share:
        return in_format(thought, answer)
    breaks = (
        f"{thought} {answer}",
        f"<think> {thought} </think> {answer}",
        f"{thought} The answer is {answer}",
        f"<think> {thought} <answer> {answer}",
    )
    return breaks[rng.integers(len(breaks))]


def write_records(folder: Path, count: int) -> Path:
    """Draws records with answers to imitate, and their images; nothing where they are there.

    Returns:
        The file of records; images lie below `folder`.
    """
    path = folder / "records.jsonl"
    if not path.exists() or path.read_bytes().count(b"\n") != count:
        disk.write_text(path, "".join(_lines(folder, count)))
    return path


def _lines(folder: Path, count: int) -> Iterator[str]:
    for index in range(count):
        rng = np.random.default_rng([SEED, index])
        lesson = draw_lesson(TURNS[index % len(TURNS)], rng)
        line = {"id": str(index), "question": lesson.question}
        if lesson.image is not None:
            line["image"] = f"images/{index // 1000:03d}/{index:06d}.png"
            path = folder / line["image"]
            path.parent.mkdir(parents=True, exist_ok=True)
            lesson.image.save(path, compress_level=1)
        line["answer"] = target_text(lesson, rng, IN_FORMAT)
        yield json.dumps(line, ensure_ascii=False) + "\n"


def scaled_init(config: QwenVLConfig, seed: int) -> dict[str, Any]:
    """Parameters of a size that a narrow and shallow model learns from.

    Kernels have standard deviation 1/sqrt(fan-in), those that write to the residual stream less by
    1/sqrt(2 layers), and embeddings 0.1: with 0.02 throughout, what a token is would be lost among
    what the first layer adds to it, and even words of the question are copied late.
    """

    def scale(path: tuple, value: Any) -> Any:
        *_, module, name = (part.key for part in path)
        if name == "embedding":
            return value * 5
        if name != "kernel":
            return value
        value = value * (value.shape[-2] ** -0.5 / 0.02)
        writes = module in ("o_proj", "down_proj", "proj")
        return value / (2 * value.shape[0]) ** 0.5 if writes else value

    return jax.tree_util.tree_map_with_path(scale, init_params(config, seed))


def write_start(directory: Path) -> None:
    """An HF directory with random weights in float32; nothing where it is there."""
    if (directory / "config.json").exists():
        return
    hf_config = tiny_config(write_sidecars(directory, system_prompt=SYSTEM_PROMPT), **SIZES)
    config = parse_config(hf_config)
    params = scaled_init(config, SEED)
    tensors = {}
    for key in key_table(config):
        leaf = np.asarray(reduce(lambda node, name: node[name], key.path, params))
        layers = [leaf] if key.layers is None else list(leaf)
        for name, layer in zip(key.hf_names(), layers, strict=True):
            theirs = key.transform.to_theirs(layer.astype(jnp.float32), key.hf_shape)
            tensors[name] = np.ascontiguousarray(theirs)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    hf_config["torch_dtype"] = "bfloat16"  # of what comes of it
    disk.write_text(directory / "config.json", json.dumps(hf_config, indent=2) + "\n")


def main() -> int:
    """Draws the records, trains on them, and writes the HF directory."""
    parser = argparse.ArgumentParser(description="Make the embedded checkpoint.")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="for records and the run")
    parser.add_argument("--start", type=Path, help="weights to go on from; default: random ones")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    options, more = parser.parse_known_args()
    drawn, run = (options.work / name for name in ("drawn", "run"))
    start = options.start or options.work / "start"
    if options.start is None:
        write_start(start)
    records = write_records(drawn, options.samples)
    command = [sys.executable, "-m", "vlaa_jax.main", "--config=configs/sft.py:base"]
    command += [f"--workdir={run}", f"--config.model.checkpoint={start}"]
    command += [f"--config.data.records={records}", f"--config.data.image_root={drawn}", *more]
    if status := subprocess.call(command):
        return status
    print(export(run, options.out_dir, dtype="bfloat16", overwrite=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
