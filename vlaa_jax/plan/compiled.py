"""What the compiler says of a program: memory of a device, collectives, seconds to compile."""

import time
from typing import Any, NamedTuple

from vlaa_jax.plan.hlo import Collective, collectives
from vlaa_jax.plan.known import Known, Said
from vlaa_jax.plan.programs import Program


class Compiled(NamedTuple):
    """One program, compiled.

    Attributes:
        program: what was compiled.
        arguments: bytes of its arguments on a device.
        temporaries: bytes of what it makes on the way.
        peak: bytes at its fullest moment, arguments and results included.
        collectives: as they stand in its text.
        text: of the compiled program; empty where it cannot be read.
        traced: seconds until the compiler had it.
        seconds: of compilation, when it was compiled.
        known: that was before.
        error: the compiler's first line, where it refused.
    """

    program: Program
    arguments: int = 0
    temporaries: int = 0
    peak: int = 0
    collectives: tuple[Collective, ...] = ()
    text: str = ""
    traced: float = 0.0
    seconds: float = 0.0
    known: bool = False
    error: str = ""

    @property
    def total(self) -> int:
        """Bytes of a device while it runs, with what lives beside it."""
        return self.peak + self.program.beside


def compile_program(program: Program, known: Known) -> Compiled:
    """Compiles a program for the devices its arguments are placed on; runs nothing.

    Args:
        program: what to compile.
        known: programs compiled before; an equal one is looked up there, a new one kept.
    """
    began = time.monotonic()
    try:
        lowered = program.jitted.lower(*program.args)  # type: ignore[attr-defined]
        key = known.key(lowered.as_text())
        traced = time.monotonic() - began
        said, before = known.find(key), True
        if said is None:
            said, before = _compile(lowered), False
            known.keep(key, said)
    except Exception as error:  # the compiler's own, of many types
        words = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        return Compiled(program, seconds=time.monotonic() - began, error=words[:300])
    found = tuple(collectives(said.text))
    sizes = said.arguments, said.temporaries, said.peak
    return Compiled(program, *sizes, found, said.text, traced, said.seconds, before)


def _compile(lowered: Any) -> Said:
    began = time.monotonic()
    found = lowered.compile()
    memory = found.memory_analysis()
    sizes = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = getattr(memory, "peak_memory_in_bytes", 0) or sum(sizes) + results
    try:
        text = found.as_text()
    except Exception:  # a libtpu newer than jaxlib may write what that cannot read back
        text = ""
    return Said(*sizes, peak, time.monotonic() - began, text)
