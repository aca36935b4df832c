"""What the compiler says of a program: memory of a device, collectives, seconds to compile."""

import time
from typing import NamedTuple

from vlaa_jax.plan.hlo import Collective, collectives
from vlaa_jax.plan.programs import Program


class Compiled(NamedTuple):
    """One program, compiled.

    Attributes:
        program: what was compiled.
        arguments: bytes of its arguments on a device.
        temporaries: bytes of what it makes on the way.
        peak: bytes at its fullest moment, arguments and results included.
        collectives: as they stand in its text.
        seconds: of compilation.
        error: the compiler's first line, where it refused.
    """

    program: Program
    arguments: int = 0
    temporaries: int = 0
    peak: int = 0
    collectives: tuple[Collective, ...] = ()
    seconds: float = 0.0
    error: str = ""

    @property
    def total(self) -> int:
        """Bytes of a device while it runs, with what lives beside it."""
        return self.peak + self.program.beside


def compile_program(program: Program) -> Compiled:
    """Compiles a program for the devices its arguments are placed on; runs nothing."""
    began = time.monotonic()
    try:
        found = program.jitted.lower(*program.args).compile()  # type: ignore[attr-defined]
    except Exception as error:  # the compiler's own, of many types
        words = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        return Compiled(program, seconds=time.monotonic() - began, error=words[:300])
    memory = found.memory_analysis()
    sizes = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(
        program,
        *sizes,
        getattr(memory, "peak_memory_in_bytes", 0) or sum(sizes) + results,
        tuple(collectives(found.as_text())),
        time.monotonic() - began,
    )
