"""The one table of roofline constants.

Peaks are in parallel/peak.py. Memory, HBM and interconnect are the makers' figures (Google Cloud
TPU system architecture pages; NVIDIA H100 and H200 data sheets); of memory, what the compiler says
that a program may use (TPU), or jax's default share of three quarters (GPU). A link is what one
device sends to its neighbours on one torus axis, both ways together (TPU), or into NVLink (GPU).
Prices are list prices per device-hour on demand, as a first guess: yours differ.
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
    "v6e": Chip("TPU v6e", 31.25 * GIB, 1.640e12, 180e9, 2.70),
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
