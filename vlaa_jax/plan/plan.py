"""A plan: every program's memory, collectives and time, and whether the run fits."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.plan.chips import Chip
from vlaa_jax.plan.compiled import Compiled
from vlaa_jax.plan.formulas import Cut, Work
from vlaa_jax.plan.roofline import Time, time_of
from vlaa_jax.plan.tasks import formulas_of
from vlaa_jax.plan.traffic import Traffic, traffic
from vlaa_jax.schema import UserError
from vlaa_jax.settings.sft import SftSettings


class Row(NamedTuple):
    """One program of a step.

    Attributes:
        name: of the program.
        runs: times a step runs it.
        bytes: of a device while it runs, with everything that lives beside it.
        time: of one run.
        work: of one run on one device.
        moved: collectives by kind and loop depth, bytes sent in one run; empty by formulas.
        arguments: bytes of its arguments on a device; 0 by formulas.
        compiled: seconds that its compilation took; 0 by formulas.
        error: why it did not compile.
        known: it was compiled before.
        crossing: what crosses the memory most in one run, in words and bytes; empty by formulas.
    """

    name: str
    runs: int
    bytes: float
    time: Time
    work: Work
    moved: dict[str, float]
    arguments: int = 0
    compiled: float = 0.0
    error: str = ""
    known: bool = False
    crossing: tuple[tuple[str, float], ...] = ()


class Plan(NamedTuple):
    """All programs of a step on some devices."""

    rows: tuple[Row, ...]
    chip: Chip
    cut: Cut
    compiled: bool
    attention: str
    """Its form; see models/qwen_vl/attend.py."""

    @property
    def peak(self) -> float:
        """Bytes of a device at the fullest moment of a step."""
        return max(row.bytes for row in self.rows)

    @property
    def fits(self) -> bool:
        """Whether every program compiled and has room."""
        return self.peak <= self.chip.memory and not any(row.error for row in self.rows)

    @property
    def seconds(self) -> float:
        """Of a step, without the host and the rewards."""
        return sum(row.runs * row.time.total for row in self.rows)

    @property
    def limit(self) -> str:
        """The resource that takes most of a step."""
        totals = dict.fromkeys(Time._fields, 0.0)
        for row in self.rows:
            for name, seconds in zip(Time._fields, row.time, strict=True):
                totals[name] += row.runs * seconds
        return max(totals, key=lambda name: totals[name])

    def utilisation(self, name: str) -> float:
        """Useful products of a program over what the peak would do in its time."""
        row = next(row for row in self.rows if row.name == name)
        return row.work.useful / (row.time.total * self.chip.peak) if row.time.total else 0.0


def cut_of(settings: Any, devices: int) -> Cut:
    """The mesh of the settings on that many devices.

    Raises:
        UserError: its sizes do not multiply to them, or batches cannot be dealt to its shards.
    """
    mesh = settings.mesh
    data = devices // (mesh.fsdp * mesh.tensor) if mesh.data == -1 else mesh.data
    cut = Cut(data, mesh.fsdp, mesh.tensor)
    if not data or cut.devices != devices:
        raise UserError(
            f"mesh: data={mesh.data} x fsdp={mesh.fsdp} x tensor={mesh.tensor} do not multiply to "
            f"the {devices} devices of the topology"
        )
    parts = 0 if isinstance(settings, SftSettings) else settings.rollout.tensor
    if parts and (parts % cut.tensor or devices % parts):
        raise UserError(
            f"rollout.tensor: {parts} is no multiple of mesh.tensor={cut.tensor} that divides the "
            f"{devices} devices of the topology"
        )
    for name, size in _dealt(settings).items():
        if size % cut.shards:
            following = -(-size // cut.shards) * cut.shards
            raise UserError(
                f"{name}: {size} at once cannot be dealt to {cut.shards} data shards "
                f"(mesh.data x mesh.fsdp); the next that can is {following}"
            )
    return cut


def _dealt(settings: Any) -> dict[str, int]:
    if isinstance(settings, SftSettings):
        return {"data.micro_rows": settings.data.rows_at_once}
    return {
        "rollout.prefill_prompts": settings.rollout.at_once,
        "algo.micro_prompts": settings.micro_prompts,
    }


def quick_plan(settings: Any, config: QwenVLConfig, chip: Chip, cut: Cut) -> Plan:
    """A plan by formulas alone."""
    own = formulas_of(settings, config, cut, chip.platform)
    memory = own.memory()
    rows = (
        Row(name, runs, memory.get(name, own.kept()), time_of(work, chip), work, {})
        for name, (runs, work) in own.works().items()
    )
    return Plan(tuple(rows), chip, cut, compiled=False, attention=own.form)


def compiled_plan(
    settings: Any, config: QwenVLConfig, chip: Chip, cut: Cut, programs: Sequence[Compiled]
) -> Plan:
    """A plan with memory and collectives of compiled programs; products by formulas."""
    own = formulas_of(settings, config, cut, chip.platform)
    counted, vision = own.works(), config.vision
    full = len(vision.full_blocks) / vision.depth  # the tower's conditional: windows, or all
    rows = []
    for found in programs:
        name = found.program.name
        runs, work = counted[name]
        crossed = traffic(found.text, own.loop, (1 - full, full))
        # Of the weights only the largest array's move is compiled; the formula has them all.
        if name != "weights" and found.text:
            sent = sum(c.moved * c.turns(own.loop) for c in found.collectives)
            work = work._replace(sent=float(sent), hbm=sum(one.bytes for one in crossed))
        said = found.arguments, found.seconds, found.error, found.known, greatest(crossed)
        rows.append(Row(name, runs, found.total, time_of(work, chip), work, depths(found), *said))
    return Plan(tuple(rows), chip, cut, compiled=True, attention=own.form)


def greatest(crossed: Sequence[Traffic], count: int = 6) -> tuple[tuple[str, float], ...]:
    """The operations that move most, those of one shape and origin together."""
    totals: defaultdict[str, float] = defaultdict(float)
    for one in crossed:
        shape = " ".join(re.findall(r"\w+\[[\d,]*\]", one.shape)[:2])
        origin = "/".join(one.source.split("/")[-2:])
        totals[f"{one.kind} {shape} {origin} x{one.turns:g}"] += one.bytes
    return tuple(sorted(totals.items(), key=lambda one: -one[1])[:count])


def depths(found: Compiled) -> dict[str, float]:
    """Bytes that a device sends in one turn, by kind and by how deep in loops."""
    totals: defaultdict[str, float] = defaultdict(float)
    for one in found.collectives:
        loops, turns = list(one.loops), 1
        if one.ring and loops:
            turns = loops.pop()
        depth = " ".join(f"x{n}" if n else "per token" for n in loops) or "per pass"
        totals[f"{one.kind}{' ring' if one.ring else ''} {depth}"] += one.moved * turns
    return dict(totals)


def smallest_change(settings: Any, devices: int, fits: Callable[[Any], bool]) -> str:
    """The first change, from cheap to dear, with which a run fits."""
    for words, changed in changes(settings, devices):
        if fits(changed):
            return words
    return "none found: take more devices, or model.lora.rank"


def changes(settings: Any, devices: int) -> Iterator[tuple[str, Any]]:
    """Settings beside the given ones, from cheap to dear."""
    replace, mesh = dataclasses.replace, settings.mesh
    if isinstance(settings, SftSettings):
        for rows in _halves(settings.data.rows_at_once, 1):
            data = replace(settings.data, micro_rows=rows)
            yield f"data.micro_rows={rows}", replace(settings, data=data)
    else:
        rollout, algo = settings.rollout, settings.algo
        for micro in _halves(settings.micro_prompts, 1):
            yield (
                f"algo.micro_prompts={micro}",
                replace(settings, algo=replace(algo, micro_prompts=micro)),
            )
        for slots in _halves(rollout.batch_prompts or rollout.prompts, rollout.at_once):
            yield (
                f"rollout.batch_prompts={slots}",
                replace(settings, rollout=replace(rollout, batch_prompts=slots)),
            )
        for parts in (2, 4, 8):
            if parts > (rollout.tensor or mesh.tensor) and not devices % parts:
                yield (
                    f"rollout.tensor={parts}",
                    replace(settings, rollout=replace(rollout, tensor=parts)),
                )
    for tensor in (1, 2, 4, 8):
        for fsdp in (2**n for n in range(13)):
            if devices % (fsdp * tensor) or fsdp * tensor <= mesh.fsdp * mesh.tensor:
                continue
            cut = replace(mesh, data=-1, fsdp=fsdp, tensor=tensor)
            own = replace(settings, mesh=cut, rollout=replace(settings.rollout, tensor=0))
            yield f"mesh.fsdp={fsdp} mesh.tensor={tensor} mesh.data=-1", own


def with_more_slots(settings: Any) -> Iterator[Any]:
    """The same run with more prompts decoded at once, up to all of them."""
    if isinstance(settings, SftSettings):
        return
    rollout = settings.rollout
    slots = 2 * (rollout.batch_prompts or rollout.prompts)
    while slots <= rollout.prompts and rollout.prompts % slots == 0:
        yield dataclasses.replace(
            settings, rollout=dataclasses.replace(rollout, batch_prompts=slots)
        )
        slots *= 2


def _halves(size: int, least: int) -> Iterator[int]:
    while size % 2 == 0 and size // 2 >= least:
        size //= 2
        yield size
