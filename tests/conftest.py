"""Test-wide settings: CPU, eight fake devices, quiet libraries. Must run before jax is imported.

Programs are compiled with few optimisations: tests compile much and compute little.
"""

import os
import signal

import pytest

from full_disks import mounted
from vlaa_jax.parallel.start import widen_cpu_pool

# A shell switches Ctrl-C off for what it starts in the background, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAGS = ("--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0")
for _flag in _FLAGS:
    if _flag.partition("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _start_devices():
    """Gives this process its eight devices; what it starts has others, and its own threads."""
    given = "NPROC" in os.environ
    widen_cpu_pool()
    import jax

    jax.devices()
    if not given:
        del os.environ["NPROC"]


_start_devices()


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=3, help="kills of the kill-and-resume test")


HEAVY = (
    "tests/parallel/test_several_hosts.py",
    "tests/test_main.py",
    "tests/models/test_parity.py",
    "tests/models/test_layout.py",
    "tests/test_main_sft.py",
    "tests/plan/test_compiled.py",
    "tests/data/records/test_records.py",
    "tests/report/test_browser.py",
    "tests/train/test_sft_loss.py",
    "tests/data/commands/test_cli.py",
)
"""The longest files, which begin first, so that no worker is left alone with one at the end."""


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(HEAVY)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(HEAVY)))


@pytest.fixture
def small_disk(tmp_path):
    """A directory on a disk of 256 KiB."""
    with mounted(tmp_path / "disk", 256) as place:
        yield place
