"""The real command at the true widths of 3B: train, kill, resume, export, load in transformers.

    python benchmarks/true_widths.py --json benchmarks/results/true_widths_2cpu.json

`configs/grpo.py:3b,lora,rule-only` on a Hugging Face directory that transformers itself writes:
width 2,048, 16 heads, feed-forward 11,008, vocabulary 151,936, the vision tower's 1,280, in
bfloat16, two layers of each; random weights, the small tokenizer of the embedded checkpoint.
Pictures are JPEGs of ordinary sizes. The mesh is 2 x 4 fake CPU devices: parameters cut over
`fsdp`, heads and the vocabulary over `tensor`, twice as many parts as there are key heads. Lengths
and batches are short, everything else is as configured.

One run makes two steps undisturbed. Another is killed (SIGKILL) when its first checkpoint is there,
and started again: its metrics must be the same. It is exported, transformers must load the export
and give our logits for it (``python -m converters verify``), and something must have been learnt.
About 13 GiB of memory at most; reported.
"""

import argparse
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from converters.tiny_tokenizer import write_sidecars
from data_room.samples import photo
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.hf_config import to_hf
from vlaa_jax.models.qwen_vl.hf_keys import canonical
from vlaa_jax.models.qwen_vl.safetensors_io import SafetensorsReader

ROOT = Path(__file__).parents[1]
SIZES = ((640, 480), (480, 640), (1024, 768), (500, 333))
OPTIONS = {
    "data.max_pixels": 196 * 196,
    "data.vision_rows_per_bin": 8,
    "data.max_prompt_tokens": 512,
    "data.workers": 1,
    "rollout.prompts": 4,
    "rollout.completions": 2,
    "rollout.max_new_tokens": 8,
    "rollout.burst": 4,
    "rollout.batch_prompts": 2,
    "rollout.prefill_prompts": 2,
    "algo.updates_per_rollout": 2,
    "algo.micro_prompts": 2,
    # Random weights answer nothing right: without a bonus no loss would have a gradient.
    "algo.entropy_coef": 0.01,
    "optimizer.lr": 1e-3,
    "mesh.fsdp": 2,
    "mesh.tensor": 4,
    "rewards.math_workers": 1,
    "run.steps": 2,
    "run.save_every": 1,
}


def write_model(folder: Path, layers: int, vocabulary: int) -> None:
    """A checkpoint of 3B's widths, by transformers."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from configs.grpo import SYSTEM_PROMPT

    ids = write_sidecars(folder, max_pixels=1280 * 28 * 28, system_prompt=SYSTEM_PROMPT)
    three = QwenVLConfig.RELEASED["Qwen2.5-VL-3B"]
    text = dataclasses.replace(three.text, layers=layers, vocab_size=vocabulary)
    vision = dataclasses.replace(three.vision, depth=layers, full_blocks=(layers - 1,))
    config = dataclasses.replace(
        three,
        text=text,
        vision=vision,
        image_token_id=ids.image_pad,
        video_token_id=ids.video_pad,
        vision_start_token_id=ids.vision_start,
        vision_end_token_id=ids.vision_end,
        eos_token_id=ids.im_end,
        pad_token_id=ids.pad,
    )
    (folder / "config.json").write_text(json.dumps(to_hf(config), indent=1))
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(folder))
    model.save_pretrained(folder)


def write_data(folder: Path, count: int) -> Path:
    """Records with a picture each."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir(parents=True)
    records = folder / "records.jsonl"
    with records.open("w") as file:
        for i in range(count):
            name = f"photos/{i:04d}.jpg"
            photo(rng, SIZES[i % len(SIZES)]).save(folder / name, quality=90)
            question = f"How many things can be counted in picture {i}?"
            record = {"id": f"r{i}", "image": name, "question": question}
            record |= {"gt": int(rng.integers(1, 9)), "verifier_type": "digit"}
            file.write(json.dumps(record) + "\n")
    return records


