"""A plan: every program's memory, collectives and time, and whether the run fits."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.plan.chips import Chip
from vlaa_jax.plan.compiled import Compiled
from vlaa_jax.plan.formulas import Cut, Formulas, Work
from vlaa_jax.plan.roofline import Time, time_of
from vlaa_jax.plan.shapes import shapes_of
from vlaa_jax.schema import UserError
from vlaa_jax.settings.grpo import GrpoSettings


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
        error: why it did not compile.
    """

    name: str
    runs: int
    bytes: float
    time: Time
    work: Work
    moved: dict[str, float]
    arguments: int = 0
    error: str = ""


class Plan(NamedTuple):
    """All programs of a step on some devices."""

    rows: tuple[Row, ...]
    chip: Chip
    cut: Cut
    compiled: bool

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


def cut_of(settings: GrpoSettings, devices: int) -> Cut:
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
    for name, size in _dealt(settings).items():
        if size % cut.shards:
            following = -(-size // cut.shards) * cut.shards
            raise UserError(
                f"{name}: {size} prompts at once cannot be dealt to {cut.shards} data shards "
                f"(mesh.data x mesh.fsdp); the next that can is {following}"
            )
    return cut


def _dealt(settings: GrpoSettings) -> dict[str, int]:
    return {
        "rollout.prefill_prompts": settings.rollout.at_once,
        "algo.micro_prompts": settings.micro_prompts,
    }


def quick_plan(settings: GrpoSettings, config: QwenVLConfig, chip: Chip, cut: Cut) -> Plan:
    """A plan by formulas alone."""
    own = Formulas(settings, config, shapes_of(settings, config), cut)
    decoding, learning = own.decoding(), own.learning()
    memory = {"weights": decoding, "prefill": decoding, "burst": decoding, "gradients": learning}
    rows = (
        Row(name, runs, memory.get(name, own.kept()), time_of(work, chip), work, {})
        for name, (runs, work) in works(own).items()
    )
    return Plan(tuple(rows), chip, cut, compiled=False)


def works(own: Formulas) -> dict[str, tuple[int, Work]]:
    """Runs in a step, and the work of one, by program; every completion at its longest."""
    settings, shapes = own.settings, own.shapes
    prompts, limit = settings.rollout.prompts, settings.rollout.max_new_tokens
    passes = (settings.algo.updates_per_step > 1) + bool(settings.algo.kl_coef)
    micros = prompts // shapes.micro
    token = own.token(limit / 2)
    burst = Work(*(shapes.burst * figure for figure in token))
    bursts = -(-prompts // shapes.slots) * -(-limit // shapes.burst)
    return {
        "weights": (1, own.weights()),
        "prefill": (prompts // shapes.prefill, own.prefill()),
        "burst": (bursts, burst),
        "score": (micros * passes, own.score()),
        "gradients": (micros, own.gradients()),
        "apply": (settings.algo.updates_per_step, own.apply()),
    }


def compiled_plan(
    settings: GrpoSettings,
    config: QwenVLConfig,
    chip: Chip,
    cut: Cut,
    programs: Sequence[Compiled],
) -> Plan:
    """A plan with memory and collectives of compiled programs; products by formulas."""
    own = Formulas(settings, config, shapes_of(settings, config), cut)
    counted = works(own)
    rows = []
    for found in programs:
        name = found.program.name
        _, work = counted[name]
        # Only the largest array's move is compiled; the formula has them all.
        if name != "weights":
            sent = sum(c.moved * c.turns(own.shapes.burst) for c in found.collectives)
            work = work._replace(sent=float(sent))
        time = time_of(work, chip)
        moved = depths(found)
        sizes = found.program.runs, found.total
        rows.append(Row(name, *sizes, time, work, moved, found.arguments, found.error))
    return Plan(tuple(rows), chip, cut, compiled=True)


def depths(found: Compiled) -> dict[str, float]:
    """Bytes that a device sends in one turn, by kind and by how deep in loops."""
    totals: Counter[str] = Counter()
    for one in found.collectives:
        loops, turns = list(one.loops), 1
        if one.ring and loops:
            turns = loops.pop()
        depth = " ".join(f"x{n}" if n else "per token" for n in loops) or "per pass"
        totals[f"{one.kind}{' ring' if one.ring else ''} {depth}"] += one.moved * turns
    return dict(totals)


Change = tuple[str, GrpoSettings]


def smallest_change(
    settings: GrpoSettings, devices: int, fits: Callable[[GrpoSettings], bool]
) -> str:
    """The first change, from cheap to dear, with which a run fits."""
    for words, changed in changes(settings, devices):
        if fits(changed):
            return words
    return "none found: take more devices, or model.lora.rank"


def changes(settings: GrpoSettings, devices: int) -> Iterator[Change]:
    """Settings beside the given ones, from cheap to dear."""
    rollout, algo, mesh = settings.rollout, settings.algo, settings.mesh
    replace = dataclasses.replace
    micro = settings.micro_prompts
    while micro > 1 and micro % 2 == 0:
        micro //= 2
        own = replace(settings, algo=replace(algo, micro_prompts=micro))
        yield f"algo.micro_prompts={micro}", own
    slots = rollout.batch_prompts or rollout.prompts
    while slots > rollout.at_once and slots % 2 == 0:
        slots //= 2
        own = replace(settings, rollout=replace(rollout, batch_prompts=slots))
        yield f"rollout.batch_prompts={slots}", own
    for tensor in (1, 2, 4, 8):
        for fsdp in (2**n for n in range(13)):
            if devices % (fsdp * tensor) or fsdp * tensor <= mesh.fsdp * mesh.tensor:
                continue
            own = replace(settings, mesh=replace(mesh, data=-1, fsdp=fsdp, tensor=tensor))
            yield f"mesh.fsdp={fsdp} mesh.tensor={tensor} mesh.data=-1", own
