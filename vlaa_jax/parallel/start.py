"""Starts ``jax.distributed`` where a run has several processes, and finds out whether it has."""

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from vlaa_jax.parallel import hosts
from vlaa_jax.schema import UserError

NAMES = ("coordinator_address", "num_processes", "process_id")
START_S = 300
"""Seconds that a host waits for the others when a run starts."""
THREADS_PER_DEVICE = 8
"""Threads of XLA's CPU pool for each virtual device: more than the collectives it runs at once."""


@dataclass(frozen=True)
class Where:
    """How this process finds the others; empty fields are found out by jax.

    Attributes:
        mode: "auto" joins the other processes where there are some, "one" never looks.
        coordinator: ``ADDRESS:PORT`` of host 0.
        count: processes of the run; 0: to be found out.
        index: of this process; -1: to be found out.
        silence_s: seconds after which a host that is not heard counts as lost.
        wait_s: longest wait for a host that is alive.
    """

    mode: str = "auto"
    coordinator: str = ""
    count: int = 0
    index: int = -1
    silence_s: float = 30.0
    wait_s: float = 3600.0

    def __post_init__(self) -> None:
        given = (bool(self.coordinator), self.count > 0, self.index >= 0)
        if any(given) and not all(given):
            raise UserError(
                "--coordinator, --process_count and --process_id go together: give all three, or "
                "none where the cluster says them (Cloud TPU, GKE, SLURM)"
            )
        if self.coordinator and not self.coordinator.rpartition(":")[2].isdigit():
            raise UserError(f"--coordinator={self.coordinator}: it is written as ADDRESS:PORT")
        if self.count and not self.index < self.count:
            raise UserError(
                f"--process_id={self.index}: numbers of {self.count} processes go to "
                f"{self.count - 1}"
            )
        if self.silence_s < 3 or self.wait_s < self.silence_s:
            raise UserError(
                "--host_silence_s must be at least 3, and --host_wait_s at least --host_silence_s"
            )


def widen_cpu_pool(environ: MutableMapping[str, str] = os.environ) -> None:
    """Gives several virtual CPU devices threads enough. Before the first array of jax.

    A collective on the CPU holds its thread until the other devices have come. XLA's pool has a
    thread for each core or device, and a program starts collectives that do not need each other
    at once: with all threads held by devices that wait for one which has no thread left, XLA ends
    the process after 40 s. The pool reads its size from ``NPROC``, which one who knows better sets.
    """
    found = re.search(r"--xla_force_host_platform_device_count=(\d+)", environ.get("XLA_FLAGS", ""))
    count = int(found[1] if found else environ.get("JAX_NUM_CPU_DEVICES") or 1)
    if count > 1:
        environ.setdefault("NPROC", str(count * THREADS_PER_DEVICE))


def start(where: Where, environ: MutableMapping[str, str] = os.environ) -> None:
    """Joins the other processes of the run, if it has any. Before anything else of jax.

    Raises:
        UserError: they cannot be reached.
    """
    widen_cpu_pool(environ)
    if where.mode == "one" or not (where.coordinator or several(environ)):
        return
    import jax
    from jax._src import distributed  # jax names no public way to the key-value store

    if environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # signals are ours, see main
    given: Any = (where.coordinator, where.count, where.index)
    try:
        jax.distributed.initialize(
            **(dict(zip(NAMES, given, strict=True)) if where.coordinator else {}),
            # A host that explicit flags place has all its devices, whatever the cluster is.
            cluster_detection_method="deactivate" if where.coordinator else None,
            initialization_timeout=START_S,
            # The watch speaks first, and in words.
            heartbeat_timeout_seconds=int(where.silence_s) + 60,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the other hosts of the run cannot be reached within {START_S} s ({reason}); see that "
            "all of them were started, that --coordinator is right and its port is open, or give "
            "--hosts=one for a run on this host alone"
        ) from error
    state = distributed.global_state
    if state.num_processes > 1:
        hosts.join(
            state.client,
            state.process_id,
            state.num_processes,
            silence_s=where.silence_s,
            wait_s=where.wait_s,
        )


def several(environ: Mapping[str, str]) -> bool:
    """Whether the cluster has started this process as one of several."""
    if environ.get("JAX_PLATFORMS") == "cpu" and "SLURM_NTASKS" not in environ:
        return False
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in environ for name in slurm):
        return int(environ.get("SLURM_NTASKS", "1")) > 1
    slices = environ.get("MEGASCALE_NUM_SLICES", "1")
    if "," in environ.get("TPU_WORKER_HOSTNAMES", "") or (slices.isdigit() and int(slices) > 1):
        return True
    return "TPU_SKIP_MDS_QUERY" not in environ and _on_tpu_vm()


def _on_tpu_vm() -> bool:
    """Whether TPU chips are in this machine: its metadata then names the other hosts."""
    from jax._src import hardware_utils
    from jax._src.clusters import cloud_tpu_cluster

    chips, _ = hardware_utils.num_available_tpu_chips_and_device_id()
    return chips > 0 and cloud_tpu_cluster.GceTpuCluster.is_env_present()
