"""A word before anything is loaded, where a run will hardly fit on the devices that are there."""

from collections.abc import Sequence
from typing import Any

from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.plan.chips import CHIPS, GIB, Chip
from vlaa_jax.plan.plan import cut_of, quick_plan, smallest_change
from vlaa_jax.schema import UserError


def chip_here(device: Any) -> Chip | None:
    """The table's row of an attached device, or None where it has none."""
    kinds = {"TPU v5 lite": "TPU v5e", "TPU v6 lite": "TPU v6e", "TPU v5": "TPU v5p"}
    kind = str(device.device_kind)
    named = [chip for chip in CHIPS.values() if kind.startswith(chip.name)]
    named += [c for c in CHIPS.values() if kinds.get(kind) == c.name]
    return named[0] if named else None


def memory_problem(settings: Any, config: QwenVLConfig, devices: Sequence[Any]) -> str:
    """What does not fit by formulas and the smallest change that would, or nothing to say.

    Formulas are right to a tenth, so this is a warning and no verdict.

    Args:
        settings: of a task that trains.
        config: the model.
        devices: those of the run.
    """
    chip = chip_here(devices[0])
    if chip is None:
        return ""

    def peak(own: Any) -> float:
        try:
            return quick_plan(own, config, chip, cut_of(own, len(devices))).peak
        except UserError:
            return float("inf")

    needed = peak(settings)
    if needed <= chip.memory or needed == float("inf"):  # a mesh that is wrong is said elsewhere
        return ""
    change = smallest_change(settings, len(devices), lambda own: peak(own) <= chip.memory)
    return (
        f"by formulas this run takes {needed / GIB:.0f} GiB of a device's {chip.memory / GIB:.0f}; "
        f"smallest change that fits: {change} (python -m vlaa_jax.plan says more)"
    )
