"""Model, GRPO step and SFT step at 3B shapes on the device at hand, into one JSON file.

    bash benchmarks/gpu.sh results.json            # 9 minutes at most
    bash benchmarks/gpu.sh results.json --tiny     # the same code at a size for a CPU
    bash benchmarks/gpu.sh results.json --option model.unroll=0

Weights are random; a step's shapes are those of the paper's recipe (prompts of 2,048 positions with
an image each, four completions of 1,024 tokens that never end early), but fewer prompts. The
programs are the run's own, put together by vlaa_jax/plan/programs.py. First of all, the model at
true widths and few layers must give the same log-probabilities and gradients in float32 on this
device as on the host's CPU, and its sampler those of its trainer; what bfloat16 makes of them is
reported. A second step is timed, with everything compiled. The file is written after every part, so
an interrupted run keeps what it has.

    grpo/bandwidth_share       bytes that decoding must read (weights, and caches as far as they are
                               written) over those that the memory could have given in its time
    grpo/update_mfu, sft/mfu   products that must be done over those of the peak; what is computed
                               again and padding are no work
    grpo/responses_per_s       of a whole step: weights, rollout, scoring twice, updates
"""

import argparse
import datetime
import json
import subprocess
import time
from pathlib import Path

import jax

from gpu_room.correct import compare
from gpu_room.grpo import grpo
from gpu_room.scale import Figures, scale
from gpu_room.sft import sft


def about() -> Figures:
    """Date, commit, card, versions."""

    def said(*words: str) -> str:
        try:
            return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": said("git", "rev-parse", "--short", "HEAD"),
        "dirty": bool(said("git", "status", "--porcelain", "--untracked-files=no")),
        "card": device.device_kind,
        "driver": said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "jax": jax.__version__,
    }


def main() -> None:
    """Correctness, GRPO step, SFT step; a part that fails is named and the others go on."""
    parser = argparse.ArgumentParser(description="Measure this device at 3B shapes.")
    parser.add_argument("json", type=Path, help="write the figures there")
    parser.add_argument("--tiny", action="store_true", help="a size for two CPU cores")
    parser.add_argument(
        "--option", action="append", default=[], help="of the configs, as model.unroll=0"
    )
    args = parser.parse_args()
    size, began = scale(args.tiny, args.option), time.monotonic()
    found: Figures = {"about": about(), "tiny": args.tiny, "options": args.option}

    def keep(name: str, figures: Figures) -> None:
        found[name] = figures
        found["seconds"] = round(time.monotonic() - began, 1)
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"[{found['seconds']} s] {name}: {json.dumps(figures)}", flush=True)

    keep("correctness", compare(size))
    failed = False
    for name, run in (("grpo", grpo), ("sft", sft)):
        try:
            for figures in run(size):
                keep(name, figures)
        except Exception as error:  # out of memory, a compiler's refusal: the other part may work
            failed = True
            words = str(error).splitlines() or [repr(error)]
            keep(name, {**found.get(name, {}), "error": words[0][:500]})
        jax.clear_caches()
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
