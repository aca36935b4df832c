"""Attention by its forms: compiled ahead of time for TPUs, temporaries by length, time on a CPU.

    python benchmarks/attention.py kernels              # splash for v4, v5e, v5p, v6e
    python benchmarks/attention.py lengths --json out   # temporaries of the 3B gradient program
    python benchmarks/attention.py plans --topology v5e:4x4 --forms dense splash
    python benchmarks/attention.py decode               # what a token reads, compiled for v5e
    python benchmarks/attention.py cpu                  # dense and blockwise, timed in turn

All but the last compile alone and need libtpu, not a TPU. Temporaries are the compiler's figure for
one device; where it refuses, its first line stands in their place.
"""

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vlaa_jax.models.qwen_vl.attend import Backend, attend
from vlaa_jax.models.qwen_vl.attention import CAUSAL, FULL, Pattern
from vlaa_jax.models.qwen_vl.axes import layout
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.parallel.mesh import BATCH_AXES, make_mesh
from vlaa_jax.plan import hlo
from vlaa_jax.plan.__main__ import model_config, read_settings
from vlaa_jax.plan.chips import chip_of
from vlaa_jax.plan.compiled import compile_program
from vlaa_jax.plan.known import Known
from vlaa_jax.plan.plan import compiled_plan, cut_of
from vlaa_jax.plan.programs import programs_of
from vlaa_jax.plan.topology import devices_of

GIB, MIB = 2**30, 2**20
THREE = QwenVLConfig.RELEASED["Qwen2.5-VL-3B"]
STREAMS = {
    "2,048 and 4 x 1,024": (Pattern(prompt=2048, groups=4), 2048 + 4 * 1024, 16, 2, 128),
    "packed rows of 4,096": (CAUSAL, 4096, 16, 2, 128),
    "images, 2,048 patches": (FULL, 2048, 16, 16, 80),
}
"""Pattern, positions, query and key heads, head size."""
TOPOLOGIES = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")


def gradient_of(backend: Backend, pattern: Pattern, where: Any, heads: str | None) -> Any:
    """Value and gradients of queries, keys and values."""

    def total(q: Any, k: Any, v: Any, segments: Any) -> Any:
        form = backend._replace(layout=where, heads=heads)
        out = attend(q, k, v, segments, pattern, form)
        return jnp.sum(out.astype(jnp.float32) ** 2)

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))


