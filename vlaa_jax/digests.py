"""Digests of the files of a directory: written with it, checked before it is read.

A disk that loses a block, a copy that stops half-way and a file that somebody edited look the same
to a reader of arrays: numbers. Here they are told from what was written.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vlaa_jax import disk

NAME = "digests.json"
_LARGEST = 64 * 2**20
"""Bytes of a list of digests; no directory of ours has as many files."""
_BLOCK, _BLOCKS = 4096, 64
"""Bytes of a sample of a large file, and how many of them."""


def write(directory: Path) -> None:
    """Writes size and SHA-256 of every file below a directory into it."""
    found = {name: [size, of_file(directory / name)] for name, size in _files(directory)}
    disk.write_json(directory / NAME, {NAME: [len(found), _of_listing(found)], **found})


def problem(directory: Path) -> str | None:
    """What is wrong with the first file that is not as it was written; None where all are.

    Sizes come first: they cost nothing, and tell of most damage.
    """
    listing = directory / NAME
    if not listing.exists():
        return f"{NAME} is missing, so its files cannot be checked"
    try:
        if listing.stat().st_size > _LARGEST:
            raise ValueError("too large")
        told = json.loads(listing.read_text(encoding="utf-8"))
        own = told.pop(NAME, None)  # an older listing has none
        if own is not None and own != [len(told), _of_listing(told)]:
            raise ValueError("not as it was written")
        expected = {str(name): (int(size), str(digest)) for name, (size, digest) in told.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return f"{NAME} is damaged"
    present = dict(_files(directory))
    for name, (size, _) in expected.items():
        if name not in present:
            return f"{name} is missing"
        if present[name] != size:
            return f"{name} has {present[name]} bytes, {size} were written"
    for name, (_, digest) in expected.items():
        try:
            if of_file(directory / name) != digest:
                return f"{name} is not as it was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _of_listing(found: Mapping[str, Any]) -> str:
    """Of the listing itself: else damage to it would be laid to a file that is sound."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def of_weights(directory: Path) -> str:
    """Digest of the names, sizes and samples of all files that may hold weights, below a directory.

    Reading all of them would cost minutes; other weights differ almost everywhere.
    """
    kinds = ("*.safetensors", "params/**/*", "vlaa_jax.json", NAME)
    found = {path for kind in kinds for path in directory.glob(kind) if path.is_file()}

    def pieces() -> Iterator[bytes]:
        for path in sorted(found):
            size = path.stat().st_size
            yield path.relative_to(directory).as_posix().encode()
            yield size.to_bytes(8, "little")
            with open(path, "rb") as file:
                for number in range(_BLOCKS):
                    file.seek(max(size - _BLOCK, 0) * number // (_BLOCKS - 1))
                    yield file.read(_BLOCK)

    return of_pieces(pieces())


def of_pieces(pieces: Iterable[bytes]) -> str:
    """One digest of several texts, which tells where each of them ends."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.hexdigest()


def _files(directory: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.name.startswith(NAME):
            yield path.relative_to(directory).as_posix(), path.stat().st_size


def of_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
