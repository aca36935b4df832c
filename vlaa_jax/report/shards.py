"""What is known of every token of a step: one NPZ file of flat columns, without padding.

N completions with K tokens together. ``start`` [N + 1] says where each completion begins; every
other array is a column of K numbers. Log-probabilities other than the sampler's are kept as their
difference from it in half precision, which is exact to 1 part in 2,000 of the *gap*: the gap is
what one looks at, and deflate has little to take from single precision.
"""

import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlaa_jax import disk
from vlaa_jax.foreign import read_bytes
from vlaa_jax.schema import UserError

MAX_BYTES = 512 << 20
"""Of a file, and of what it holds when it is unpacked: some thirty million tokens."""
START = "start"
DTYPES: Mapping[str, np.dtype] = {
    START: np.dtype("<u4"),
    "tokens": np.dtype("<i4"),
    "mask": np.dtype("|b1"),
    "sampler": np.dtype("<f4"),
    "trainer_gap": np.dtype("<f2"),
    "old_gap": np.dtype("<f2"),
    "reference_gap": np.dtype("<f2"),
    "entropy": np.dtype("<f2"),
}
"""Every array a shard may hold; ``tokens``, ``mask`` and ``sampler`` are always there."""
_ALWAYS = (START, "tokens", "mask", "sampler")
_GAPS = ("trainer", "old", "reference")


@dataclass(frozen=True)
class Shard:
    """The token columns of one step.

    Attributes:
        start_N1: where each completion begins, and where the last ends.
        columns: [K] each; see ``DTYPES``.
    """

    start_N1: np.ndarray
    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.start_N1) - 1

    def completion(self, n: int) -> dict[str, np.ndarray]:
        """Of one completion: ``tokens``, ``mask``, and where known, as float32,

        ``sampler``    log-probability under the policy that sampled, as the sampler computed it
        ``trainer``    under the policy its update started from, as the trainer computed it
        ``old``        under the policy that sampled, as the trainer computed it
        ``reference``  under the reference model
        ``entropy``    of the distribution, nats
        ``gap``        trainer's minus sampler's, of the same weights
        ``ratio``      importance ratio of the token, exp(trainer - old)
        """
        part = slice(int(self.start_N1[n]), int(self.start_N1[n + 1]))
        found = {name: self.columns[name][part] for name in _ALWAYS[1:]}
        for name in _GAPS:
            if f"{name}_gap" in self.columns:
                gap = self.columns[f"{name}_gap"][part].astype(np.float32)
                found[name] = found["sampler"] + gap
                found[f"{name}_gap"] = gap
        if "entropy" in self.columns:
            found["entropy"] = self.columns["entropy"][part].astype(np.float32)
        if "trainer" in found:
            # With one update per rollout the trainer's only pass is that of the old policy.
            old_gap = found.get("old_gap", found["trainer_gap"])
            found["gap"] = old_gap
            with np.errstate(over="ignore", invalid="ignore"):  # damaged or diverged: inf or NaN
                found["ratio"] = np.exp(found["trainer_gap"] - old_gap)
        return {name: array for name, array in found.items() if not name.endswith("_gap")}


def make_shard(
    length_N: np.ndarray, real_NT: np.ndarray, columns_NT: Mapping[str, np.ndarray]
) -> Shard:
    """A shard from padded arrays.

    Args:
        length_N: tokens of each completion.
        real_NT: True on tokens that are not padding.
        columns_NT: ``tokens``, ``mask``, ``sampler``, and where known ``trainer``, ``old``,
            ``reference`` (log-probabilities) and ``entropy``.
    """
    flat = {name: array[real_NT] for name, array in columns_NT.items()}
    half = np.finfo(np.float16).max
    for name in _GAPS:
        if name in flat:
            flat[f"{name}_gap"] = np.clip(flat.pop(name) - flat["sampler"], -half, half)
    start_N1 = np.concatenate([[0], np.cumsum(length_N)]).astype(DTYPES[START])
    return Shard(start_N1, {k: v.astype(DTYPES[k]) for k, v in flat.items()})


def write_shard(path: Path, shard: Shard) -> int:
    """Writes a shard in one piece; returns its bytes."""
    with disk.writing(path, "wb") as file:
        arrays: Any = {START: shard.start_N1, **shard.columns}
        np.savez_compressed(file, **arrays)
    return path.stat().st_size


def read_shard(path: Path) -> Shard:
    """Reads what ``write_shard`` wrote; never unpickles, and holds no more than ``MAX_BYTES``.

    Raises:
        FileNotFoundError: it is not there.
        UserError: it is damaged or no shard.
    """
    data = read_bytes(path, MAX_BYTES)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            arrays = _arrays(archive)
        return _checked(arrays)
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many kinds on a damaged file
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{path}: no shard of rollouts ({reason})") from None


def _arrays(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    members = archive.infolist()
    if sum(member.file_size for member in members) > MAX_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_BYTES:,} bytes")
    known = {f"{name}.npy": name for name in DTYPES}
    if len(members) > len(known) or any(member.filename not in known for member in members):
        raise ValueError("it holds arrays of other names")
    return {known[m.filename]: _array(archive.read(m), known[m.filename]) for m in members}


def _array(data: bytes, name: str) -> np.ndarray:
    """A one-dimensional array; its header is believed only as far as the bytes go."""
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{name}: another version of the format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    rest = len(data) - stream.tell()
    if len(shape) != 1 or dtype != DTYPES[name] or math.prod(shape) * dtype.itemsize != rest:
        raise ValueError(f"{name}: {dtype} {shape} in {rest} bytes")
    return np.frombuffer(data, DTYPES[name], offset=stream.tell())


def _checked(arrays: dict[str, Any]) -> Shard:
    missing = [name for name in _ALWAYS if name not in arrays]
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    start = arrays.pop(START).astype(np.int64)
    ends = start[-1] if len(start) else -1
    if ends < 0 or start[0] or (np.diff(start) < 0).any():
        raise ValueError("start does not rise from 0")
    if any(len(column) != ends for column in arrays.values()):
        raise ValueError("columns of other lengths than start says")
    mask = arrays["mask"].view(np.uint8) != 0  # a byte of a foreign file is no bool yet
    return Shard(start, arrays | {"mask": mask})
