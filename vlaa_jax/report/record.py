"""Reads a run directory: settings, metrics, and every rollout that was recorded.

    from vlaa_jax.report.record import RunRecord
    record = RunRecord("runs/tiny")
    for step in record.steps("rollouts"):
        for completion in record.read("rollouts", step):
            print(completion.reward, completion.tokens["sampler"])

Nothing here needs an accelerator, jax, or a run that has ended; files of a run that is going on are
read as far as they are whole.
"""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlaa_jax.foreign import local_path, parse_json, read_bytes, read_object
from vlaa_jax.report.shards import Shard, read_shard
from vlaa_jax.schema import UserError

ROLLOUTS, HELDOUT, INDEX = "rollouts", "heldout", "index.jsonl"
MAX_LINES_BYTES = 512 << 20
"""Of one file of lines: metrics, or the texts of a step."""


@dataclass(frozen=True)
class Completion:
    """One answer of the policy.

    ``tokens`` holds its columns (`Shard.completion`); empty where a run recorded none. ``parts``,
    ``extracted``, ``reward`` and ``error`` are those of ``schema.Score``, a reward of None is one
    whose scorer failed, and ``span`` says where in ``completion`` the answer stands.
    """

    id: str
    question: str
    completion: str
    group: int = 0
    images: tuple[str, ...] = ()
    verifier_type: str = ""
    gt: str | None = None
    box_space: str | None = None
    extracted: str | None = None
    span: tuple[int, int] | None = None
    reason: str | None = None
    reward: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    length: int = 0
    truncated: bool = False
    advantage: float | None = None
    tokens: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def raw(self) -> float | None:
        """The verifier's word, unshaped; None where the scorer failed."""
        return None if self.reward is None else self.parts.get("raw", self.reward)


class RunRecord:
    """A run directory as files.

    Args:
        path: the directory.

    Raises:
        UserError: it is no run directory, or its settings cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = local_path(path)
        try:
            self.settings = read_object(self.path / "config.json")
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{self.path}: no run directory (it has no config.json)") from None

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.resolve().name

    def metrics(self) -> list[dict[str, float]]:
        """One dict per step, numbers only; a line that is cut off is left out."""
        found = []
        for _, line in _objects(self.path / "metrics.jsonl", torn=True):
            numbers = {k: float(v) for k, v in line.items() if _is_number(v)}
            if "step" in numbers:
                found.append(numbers)
        return found

    def steps(self, folder: str = ROLLOUTS) -> list[int]:
        """Steps whose completions are there, in order: those of the index, or, of a run from
        before there was one, those that have a file."""
        index = self.path / folder / INDEX
        if index.exists():
            entries = (line.get("step") for _, line in _objects(index, torn=True))
            return sorted({s for s in entries if type(s) is int and 0 <= s < 10**9})
        files = (self.path / folder).glob("[0-9]*.jsonl")
        return sorted(int(file.stem) for file in files if file.stem.isdecimal())

    def read(self, folder: str, step: int) -> list[Completion]:
        """All completions of a step, group by group.

        Raises:
            UserError: a file of it is missing, damaged, or does not fit the other one.
        """
        file = self.path / folder / f"{step:06d}.jsonl"
        try:
            lines = list(_objects(file))
            shard = _shard(file.with_suffix(".npz"))
        except FileNotFoundError:
            raise UserError(f"{file} does not exist") from None
        if shard is not None and len(shard) != len(lines):
            raise UserError(f"{file} has {len(lines)} lines, its .npz {len(shard)} completions")
        return [
            _completion(f"{file}: line {number}", line, shard.completion(n) if shard else {})
            for n, (number, line) in enumerate(lines)
        ]


def _shard(path: Path) -> Shard | None:
    return read_shard(path) if path.exists() else None


def _objects(path: Path, *, torn: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and JSON objects of a file; `torn` passes over what is none."""
    try:
        data = read_bytes(path, MAX_LINES_BYTES)
    except FileNotFoundError:
        if torn:
            return
        raise
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
            if not isinstance(value, dict):
                raise ValueError("no JSON object")
        except ValueError as error:
            if torn:
                continue
            raise UserError(f"{path}: line {number}: {error}") from None
        yield number, value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _optional(check: Any) -> Any:
    return lambda value: value is None or check(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


_SHAPES: Mapping[str, Any] = {
    **dict.fromkeys(("id", "question", "completion", "verifier_type"), _is_text),
    **dict.fromkeys(("gt", "box_space", "extracted", "reason", "error"), _optional(_is_text)),
    **dict.fromkeys(("group", "length"), _is_count),
    **dict.fromkeys(("reward", "advantage"), _optional(_is_number)),
    "truncated": lambda value: isinstance(value, bool),
    "images": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "parts": lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
    "span": _optional(
        lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))
    ),
}
"""What a line may say; `step`, which its file's name says too, is not read."""


def _completion(where: str, line: dict[str, Any], tokens: Mapping[str, np.ndarray]) -> Completion:
    known = {name: line[name] for name in _SHAPES if name in line}
    for name, value in known.items():
        if not _SHAPES[name](value):
            raise UserError(f"{where}: {name} is {str(value)[:60]!r}")
    missing = [name for name in ("id", "question", "completion") if name not in known]
    if missing:
        raise UserError(f"{where}: {missing[0]} is missing")
    for name in ("images", "span"):
        if known.get(name) is not None:
            known[name] = tuple(known[name])
    return Completion(**known, tokens=tokens)