def command(place: Path, workdir: Path) -> list[str]:
    """The run, as one would type it."""
    options = OPTIONS | {
        "model.checkpoint": place / "model",
        "data.records": place / "data" / "records.jsonl",
        "data.image_root": place / "data",
        "run.compilation_cache": place / "cache",
    }
    return [
        *(sys.executable, "-m", "vlaa_jax.main", "--config=configs/grpo.py:3b,lora,rule-only"),
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in options.items()),
    ]


def environment() -> dict[str, str]:
    """Eight fake devices."""
    flags = "--xla_force_host_platform_device_count=8"
    own = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own, "PYTHONPATH": str(ROOT)}


def run(name: str, words: list[str], found: dict[str, Any]) -> str:
    """A command to its end; its time and output are kept."""
    began = time.monotonic()
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True)
    found["phases"][name] = {"seconds": round(time.monotonic() - began, 1)}
    print(f"{name}: {found['phases'][name]['seconds']} s\n{done.stdout}", flush=True)
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout


def kill_after_first_checkpoint(words: list[str], workdir: Path) -> float:
    """Starts a run and kills it between its first and its second step; seconds it had."""
    began = time.monotonic()
    log = workdir.with_suffix(".log").open("w")
    process = subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=log, stderr=log)
    saved = workdir / "checkpoints" / "1"
    while not saved.is_dir():  # Orbax renames it when it is whole
        if process.poll() is not None or time.monotonic() - began > 1800:
            process.kill()
            raise SystemExit(f"no checkpoint came: {Path(log.name).read_text()[-4000:]}")
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return round(time.monotonic() - began, 1)


def metrics(workdir: Path) -> list[dict[str, float]]:
    """Metrics by step, without times."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    drop = ("time/", "compile/", "train/mfu")
    return [
        {k: v for k, v in line.items() if not k.startswith(drop) and not k.endswith("_per_s")}
        for line in lines
    ]


def learnt(before: Path, after: Path) -> dict[str, int]:
    """How many tensors of the export differ from the model that training began with."""
    old, new = SafetensorsReader(before), SafetensorsReader(after)
    theirs = {canonical(name): name for name in old.tensors}
    same = 0
    for name in new.tensors:
        pair = new.view(name), old.view(theirs[canonical(name)])
        same += np.array_equal(*(array.reshape(-1).view(np.uint8) for array in pair))
    return {"same": same, "changed": len(new.tensors) - same}


def measure(place: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Everything, in order."""
    found: dict[str, Any] = {"options": OPTIONS, "layers": args.layers, "phases": {}}
    found["vocabulary"] = args.vocabulary
    write_model(place / "model", args.layers, args.vocabulary)
    write_data(place / "data", 16)
    whole, cut = place / "whole", place / "cut"
    run("two steps", command(place, whole), found)
    found["killed_after_s"] = kill_after_first_checkpoint(command(place, cut), cut)
    if "resuming at step 1" not in run("resumed", command(place, cut), found):
        raise SystemExit("the killed run did not resume at step 1")
    found["metrics"] = metrics(whole)
    found["resumed_equal"] = metrics(cut) == found["metrics"]
    if len(found["metrics"]) != 2 or not found["resumed_equal"]:
        raise SystemExit(f"resumed otherwise: {metrics(cut)} instead of {found['metrics']}")
    convert = [sys.executable, "-m", "converters"]
    run("export", [*convert, "jax-to-hf", str(cut), str(place / "hf"), "--quiet"], found)
    found["verified"] = run("load in transformers", [*convert, "verify", str(place / "hf")], found)
    found["tensors"] = learnt(place / "model", place / "hf")
    if found["tensors"]["changed"] < 7 * args.layers:
        raise SystemExit(f"nothing was learnt: {found['tensors']}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {**found, "largest_process_gib": round(peak / 2**20, 2)}


def main() -> None:
    """Runs it all in a folder that is removed."""
    parser = argparse.ArgumentParser(description="The real command at 3B's true widths.")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--scratch", help="where the folder is made (5 GiB)")
    parser.add_argument("--json", help="write what was found to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.scratch, prefix="true-widths-") as place:
        found = measure(Path(place), args)
    print(json.dumps(found, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
