"""Threads of the CPU pool, which virtual devices would otherwise run out of."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlaa_jax.parallel.start import THREADS_PER_DEVICE, widen_cpu_pool

FOUR = "--xla_force_host_platform_device_count=4"


@pytest.mark.parametrize(
    ("environ", "threads"),
    [
        ({"XLA_FLAGS": f"--xla_backend_optimization_level=0 {FOUR}"}, str(4 * THREADS_PER_DEVICE)),
        ({"JAX_NUM_CPU_DEVICES": "2"}, str(2 * THREADS_PER_DEVICE)),
        ({"XLA_FLAGS": FOUR, "NPROC": "5"}, "5"),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, None),
        ({}, None),
    ],
)
def test_several_virtual_devices_have_threads_of_their_own(environ, threads):
    widen_cpu_pool(environ)
    assert environ.get("NPROC") == threads


def test_xla_takes_the_number_from_there():
    code = (
        "from vlaa_jax.parallel.start import widen_cpu_pool; widen_cpu_pool()\n"
        "import jax, pathlib; jax.devices()\n"
        "names = [p.read_text() for p in pathlib.Path('/proc/self/task').glob('*/comm')]\n"
        "print(sum('Eigen' in name for name in names))"
    )
    environ = {name: value for name, value in os.environ.items() if name != "NPROC"}
    environ |= {"XLA_FLAGS": FOUR, "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[2]
    args = (sys.executable, "-c", code)
    done = subprocess.run(args, cwd=root, env=environ, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == str(4 * THREADS_PER_DEVICE), done.stderr
