"""Time of a piece of work: products, memory and collectives one after the other.

The three are added, since nothing shows that they overlap: an estimate from above on a device that
reaches its peaks, from below on one that does not.
"""

from typing import NamedTuple

from vlaa_jax.plan.chips import Chip
from vlaa_jax.plan.formulas import Work

RESOURCES = ("products", "memory", "collectives")


class Time(NamedTuple):
    """Seconds by resource.

    Attributes:
        products: at the peak of dense bfloat16.
        memory: at the bandwidth of the device's memory.
        collectives: at the bandwidth of one link.
    """

    products: float
    memory: float
    collectives: float

    @property
    def total(self) -> float:
        """All three."""
        return sum(self)

    @property
    def limit(self) -> str:
        """The resource that takes longest."""
        return RESOURCES[self.index(max(self))]


def time_of(work: Work, chip: Chip) -> Time:
    """Time of some work on one device."""
    return Time(work.flops / chip.peak, work.hbm / chip.hbm, work.sent / chip.link)