def kernels(_: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Forward and backward of the splash kernel in bfloat16, a stream a device."""
    for topology in TOPOLOGIES:
        devices = devices_of(topology)
        mesh = make_mesh(1, len(devices) // 2, 2, devices=devices)
        place = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
        for name, (pattern, length, heads, kv_heads, size) in STREAMS.items():
            lead = (mesh.shape["fsdp"], length)
            shapes = [(*lead, n, size) for n in (heads, kv_heads, kv_heads)]
            arrays = [jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=place) for s in shapes]
            arrays.append(jax.ShapeDtypeStruct(lead, jnp.int32, sharding=place))
            cut = None if pattern is FULL else "heads"
            run = gradient_of(Backend("splash"), pattern, layout(THREE, mesh), cut)
            began = time.monotonic()
            lowered = run.lower(*arrays)
            traced = time.monotonic() - began
            compiled = lowered.compile()
            yield {
                "topology": topology,
                "stream": name,
                "trace_s": round(traced, 1),
                "compile_s": round(time.monotonic() - began - traced, 1),
                "temp_mib": round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 1),
                "kernels": compiled.as_text().count('custom_call_target="tpu_custom_call"'),
            }


def settings_of(form: str, **changes: Any) -> Any:
    """The paper's recipe at 3B with that form of attention."""
    from configs.grpo import get_config

    config = get_config("3b")
    config.model.attention = form
    config.update_from_flattened_dict(changes)
    return read_settings(config.to_dict())


def lengths(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The gradient program, one prompt of that length with four answers of a quarter of it."""
    devices = devices_of(arguments.topology)
    mesh = make_mesh(1, len(devices), 1, devices=devices)
    for form in arguments.forms:
        for length in arguments.lengths:
            own = {
                "data.max_prompt_tokens": length,
                "data.vision_rows_per_bin": length // 64,
                "rollout.max_new_tokens": length // 4,
                "rollout.burst": min(length // 4, 64),
                "mesh.fsdp": len(devices),
                "algo.micro_prompts": len(devices),
                "rollout.prefill_prompts": len(devices),
            }
            settings = settings_of(form, **own)
            config = model_config(settings.model.checkpoint)
            programs = {p.name: p for p in programs_of(settings, config, mesh)}
            for name in arguments.programs:
                found = compile_program(programs[name], Known(arguments.topology))
                yield {
                    "form": form,
                    "program": name,
                    "length": length,
                    "temp_gib": round(found.temporaries / GIB, 3),
                    "peak_gib": round(found.peak / GIB, 3),
                    "compile_s": round(found.seconds, 1),
                    **({"error": found.error} if found.error else {}),
                }


def plans(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Programs of the paper's step at 3B by form: compiled memory, and the planner's time."""
    devices, chip = devices_of(arguments.topology), chip_of(arguments.topology)
    micro = 4 if chip.platform == "gpu" else max(16, len(devices))
    for form in arguments.forms:
        own = {"mesh.fsdp": len(devices), "algo.micro_prompts": micro}
        settings = settings_of(form, **own)
        config, cut = model_config(settings.model.checkpoint), cut_of(settings, len(devices))
        mesh = make_mesh(*cut, devices=devices)
        programs = {p.name: p for p in programs_of(settings, config, mesh)}
        known = Known(f"{arguments.topology} {cut}")
        found = [compile_program(programs[name], known) for name in arguments.programs]
        for row in compiled_plan(settings, config, chip, cut, found).rows:
            yield {
                "topology": arguments.topology,
                "form": form,
                "micro": micro,
                "program": row.name,
                "gib": round(row.bytes / GIB, 2),
                "hbm_gib_a_run": round(row.work.hbm / GIB, 1),
                "tflop_a_run": round(row.work.flops / 1e12, 1),
                "s_a_run": [round(s, 3) for s in row.time],
                "s_a_step": round(row.runs * row.time.total, 1),
                **({"error": row.error} if row.error else {}),
            }


CACHE = re.compile(r"%(\S+) = (\w+)\[([\d,]+)\]\S* ([\w-]+)\(")

IN_PLACE = ("parameter", "get-tuple-element", "tuple", "bitcast", "while", "optimization-barrier")


def decode(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Arrays that decoding one token makes of the size of a layer's cache, beside the caches."""
    devices = devices_of(arguments.topology)
    mesh = make_mesh(1, len(devices), 1, devices=devices)
    slots = arguments.slots * len(devices)
    settings = settings_of(
        "auto",
        **{
            "mesh.fsdp": len(devices),
            "rollout.batch_prompts": slots,
            "rollout.prefill_prompts": len(devices),
            "algo.micro_prompts": len(devices),
        },
    )
    config = model_config(settings.model.checkpoint)
    text, rollout = config.text, settings.rollout
    program: Any = {p.name: p for p in programs_of(settings, config, mesh)}["burst"]
    found = program.jitted.lower(*program.args).compile()
    own = 2 * text.kv_heads * text.head_dim * 2 * arguments.slots  # a position of a layer
    prefix = own * settings.data.max_prompt_tokens
    suffix = own * rollout.completions * rollout.max_new_tokens
    burst = own * rollout.completions * rollout.burst
    yield {"floor_mib": (prefix + suffix + burst) / MIB, "prefix_mib": prefix / MIB}
    computations, entry = hlo.computations_of(found.as_text())
    loops = hlo._loops_around(computations, entry)
    for name, lines in computations.items():
        if name not in loops or "fused" in name:
            continue
        depth = "layer" if text.layers in loops[name] else "token" if loops[name] else "burst"
        for line in lines:
            match = CACHE.search(line)
            if match is None or match[4] in IN_PLACE:
                continue
            size = hlo._bytes(match[2], match[3])
            if size >= burst / 2 and not match[3].endswith(f",{text.vocab_size}"):
                source = re.search(r'op_name="([^"]*)"', line)
                yield {
                    "made": f"{match[2]}[{match[3]}]",
                    "by": match[4],
                    "mib": round(size / MIB, 1),
                    "once a": depth,
                    "from": source[1][-70:] if source else "",
                }


def cpu(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Dense and blockwise in turn, medians; a small model's heads in float32."""
    rng = np.random.default_rng(0)
    for length in arguments.lengths:
        pattern = Pattern(prompt=length // 2, groups=8)
        shapes = ((1, length, n, 64) for n in (6, 2, 2))
        arrays = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]
        arrays.append(jnp.ones((1, length), jnp.int32))
        forms = {name: Backend(name) for name in ("dense", "blockwise")}
        runs = {n: gradient_of(b, pattern, None, None).lower(*arrays) for n, b in forms.items()}
        runs = {name: lowered.compile() for name, lowered in runs.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(arguments.rounds + 1):
            for name, run in runs.items():
                began = time.perf_counter()
                jax.block_until_ready(run(*arrays))
                seconds[name].append(time.perf_counter() - began)
        for name, run in runs.items():
            yield {
                "form": name,
                "length": length,
                "ms": round(1e3 * statistics.median(seconds[name][1:]), 1),
                "temp_mib": round(run.memory_analysis().temp_size_in_bytes / 2**20, 1),
            }


COMMANDS = {"kernels": kernels, "lengths": lengths, "plans": plans, "decode": decode, "cpu": cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--forms", nargs="+", default=["dense", "blockwise", "splash"])
    parser.add_argument("--programs", nargs="+", default=["gradients"])
    parser.add_argument("--topology", default="v5p:2x2x1")
    parser.add_argument("--slots", type=int, default=4, help="prompts a device decodes at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args()
    found = []
    for figures in COMMANDS[arguments.command](arguments):
        print(figures, flush=True)
        found.append(figures)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
