"""Bytes that a compiled program moves between a device's memory and its units, from its text.

What an operation outside of fusions reads and writes crosses the memory; inside of a fusion nothing
does. An operand of which only a slice is used counts by that slice, and so does an array that is
updated in place. What the compiler keeps in a faster memory (a layout with S(n)) crosses nothing.
Loops count by their turns, a conditional by its dearest branch. Neither padded tiles nor what a GPU
finds in its cache are seen.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from vlaa_jax.plan.hlo import ITEM_BYTES, children, computations_of

_DEFINES = re.compile(r"(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLS = {"while", "conditional", "call", "async-start"}
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "async-done", "async-update", "copy-done"),
    *("slice-done", "all-gather-done", "all-reduce-done", "collective-permute-done"),
    *("send-done", "recv-done"),
}
_SLICES = {"dynamic-slice", "slice", "gather"}


class Operation(NamedTuple):
    """One line of a computation.

    Attributes:
        name: of its result.
        shape: of it, in the compiler's words.
        kind: of operation.
        operands: names of what it takes.
        line: all of it.
    """

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    line: str

    @property
    def is_root(self) -> bool:
        """Whether it is what its computation gives back."""
        return self.line.lstrip().startswith("ROOT")


class Traffic(NamedTuple):
    """What one operation moves in one run of the program.

    Attributes:
        bytes: read and written, all turns together.
        turns: of the loops around it.
        kind: of operation.
        shape: of its result.
        source: where it comes from in the program.
    """

    bytes: float
    turns: float
    kind: str
    shape: str
    source: str


def traffic(
    text: str, dynamic: int = 1, branches: tuple[float, ...] | None = None
) -> list[Traffic]:
    """Operations of a compiled program that cross the memory, the greatest first.

    Args:
        text: ``compiled.as_text()``.
        dynamic: turns of loops that do not say how many.
        branches: how often each branch of a conditional with as many is taken, in shares; without
            it, or with another number, the dearest counts.
    """
    lines, entry = computations_of(text)
    parsed = {name: list(_operations(own)) for name, own in lines.items()}
    walk = _Walk(parsed, lines, dynamic, branches)
    return sorted(walk(entry, 1.0), key=lambda one: -one.bytes)


class _Walk(NamedTuple):
    """Goes through computations outside of fusions."""

    parsed: dict[str, list[Operation]]
    lines: dict[str, list[str]]
    dynamic: int
    branches: tuple[float, ...] | None

    def __call__(self, name: str, turns: float) -> list[Traffic]:
        """What a computation moves that runs so many times."""
        found: list[Traffic] = []
        own = self.parsed.get(name, [])
        shapes = {operation.name: operation.shape for operation in own}
        for operation in own:
            if operation.kind in _CALLS:
                found += self._called(operation, turns)
            elif operation.kind not in _FREE:
                moved = _moved(operation, shapes, self.parsed)
                source = re.search(r'op_name="([^"]*)"', operation.line)
                said = source[1] if source else ""
                found.append(Traffic(moved * turns, turns, operation.kind, operation.shape, said))
        return found

    def _called(self, operation: Operation, turns: float) -> list[Traffic]:
        called = list(children(operation.line, self.lines))
        if operation.kind == "while":
            inner = [self(name, turns * (loops[0] or self.dynamic)) for name, loops in called]
        elif operation.kind == "conditional" and len(called) == len(self.branches or ()):
            shares = self.branches or ()
            inner = [self(name, turns * n) for (name, _), n in zip(called, shares, strict=True)]
        else:
            inner = [self(name, turns) for name, _ in called]
            if operation.kind == "conditional":
                inner = sorted(inner, key=lambda part: -sum(one.bytes for one in part))[:1]
        return [one for part in inner for one in part]


def _operations(lines: list[str]) -> Iterator[Operation]:
    for line in lines:
        if match := _DEFINES.match(line.strip()):
            name, shape, kind, rest = match.groups()
            yield Operation(name, shape, kind, tuple(_OPERAND.findall(_inside(rest))), line)


def _inside(rest: str) -> str:
    """What stands between the brackets of a call, given all behind the first."""
    depth = 1
    for place, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return rest[:place]
    return rest


def _number(parameter: Operation) -> int:
    found = re.search(r"parameter\((\d+)\)", parameter.line)
    return int(found[1]) if found else 0


def _moved(operation: Operation, shapes: dict[str, str], parsed: dict) -> float:
    """Bytes that one operation reads and writes."""
    kind, operands = operation.kind, operation.operands
    if kind == "copy-start":  # the copy, the original, a context
        return _bytes(operation.shape)
    if kind.endswith("slice-start"):  # the array, its slice, a context
        dtype, dims, layout = _ARRAY.findall(operation.shape)[-2]
        part = f"{dtype}[{dims}]{layout}"
        return _bytes(part, everywhere=True) + _bytes(part)
    if kind in _SLICES:
        return 2 * _bytes(operation.shape)
    if kind == "dynamic-update-slice":
        return 2 * _bytes(shapes.get(operands[1], ""))
    if kind != "fusion":
        return _bytes(operation.shape) + sum(_bytes(shapes.get(name, "")) for name in operands)
    body = _called(operation, parsed)
    read = sum(
        min(_bytes(shapes.get(name, "")), _used(inner, body, parsed))
        for name, inner in zip(operands, _parameters(body), strict=False)
    )
    return read + min(_bytes(operation.shape), _written(body))


def _called(operation: Operation, parsed: dict) -> list[Operation]:
    """The computation of a fusion."""
    name = re.search(r"calls=%?([\w.\-]+)", operation.line)
    return parsed.get(name[1], []) if name else []


def _parameters(body: list[Operation]) -> list[str]:
    """Names of a computation's parameters, in their order."""
    given = [one for one in body if one.kind == "parameter"]
    return [one.name for one in sorted(given, key=_number)]


