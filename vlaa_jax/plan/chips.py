"""The one table of roofline constants.

Peaks are in parallel/peak.py. The makers' figures, looked up in November 2026:

* TPU: https://docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e: bandwidth of the memory 819,
  2,765 and 1,638 GB/s; interconnect of a chip, both ways together, 400, 1,200 and 800 GB/s over 4,
  6 and 4 ports, so 100, 200 and 200 a port. A link here is what one device sends on one axis of
  the torus, both ways, at nine tenths of that. Short axes are no rings on v5e and v6e, but then two
  axes carry what is counted for one.
* NVIDIA H100 and H200 SXM data sheets: 3.35 and 4.8 TB/s; NVLink 900 GB/s both ways, 450 into it.

Of memory, what the compiler says that a program may use (TPU), or jax's default share of three
quarters (GPU). Prices are dollars per device-hour on demand from memory, not looked up (Google's
stored price list is older than v5e), and for GPUs a middle of what clouds ask: put in your own.
"""

from dataclasses import dataclass

from vlaa_jax.parallel.peak import PEAK_BF16
from vlaa_jax.schema import UserError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
        name: as in `PEAK_BF16`.
        memory: bytes a program may use.
        hbm: bytes/s of its memory.
        link: bytes/s of a collective at one device.
        price: US dollars an hour.
    """

    name: str
    memory: float
    hbm: float
    link: float
    price: float

    @property
    def platform(self) -> str:
        """Of jax: tpu or gpu."""
        return "tpu" if "TPU" in self.name else "gpu"

    @property
    def peak(self) -> float:
        """Dense bfloat16 FLOP/s."""
        return PEAK_BF16[self.name]


CHIPS = {
    "v4": Chip("TPU v4", 31.75 * GIB, 1.228e12, 90e9, 3.22),
    "v5e": Chip("TPU v5e", 15.75 * GIB, 0.819e12, 90e9, 1.20),
    "v5p": Chip("TPU v5p", 95.0 * GIB, 2.765e12, 180e9, 4.20),
    "v6e": Chip("TPU v6e", 31.25 * GIB, 1.638e12, 180e9, 2.70),
    "h100": Chip("NVIDIA H100", 0.75 * 79.6 * GIB, 3.35e12, 450e9, 3.00),
    "h200": Chip("NVIDIA H200", 0.75 * 139.8 * GIB, 4.80e12, 450e9, 4.00),
}
"""By the first part of a topology's name."""


def chip_of(topology: str) -> Chip:
    """The device of a topology such as ``v5e:4x4`` or ``h200:8``.

    Raises:
        UserError: no such device in the table.
    """
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise UserError(f"--topology: {name!r} is not one of {', '.join(CHIPS)}")
    return CHIPS[name]
