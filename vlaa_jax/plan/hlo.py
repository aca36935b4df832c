"""Collectives in the text of a compiled program: kind, bytes, and how often they run.

A collective inside a loop runs once per turn. Loops over layers or chunks say their number of turns
as a constant in their condition; a loop that does not (decoding stops when all have ended) is
DYNAMIC. An asynchronous gather stands in several computations, start and end, under one channel:
it is counted once.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

DYNAMIC = 0
"""Turns of a loop whose number is not known before it runs."""

ITEM_BYTES = {
    **{name: 1 for name in ("pred", "s8", "u8", "f8e4m3fn", "f8e5m2")},
    **{name: 2 for name in ("bf16", "f16", "s16", "u16")},
    **{name: 4 for name in ("f32", "s32", "u32")},
    **{name: 8 for name in ("f64", "s64", "u64")},
}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%[\w.\-]+ = ")
_HEAD = re.compile(r"(?:ENTRY )?%?([\w.\-]+) ")
_CALLED = re.compile(r"(body|condition|calls|to_apply|branch_computations|\w+_computation)=")
_NAME = re.compile(r"%?([\w.\-]+)")


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
        kind: one of KINDS.
        bytes: of its result on one device, once.
        loops: turns of the loops around it, outermost first; DYNAMIC where unknown.
        text: where it comes from in the program.
        ring: it is a step of a product that the compiler has cut up to overlap its gathering or
            reducing with it; the innermost loop goes around the devices.
    """

    kind: str
    bytes: int
    loops: tuple[int, ...]
    text: str
    ring: bool = False

    def turns(self, dynamic: int) -> int:
        """How often it runs, with `dynamic` turns of loops that do not say."""
        total = 1
        for turns in self.loops:
            total *= turns or dynamic
        return total

    @property
    def moved(self) -> int:
        """Bytes a device sends: a ring sends an all-reduced array twice, others once."""
        return self.bytes * (2 if self.kind == "all-reduce" else 1)


def collectives(text: str) -> list[Collective]:
    """All collectives of a compiled program (``compiled.as_text()``)."""
    computations, entry = computations_of(text)
    loops = _loops_around(computations, entry)
    found, seen = [], set()
    for name, lines in computations.items():
        if name not in loops:
            continue
        for line in lines:
            match = _COLLECTIVE.search(line)
            if match is None:
                continue
            key = _identity(match[2], match[1], line)
            if key in seen:
                continue
            seen.add(key)
            # A TPU reduces to shares in a fusion of that name: all of it is sent once, not twice.
            kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else match[2]
            size = _result_bytes(match[2], match[1], bool(match[3]), line)
            source = re.search(r'op_name="([^"]*)"', line)
            origin, ring = source[1] if source else "", "windowed_dot_general" in name
            found.append(Collective(kind, size, loops[name], origin, ring))
    return found


def _identity(kind: str, shapes: str, line: str) -> tuple:
    """The same for the parts of one asynchronous collective."""
    channel = re.search(r"channel_id=(\d+)", line)
    if channel is None or kind == "all-reduce":  # whose channels are not always their own
        return (line,)
    return kind, channel[1], tuple(_SHAPE.findall(shapes))


def _result_bytes(kind: str, shapes: str, start: bool, line: str) -> int:
    """Bytes of the whole array of a collective: gathered, or before it is reduced to shares."""
    sizes = [_bytes(*shape) for shape in _SHAPE.findall(shapes)]
    if kind == "collective-permute":  # a start gives operand, result and context
        return sizes[0]
    half = len(sizes) // 2
    if start and kind in ("all-gather", "all-to-all"):  # operands, then results
        return sum(sizes[half:])
    if kind == "reduce-scatter":
        return sum(sizes[:half]) if start else sum(sizes) * _group_size(line)
    return sum(sizes)


