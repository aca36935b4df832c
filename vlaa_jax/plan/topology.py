"""Devices that are not attached: TPU topologies through libtpu, GPUs through jax's CUDA plugin."""

import math
import os
import re
from typing import Any

from vlaa_jax.plan.chips import chip_of
from vlaa_jax.schema import UserError

GPU_TARGETS = {
    "h100": ("NVIDIA H100", 132, 3_350_000_000_000, 85_520_809_984),
    "h200": ("NVIDIA H200", 132, 4_800_000_000_000, 150_754_820_096),
}
"""Description, multiprocessors, bytes/s and bytes of memory."""


def device_count(topology: str) -> int:
    """Devices of a topology: the product of its sides.

    Raises:
        UserError: that is no topology.
    """
    chip_of(topology)
    if not re.fullmatch(r"\w+:\d+(x\d+)*", topology):
        raise UserError(f"--topology: {topology!r} is not like v5e:4x4 or h200:8")
    return math.prod(int(side) for side in topology.partition(":")[2].split("x"))


def devices_of(topology: str) -> list[Any]:
    """Devices to compile for; nothing can run on them.

    Raises:
        UserError: the compiler for them is not installed, or knows no such topology.
    """
    count, kind = device_count(topology), topology.partition(":")[0]
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    options: dict[str, Any] = {"platform": "tpu", "topology_name": topology}
    if kind in GPU_TARGETS:
        options = {
            "platform": "cuda",
            "topology_name": kind,
            "topology": f"1x1x{count}",
            "target_config": _target(kind),
        }
    elif kind == "v4":
        options["chip_config_name"] = "megacore"
    try:
        found = list(topologies.get_topology_desc(**options).devices)
    except Exception as error:  # whatever the plugin throws
        extra = "jax-cuda12-plugin and jax-cuda12-pjrt" if kind in GPU_TARGETS else "libtpu"
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"--topology={topology}: cannot be compiled for ({reason}); is {extra} installed? "
            "--quick plans by formulas alone"
        ) from error
    if len(found) != count:
        raise UserError(f"--topology={topology}: {len(found)} devices found, {count} named")
    return found


def _target(kind: str) -> str:
    """A GpuTargetConfig in text form; limits of compute capability 9.0 (CUDA guide, table 28)."""
    name, cores, bandwidth, memory = GPU_TARGETS[kind]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
  core_count: {cores} fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: {memory} cuda_compute_capability {{ major: 9 minor: 0 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{name}"
"""
