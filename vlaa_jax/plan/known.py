"""Programs that were compiled before, by what was compiled: a plan goes on where it was stopped.

Equal programs of several plans (a search compiles three) are compiled once. The compiled text is
kept whole, so that whatever is read from it is read anew.
"""

import gzip
import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
from typing import NamedTuple

COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda12-pjrt")
"""Packages whose versions a result belongs to."""


class Said(NamedTuple):
    """What a compiler said of a program.

    Attributes:
        arguments: bytes of its arguments on a device.
        temporaries: bytes of what it makes on the way.
        peak: bytes at its fullest moment, arguments and results included.
        seconds: it took.
        text: of the compiled program.
    """

    arguments: int
    temporaries: int
    peak: int
    seconds: float
    text: str


class Known:
    """What compilers said before.

    Args:
        target: the devices that are compiled for, as a topology and a mesh.
        folder: where it is kept; None forgets it with this object.
    """

    def __init__(self, target: str, folder: Path | None = None) -> None:
        self._target, self._folder = target, folder
        self._said: dict[str, Said] = {}

    def key(self, text: str) -> str:
        """Of a program, by its text before compilation."""
        versions = [f"{name} {_version(name)}" for name in COMPILERS]
        return hashlib.sha256("\n".join([self._target, *versions, text]).encode()).hexdigest()

    def find(self, key: str) -> Said | None:
        """What was said of a program, or None; a file that cannot be read was never there."""
        if key in self._said or self._folder is None:
            return self._said.get(key)
        try:
            figures = json.loads((self._folder / f"{key}.json").read_text(encoding="utf-8"))
            text = gzip.decompress((self._folder / f"{key}.hlo.gz").read_bytes()).decode()
            return Said(**{name: figures[name] for name in Said._fields[:-1]}, text=text)
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            return None

    def keep(self, key: str, said: Said) -> None:
        """Keeps what was said; the figures come last, so that they stand for both files."""
        self._said[key] = said
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        figures = dict(zip(Said._fields[:-1], said[:-1], strict=True))
        _write(self._folder / f"{key}.hlo.gz", gzip.compress(said.text.encode(), 6))
        _write(self._folder / f"{key}.json", json.dumps(figures).encode())


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"
