"""Times conversion there and back of a generated checkpoint, beside a plain copy of its files.

    python benchmarks/convert.py --model Qwen2.5-VL-3B --json convert.json

Makes a checkpoint of random bits with the true shapes, then in each round: copies it, converts it,
converts it back (each ends with its files synced to the disk), and compares every tensor's hash.
Everything is deleted at the end. Rates are of source bytes over the wall time of the whole
command, start of Python included; the share is that rate over the copy's rate of the same round.
Peak RSS is what the kernel reports of the command's process. Needs three times the checkpoint's
size on the disk.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.hf_config import to_hf
from vlaa_jax.models.qwen_vl.hf_keys import hf_shapes
from vlaa_jax.models.qwen_vl.safetensors_io import SafetensorsReader, SafetensorsWriter

ROOT = Path(__file__).resolve().parents[1]
BF16 = np.dtype(ml_dtypes.bfloat16)
POOL = np.random.default_rng(0).integers(0, 1 << 16, (1 << 25) + 4099, np.uint16)


def generate(directory: Path, config: QwenVLConfig) -> int:
    """Writes a checkpoint whose tensors differ from each other; gives its bytes."""
    specs = {name: (BF16, shape) for name, shape in hf_shapes(config).items()}
    with SafetensorsWriter(directory, specs) as writer:
        for number, (name, (_, shape)) in enumerate(specs.items()):
            row = int(np.prod(shape[1:], dtype=np.int64))
            rows_at_once = max(1, (1 << 25) // row)
            for first in range(0, shape[0], rows_at_once):
                rows = min(rows_at_once, shape[0] - first)
                start = (number * 131 + first) % 4099
                piece = POOL[start : start + rows * row].reshape(rows, *shape[1:])
                writer.write(name, piece.view(BF16), first_row=first)
    (directory / "config.json").write_text(json.dumps(to_hf(config)))
    return sum(info.nbytes for info in SafetensorsReader(directory).tensors.values())


def plain_copy(source: Path, target: Path) -> float:
    """Seconds to copy the files with the kernel's copy and sync them."""
    start = time.perf_counter()
    target.mkdir()
    for file in source.iterdir():
        shutil.copyfile(file, target / file.name)
        with (target / file.name).open("rb") as stream:
            os.fsync(stream.fileno())
    return time.perf_counter() - start


# A process starts with the peak RSS of the one that made it, so a small one stands in between.
MEASURE = """
import resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(time.perf_counter() - start, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime)
"""


def command(*arguments: str) -> tuple[float, float, float]:
    """Runs a converter command; gives its seconds, its peak RSS in MiB and its CPU seconds."""
    run = [sys.executable, "-m", "converters", *arguments, "--quiet"]
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, *run],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, peak_mib, cpu_s = (float(word) for word in measured.stdout.split())
    return seconds, peak_mib, cpu_s


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every tensor's bytes."""
    reader = SafetensorsReader(directory)
    return {
        name: hashlib.sha256(reader.view(name).reshape(-1).view(np.uint8).data).hexdigest()
        for name in reader.tensors
    }


def one_round(place: Path, source: Path, expected: dict[str, str]) -> dict[str, float]:
    """One copy, one conversion, one way back."""
    copy_s = plain_copy(source, place / "copy")
    shutil.rmtree(place / "copy")
    load_before = os.getloadavg()[0]
    to_jax_s, to_jax_mib, to_jax_cpu = command("hf-to-jax", str(source), str(place / "jax"))
    to_hf_s, to_hf_mib, to_hf_cpu = command("jax-to-hf", str(place / "jax"), str(place / "back"))
    if digests(place / "back") != expected:
        raise SystemExit("the tensors changed on the way there and back")
    for name in ("jax", "back"):
        shutil.rmtree(place / name)
    return {
        "load_before": load_before,
        "copy_s": copy_s,
        "hf_to_jax_s": to_jax_s,
        "jax_to_hf_s": to_hf_s,
        "hf_to_jax_cpu_s": to_jax_cpu,
        "jax_to_hf_cpu_s": to_hf_cpu,
        "hf_to_jax_peak_rss_mib": to_jax_mib,
        "jax_to_hf_peak_rss_mib": to_hf_mib,
    }


def summarise(rounds: list[dict[str, float]], size: int, largest: int) -> dict[str, object]:
    """Medians of times and of shares paired within a round, worst of memory."""
    result: dict[str, object] = {
        "bytes": size,
        "largest_tensor_bytes": largest,
        "memory_limit_mib": 2 * largest / 2**20 + 1024,
    }
    for name in ("copy", "hf_to_jax", "jax_to_hf"):
        seconds = [r[f"{name}_s"] for r in rounds]
        figures: dict[str, float] = {
            "median_s": statistics.median(seconds),
            "best_s": min(seconds),
            "median_mb_per_s": statistics.median(size / 1e6 / s for s in seconds),
            "median_share_of_copy": statistics.median(r["copy_s"] / r[f"{name}_s"] for r in rounds),
        }
        if name != "copy":
            figures["peak_rss_mib"] = max(r[f"{name}_peak_rss_mib"] for r in rounds)
        result[name] = figures
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="Qwen2.5-VL-3B", choices=QwenVLConfig.RELEASED)
    parser.add_argument("--layers", type=int, help="cut the decoder to so many layers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", help="where to work; default: the system's temporary place")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args()
    config = QwenVLConfig.RELEASED[arguments.model]
    if arguments.layers:
        config = dataclasses.replace(
            config, text=dataclasses.replace(config.text, layers=arguments.layers)
        )
    with tempfile.TemporaryDirectory(dir=arguments.scratch, prefix="convert-bench-") as name:
        place = Path(name)
        size = generate(place / "hf", config)
        expected = digests(place / "hf")
        rounds = []
        for number in range(arguments.rounds):
            rounds.append(one_round(place, place / "hf", expected))
            print(f"round {number + 1}: {rounds[-1]}", flush=True)
    largest = max(2 * int(np.prod(shape)) for shape in hf_shapes(config).values())
    result = {
        "model": arguments.model,
        "layers": config.text.layers,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "tensors": len(expected),
        "rounds": rounds,
        **summarise(rounds, size, largest),
    }
    print(json.dumps({k: v for k, v in result.items() if k != "rounds"}, indent=1))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
