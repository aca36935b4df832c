"""Peak speed of accelerators, for utilisation: dense bfloat16 products, FLOP/s per device.

From the makers' data sheets (Google Cloud TPU system architecture pages; NVIDIA A100, H100 and H200
data sheets, without sparsity). A device that is not in the table has no utilisation.
"""

import jax
from jax.sharding import Mesh

PEAK_BF16: dict[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
"""By the longest prefix of `jax.Device.device_kind`."""


def peak_flops(device: jax.Device) -> float | None:
    """Peak FLOP/s of a device, or None where it is not known."""
    fitting = [name for name in PEAK_BF16 if device.device_kind.startswith(name)]
    return PEAK_BF16[max(fitting, key=len)] if fitting else None


def flop_metrics(flop_per_s: float, mesh: Mesh) -> dict[str, float]:
    """``train/tflop_per_s``, and ``train/mfu``: its share of the peak, where that is known."""
    devices = mesh.devices.reshape(-1).tolist()
    peak = peak_flops(devices[0])
    share = {"train/mfu": flop_per_s / (peak * len(devices))} if peak else {}
    return {"train/tflop_per_s": flop_per_s / 1e12, **share}