def _group_size(line: str) -> int:
    """Devices that take part, from any of the spellings of ``replica_groups``."""
    groups = line.partition("replica_groups=")[2]
    if groups.startswith("{{"):
        return groups[2 : groups.index("}")].count(",") + 1
    if counted := re.match(r"\[\d+,(\d+)\]", groups):
        return int(counted[1])
    axes = dict(re.findall(r"'(\w+)'=(\d+)", groups.partition("]")[0]))
    named = re.findall(r"'(\w+)'", groups.partition("{")[2].partition("}")[0])
    return math.prod(int(axes.get(name, 1)) for name in named)


def _bytes(dtype: str, dims: str) -> int:
    total = ITEM_BYTES.get(dtype, 0)
    for size in filter(None, dims.split(",")):
        total *= int(size)
    return total


def computations_of(text: str) -> tuple[dict[str, list[str]], str]:
    """Instructions of every computation, a line each, and the name of the first one to run.

    A kernel's attributes go over several lines, some of which look like a computation's end.
    """
    found: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if line.endswith("{") and (head := _HEAD.match(line)):
            lines = found.setdefault(head[1], [])
            if line.startswith("ENTRY"):
                entry = head[1]
        elif _INSTRUCTION.match(line):
            lines.append(line)
        elif lines:
            lines[-1] += line
    return found, entry


def _loops_around(computations: dict[str, list[str]], entry: str) -> dict[str, tuple[int, ...]]:
    """Turns of the loops around every computation that is reached, the deepest way to it."""
    loops: dict[str, tuple[int, ...]] = {}
    stack: list[tuple[str, tuple[int, ...]]] = [(entry, ())]
    while stack:
        name, path = stack.pop()
        known = loops.get(name)
        if name not in computations or (known is not None and len(known) >= len(path)):
            continue
        loops[name] = path
        for line in computations[name]:
            stack += [(child, path + turns) for child, turns in children(line, computations)]
    return loops


def children(line: str, computations: dict[str, list[str]]) -> Iterator[tuple[str, tuple]]:
    """Computations that a line calls, each with the turns of the loop that it is the body of."""
    called: dict[str, list[str]] = {}
    for match in _CALLED.finditer(line):
        rest = line[match.end() :]
        inside = rest[1 : rest.index("}")] if rest.startswith("{") else rest.split(",")[0]
        called.setdefault(match[1], []).extend(_NAME.findall(inside))
    said = re.search(r"known_trip_count\W+n\W+(\d+)", line)
    condition = computations.get(called.get("condition", [""])[0], [])
    body = computations.get(called.get("body", [""])[0], [])
    turns = int(said[1]) if said else _turns(condition, body)
    for key, names in called.items():
        loop = (turns,) if key in ("body", "condition") and " while(" in line else ()
        yield from ((name, loop) for name in names)


def _turns(condition: list[str], body: list[str]) -> int:
    """Turns of a loop that counts up to a constant, else DYNAMIC."""
    root = next((line for line in condition if "ROOT" in line), "")
    limits = [n for name, n in _constants(condition).items() if f"%{name}" in root.split(" = ")[-1]]
    if ("direction=LT" not in root and " fusion(" not in root) or len(limits) != 1:
        return DYNAMIC
    return -(-limits[0] // _stride(condition, body))


def _stride(condition: list[str], body: list[str]) -> int:
    """What the loop's counter grows by in a turn: more than 1 where turns were unrolled."""
    place = next((m[1] for line in condition if (m := re.search(r", index=(\d+)", line))), None)
    root = next((line for line in body if "ROOT" in line), "")
    results = re.findall(r"%([\w.\-]+)", root.partition(" tuple(")[2].partition(")")[0])
    if place is None or int(place) >= len(results):
        return 1
    constants = _constants(body)
    counter = re.escape(results[int(place)])
    step = next((line for line in body if re.match(rf"\s*%{counter} = .* add\(", line)), "")
    added = re.findall(r"%([\w.\-]+)", step.partition(" add(")[2].partition(")")[0])
    return next((constants[name] for name in added if constants.get(name)), 1)


def _constants(lines: list[str]) -> dict[str, int]:
    """Whole-number constants of a computation, by name."""
    found = (re.search(r"%([\w.\-]+) = [su]\d+\[\]\S* constant\((\d+)\)", a) for a in lines)
    return {match[1]: int(match[2]) for match in found if match}
