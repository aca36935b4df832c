"""The converters' memory does not grow with the model: real commands, the kernel's own figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from vlaa_jax.models.qwen_vl.config import QwenVLConfig, TextConfig, VisionConfig
from vlaa_jax.models.qwen_vl.hf_config import to_hf
from vlaa_jax.models.qwen_vl.hf_keys import hf_shapes
from vlaa_jax.models.qwen_vl.safetensors_io import SafetensorsReader, SafetensorsWriter

ROOT = Path(__file__).parents[2]
BF16 = np.dtype(ml_dtypes.bfloat16)
FEW, MANY = 8, 80
"""Decoder layers of the two models: 3.3 MiB each, so 27 MiB against 263, and a stacked leaf
8 MiB against 80. Their tensors are equally large: 1 MiB."""
SLACK_MIB = 60
"""A piece in each of eight threads, twice, and what an allocator keeps; a leaf is more."""
# A process starts with the peak RSS of the one that made it, so a small one stands in between.
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=sys.stderr)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def write_hf(directory, layers):
    """An HF directory whose decoder has so many layers; gives the bytes of its largest tensor."""
    config = QwenVLConfig(
        "qwen2_5_vl",
        TextConfig(512, 256, 2048, layers, 4, 1, 64, mrope_section=(8, 12, 12)),
        VisionConfig(2, 16, 2, 20, 256, full_blocks=(1,)),
        tie_word_embeddings=True,
    )
    specs = {name: (BF16, shape) for name, shape in hf_shapes(config).items()}
    pool = np.random.default_rng(0).integers(1, 1 << 15, 1 << 20, np.uint16).view(BF16)
    with SafetensorsWriter(directory, specs, max_shard_bytes=100 << 20) as writer:
        for name, (_, shape) in specs.items():
            writer.write(name, pool[: int(np.prod(shape))].reshape(shape))
    (directory / "config.json").write_text(json.dumps(to_hf(config)))
    return max(info.nbytes for info in SafetensorsReader(directory).tensors.values())


def peak_mib(*arguments):
    """Peak RSS of one command of the converters, in MiB."""
    command = [sys.executable, "-m", "converters", *map(str, arguments), "--quiet"]
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, *command],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert measured.returncode == 0, measured.stderr
    return int(measured.stdout) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="peak RSS is in other units elsewhere")
def test_ten_times_the_model_takes_no_more_memory(tmp_path):
    peaks = {}
    for layers in (FEW, MANY):
        place = tmp_path / str(layers)
        largest_mib = write_hf(place / "hf", layers) / 2**20
        peaks[layers] = (
            peak_mib("hf-to-jax", place / "hf", place / "jax"),
            peak_mib("jax-to-hf", place / "jax", place / "back"),
        )
    for few, many in zip(peaks[FEW], peaks[MANY], strict=True):
        assert many <= few + 2 * largest_mib + SLACK_MIB, peaks
