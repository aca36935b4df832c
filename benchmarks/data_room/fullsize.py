"""``check`` and ``build`` on files of the released size and form, with tiny images."""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from data_room.samples import HUB_PIXELS, answer, checkpoint, text
from vlaa_jax.data.judging.check import PUBLISHED

BYTES_PER_RECORD = {"sft": int(623e6 / 126_413), "grpo": int(128e6 / 25_195)}
VERIFIERS = {
    "clevr_math": "digit", "synthesis": "math", "coco": "iou", "vg": "iou", "geoqa170k": "mcq",
    "arxivqa": "mcq",
}  # fmt: skip
GOLDS = {"digit": 3, "iou": "[0.1, 0.2, 0.5, 0.6]", "mcq": "B", "open_ended": "a text"}


def fullsize(args: argparse.Namespace, root: Path) -> dict:
    root = Path(args.folder) if args.folder else root
    hf_dir = checkpoint(root / "hf", HUB_PIXELS)
    result: dict = {}
    for kind in args.kinds.split(","):
        path = root / f"{kind}.json"
        if not path.exists():
            emulate(root, kind, PUBLISHED[kind], args.share)
        print(f"{kind}: {path.stat().st_size / 1e6:,.0f} MB", flush=True)
        workers = ["--workers", str(args.workers)]
        common = [str(path), "--images", str(root / "images"), "--quiet", *workers]
        out = root / f"b-{kind}"
        verbs = {
            "check": ["check", *common],
            "build": ["build", *common, "--out", str(out), "--checkpoint", str(hf_dir)],
        }
        for verb in filter(None, args.verbs.split(",")):
            used = result[f"{kind}_{verb}"] = run_command(verbs[verb])
            print(
                f"{kind} {verb}: {used['seconds']:.0f} s wall, {used['cpu_seconds']:.0f} s CPU, "
                f"peak RSS {used['peak_mib']:.0f} MiB, status {used['status']}",
                flush=True,
            )
        shutil.rmtree(out, ignore_errors=True)
    return result


def run_command(argv: list[str]) -> dict:
    """Time, memory and exit status of ``python -m vlaa_jax.data`` with these arguments."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "vlaa_jax.data", *argv]
    pid = os.spawnv(os.P_NOWAIT, sys.executable, command)
    _, status, usage = os.wait4(pid, 0)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
        "status": status >> 8,
    }


def emulate(root: Path, kind: str, counts: dict[str, int], share: float) -> Path:
    """A file of the released size and form, JSON lines or one array, with its images."""
    path, partial = root / f"{kind}.json", root / f"{kind}.partial"
    is_array = kind == "grpo"
    comma = ""
    with partial.open("w") as file:
        file.write("[\n" if is_array else "")
        for record in emulated_records(root, kind, counts, share):
            file.write(comma + json.dumps(record) + "\n")
            comma = "," if is_array else ""
        file.write("]\n" if is_array else "")
    return partial.rename(path)


def emulated_records(root: Path, kind: str, counts: dict[str, int], share: float) -> Iterator[dict]:
    """Records as long as the released ones; the tiny image of each is written first."""
    rng = np.random.default_rng(0)
    filler = "x" * BYTES_PER_RECORD[kind]
    for source, count in counts.items():
        for i in range(int(count * share)):
            name = f"{source}/{kind}/{i // 256:04d}/{i:06d}.png"  # 256 images in a folder
            write_image(root / "images" / name, i)
            record = {
                "id": f"{source}-{i}",
                "image": name,
                "question": text(rng, 10, 40),
                "caption": text(rng, 40, 120),
            }
            if kind == "sft":
                record["answer"] = answer(rng)
            else:
                add_gold(record, source, i)
            size = len(json.dumps(record)) + 40
            yield {**record, "meta": {"ds_answer": filler[size:]}}


def write_image(target: Path, i: int) -> None:
    if i % 256 == 0:
        target.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (28 + i % 3 * 28, 28), (i % 256, i // 256, 0)).save(target, "PNG")


def add_gold(record: dict, source: str, i: int) -> None:
    """The verifier of a source and a gold that it can read."""
    verifier = record["verifier_type"] = VERIFIERS.get(source, "open_ended")
    formula = f"$y = \\frac{{{i % 97 + 2}}}{{{i % 89 + 1}}}x - {i}$"
    record["gt"] = formula if verifier == "math" else GOLDS[verifier]
    if verifier == "mcq":
        record["question"] += "\nChoices:\nA: one\nB: two\nC: three\nD: four"
