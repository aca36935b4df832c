"""Meshes and batch sizes ranked by formulas."""

import dataclasses
from collections.abc import Iterator

from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.plan.chips import Chip
from vlaa_jax.plan.plan import Plan, cut_of, quick_plan
from vlaa_jax.settings.grpo import GrpoSettings

MARGIN = 0.9
"""Share of the memory that formulas may fill: they do not see how buffers fall."""


def candidates(
    settings: GrpoSettings, config: QwenVLConfig, devices: int
) -> Iterator[GrpoSettings]:
    """Settings with every mesh, and batch sizes that can be dealt to it."""
    for tensor in (1, 2, 4, 8, 16):
        shards = devices // tensor
        if devices % tensor or config.text.heads % tensor:
            continue
        for fsdp in (n for n in range(1, shards + 1) if shards % n == 0):
            mesh = dataclasses.replace(settings.mesh, data=shards // fsdp, fsdp=fsdp, tensor=tensor)
            for sampling in (0, 2 * tensor, 4 * tensor):
                if sampling and (devices % sampling or config.text.heads % sampling):
                    continue
                rollout = dataclasses.replace(settings.rollout, tensor=sampling)
                own = dataclasses.replace(settings, mesh=mesh, rollout=rollout)
                yield from _batches(own, shards)


def _batches(settings: GrpoSettings, shards: int) -> Iterator[GrpoSettings]:
    prompts = settings.rollout.prompts
    per_update = prompts // settings.algo.updates_per_rollout
    replace = dataclasses.replace
    for micro in (n * shards for n in (1, 2, 4, 8, 16)):
        for slots in (n * shards for n in (1, 2, 4, 8, 16, 32)):
            if per_update % micro or prompts % slots:
                continue
            together = min(slots, max(shards, 16 // shards * shards))
            rollout = replace(settings.rollout, batch_prompts=slots, prefill_prompts=together)
            algo = replace(settings.algo, micro_prompts=micro)
            yield replace(settings, rollout=rollout, algo=algo)


def ranked(
    settings: GrpoSettings, config: QwenVLConfig, chip: Chip, devices: int
) -> list[tuple[GrpoSettings, Plan]]:
    """Candidates that fit by formulas, the quickest first."""
    found = []
    for own in candidates(settings, config, devices):
        plan = quick_plan(own, config, chip, cut_of(own, devices))
        if plan.peak <= MARGIN * chip.memory:
            found.append((own, plan))
    return sorted(found, key=lambda pair: pair[1].seconds)


def flags_of(settings: GrpoSettings) -> list[str]:
    """What was chosen, as flags of a run."""
    mesh, rollout = settings.mesh, settings.rollout
    chosen = {
        "mesh.data": mesh.data,
        "mesh.fsdp": mesh.fsdp,
        "mesh.tensor": mesh.tensor,
        "rollout.tensor": rollout.tensor,
        "rollout.batch_prompts": rollout.batch_prompts,
        "rollout.prefill_prompts": rollout.prefill_prompts,
        "algo.micro_prompts": settings.algo.micro_prompts,
    }
    return [f"--config.{name}={value}" for name, value in chosen.items()]
