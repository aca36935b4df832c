"""Times compilation of the 3B forward on shapes alone, at several depths: no weight is ever made.

    python benchmarks/compile_time.py --json compile.json

``jit(forward).lower(shapes).compile()`` in bfloat16, for one row of 1024 tokens and one image of
1024 patches, the decoder cut to the given depths. Layers are scanned, so the time must not grow
with depth; ``--unroll`` shows what it would be otherwise.
"""

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from flax import nnx

from vlaa_jax.data.images.planner import plan_vision
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.layers import matmul
from vlaa_jax.models.qwen_vl.model import Compute, RowInputs, split_model
from vlaa_jax.models.qwen_vl.vision import VisionInputs

TOKENS, GRID = 1024, (1, 32, 32)


def abstract_rows() -> RowInputs:
    """Shapes of one row with one image."""
    plan = plan_vision([[GRID]], window_units=4)
    bins, rows = plan.src_SR64.shape[:2]

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    patches = jax.ShapeDtypeStruct((bins, rows, 64, 1176), jnp.float32)
    vision = VisionInputs(
        patches, ints(bins, rows, 64, 2), ints(bins, rows, 64), ints(bins, rows * 64)
    )
    row = ints(1, TOKENS)
    return RowInputs(row, ints(1, TOKENS, 3), row, row, vision)


def compile_once(config: QwenVLConfig, unroll: int) -> dict[str, float]:
    """Seconds to trace and lower, and to compile; CPU seconds of both."""
    graphdef, abstract = split_model(config, Compute(dtype="bfloat16", unroll=unroll or True))
    params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), abstract)

    def forward(params: Any, rows: RowInputs) -> jax.Array:
        model = nnx.merge(graphdef, params)
        hidden = model.hidden_rows(rows)
        return matmul(hidden.reshape(-1, hidden.shape[-1]), model.head_kernel_DV)

    start, cpu = time.perf_counter(), time.process_time()
    lowered = jax.jit(forward).lower(params, abstract_rows())
    middle = time.perf_counter()
    compiled = lowered.compile()
    end, cpu = time.perf_counter(), time.process_time() - cpu
    memory = compiled.memory_analysis()
    return {
        "layers": config.text.layers,
        "lower_s": middle - start,
        "compile_s": end - middle,
        "cpu_s": cpu,
        "argument_gib": memory.argument_size_in_bytes / 2**30,
        "temp_gib": memory.temp_size_in_bytes / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="Qwen2.5-VL-3B", choices=QwenVLConfig.RELEASED)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 12, 36])
    parser.add_argument("--unroll", type=int, default=1, help="layers per scan step; 0: all")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args()
    config = QwenVLConfig.RELEASED[arguments.model]
    # The first compilation of a process also loads the compiler.
    small = dataclasses.replace(config, text=dataclasses.replace(config.text, layers=2))
    compile_once(small, arguments.unroll)
    results = []
    for depth in arguments.depths:
        text = dataclasses.replace(config.text, layers=depth)
        results.append(compile_once(dataclasses.replace(config, text=text), arguments.unroll))
        print({k: round(v, 2) for k, v in results[-1].items()}, flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