def _used(name: str, body: list[Operation], parsed: dict) -> float:
    """Bytes of a fusion's operand that it needs: its slices, if it takes no more than these."""
    total = 0.0
    for one in (one for one in body if name in one.operands):
        if one.kind in _SLICES and one.operands[0] == name:
            total += _bytes(one.shape, everywhere=True)
        elif one.kind == "bitcast" and not one.is_root:
            total += _used(one.name, body, parsed)
        elif one.kind == "fusion":
            inner = _called(one, parsed)
            pairs = zip(one.operands, _parameters(inner), strict=False)
            total += sum(_used(own, inner, parsed) for given, own in pairs if given == name)
        elif one.kind != "dynamic-update-slice" or one.operands[0] != name:
            return float("inf")
    return total


def _written(body: list[Operation]) -> float:
    """Bytes of a fusion's results: of an array that is updated in place, the update alone."""
    by_name = {one.name: one for one in body}
    root = next((one for one in body if one.is_root), None)
    if root is None:
        return float("inf")
    results = [by_name[n] for n in root.operands] if root.kind == "tuple" else [root]
    total = 0.0
    for one in results:
        while one.kind == "bitcast" and one.operands[0] in by_name:
            one = by_name[one.operands[0]]
        if one.kind == "dynamic-update-slice":
            total += _bytes(by_name[one.operands[1]].shape, everywhere=True)
        else:
            total += _bytes(one.shape, everywhere=True)
    return total


def _bytes(shape: str, *, everywhere: bool = False) -> float:
    """Bytes of a shape's arrays, without those that lie in a faster memory."""
    total = 0.0
    for dtype, dims, layout in _ARRAY.findall(shape):
        if everywhere or not re.search(r"S\([1-9]\d*\)", layout):
            size = float(ITEM_BYTES.get(dtype, 0))
            for side in filter(None, dims.split(",")):
                size *= int(side)
            total += size
    return total
