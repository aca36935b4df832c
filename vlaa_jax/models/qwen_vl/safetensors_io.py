"""Safetensors files by tensor: read without loading them, written without holding them.

A file is an 8-byte little-endian header length, a JSON header (name -> dtype, shape, byte range)
and the tensors' bytes (https://github.com/huggingface/safetensors). Large models are cut into
shards with a ``model.safetensors.index.json``. Here a tensor is a memory map of its bytes, so a
slice reads only its pages, and a file is laid out before the first tensor is written, so tensors
may come in any order and in pieces; the library of that name does neither.
"""

import json
import math
import os
import stat
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ml_dtypes
import numpy as np

from vlaa_jax.foreign import parse_json, read_object, refuse_dangling, refuse_pointer
from vlaa_jax.schema import UserError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
DEFAULT_SHARD_BYTES = 5_000_000_000
_MAX_HEADER_BYTES = 4 << 20
"""The format allows 100 MB; a shard of the largest model here has a header of 0.1 MB."""
_MAX_DIMS = 8

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Safetensors dtype code to NumPy dtype, for the floating dtypes a checkpoint may have."""
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies."""

    file: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    """Byte position in the file."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.dtype.itemsize * math.prod(self.shape)


class SafetensorsReader:
    """The tensors of an HF directory, single file or shards with an index.

    Raises:
      UserError: no weight file, a shard is missing or cut off, a header is broken, a tensor has a
        dtype that is no plain float, the index disagrees with the shards, or there are shards and a
        single file.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.tensors: dict[str, TensorInfo] = {}
        weight_map = _choose_weight_map(self.directory)
        for file in sorted(set(weight_map.values())) if weight_map else [SINGLE_NAME]:
            for name, info in read_header(self.directory / file).items():
                if weight_map and weight_map.get(name) != file:
                    raise UserError(
                        f"{self.directory / file}: {name} is not listed for this file in "
                        f"{INDEX_NAME}"
                    )
                self.tensors[name] = info
        if lost := sorted(set(weight_map) - set(self.tensors)):
            raise UserError(
                f"{self.directory / INDEX_NAME} lists tensors that its shards do not hold: "
                f"{', '.join(lost)}"
            )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape."""
        return {name: info.shape for name, info in self.tensors.items()}

    def view(self, name: str) -> np.ndarray:
        """The tensor as a read-only memory map; its pages are let go with the array."""
        info = self.tensors[name]
        if info.nbytes == 0:
            return np.empty(info.shape, info.dtype)
        # Mapped as plain bytes: the same code then serves dtypes that NumPy does not know.
        raw = np.memmap(info.file, np.uint8, "r", info.offset, (info.nbytes,))
        return np.asarray(raw).view(info.dtype).reshape(info.shape)


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors one safetensors file says it holds, checked against its size.

    As the format asks, tensors lie one behind the other, without gaps, from the header to the end
    of the file.

    Raises:
      UserError: naming the file, and the tensor where one is at fault.
    """
    text, size = _header_text(file)
    try:
        header = parse_json(text)
    except ValueError as error:
        raise UserError(f"{file} cannot be read: its header is {error}") from None
    if not isinstance(header, dict):
        raise UserError(f"{file} is no safetensors file: its header is no JSON object")
    header.pop("__metadata__", None)
    start = 8 + len(text)
    tensors = {name: _tensor_info(file, name, entry, start) for name, entry in header.items()}
    _check_layout(file, tensors, start, size)
    return tensors


def _header_text(file: Path) -> tuple[bytes, int]:
    """The bytes of a header, and the size of the file in bytes."""
    try:
        refuse_dangling(file)
        if not stat.S_ISREG(os.stat(file).st_mode):  # a pipe would hold us in open()
            raise UserError(f"{file} is not a regular file")
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            first = stream.read(64)
            refuse_pointer(file, first)
            length = int.from_bytes(first[:8], "little")
            if size < 8 or length > size - 8:
                raise UserError(f"{file} is no safetensors file or is cut off in its header")
            if length > _MAX_HEADER_BYTES:
                raise UserError(f"{file}: a header of {length:,} bytes is over our limit of 4 MiB")
            stream.seek(8)
            return stream.read(length), size
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; the weights must be safetensors files") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


def _tensor_info(file: Path, name: str, entry: Any, start: int) -> TensorInfo:
    """One entry of a header."""
    if not (isinstance(entry, dict) and isinstance(code := entry.get("dtype"), str)):
        raise UserError(f"{file}: {name} has a broken header entry: its dtype is no text")
    shape, span = _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    if shape is None or span is None or len(span) != 2 or len(shape) > _MAX_DIMS:
        raise UserError(f"{file}: {name} has a broken header entry: its shape or data_offsets")
    if code not in DTYPES:
        raise UserError(
            f"{file}: {name} has dtype {code[:20]}; supported are {', '.join(DTYPES)} "
            "(quantised checkpoints are not)"
        )
    info = TensorInfo(file, DTYPES[code], shape, start + span[0])
    if span[1] - span[0] != info.nbytes:
        spans = f"spans {span[1] - span[0]} bytes, its shape needs {info.nbytes}"
        raise UserError(f"{file}: {name} {spans}")
    return info


def _sizes(value: Any) -> tuple[int, ...] | None:
    """A list of sizes or positions, or None where the value is none."""
    good = isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
    return tuple(value) if good else None


def _check_layout(file: Path, tensors: Mapping[str, TensorInfo], start: int, size: int) -> None:
    end = start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset + info.nbytes > size:
            stop = info.offset + info.nbytes
            raise UserError(f"{file} is cut off: {name} ends at byte {stop} of {size}")
        if info.offset != end:
            how = "overlaps" if info.offset < end else "leaves a gap behind"
            raise UserError(f"{file}: {name} {how} the tensor before it")
        end += info.nbytes
    if end != size:
        raise UserError(f"{file}: {size - end} bytes follow the last tensor; is the file whole?")


def _choose_weight_map(directory: Path) -> dict[str, str]:
    """Tensor name to shard, or nothing where ``model.safetensors`` is to be read.

    An index left over from an earlier save must not bring the earlier weights back. transformers
    reads the single file; so do we where no shard is left, and otherwise nobody can tell which of
    the two is meant.
    """
    single, index = directory / SINGLE_NAME, directory / INDEX_NAME
    if not index.exists():
        refuse_dangling(index)
        if not single.exists():
            refuse_dangling(single)
            raise UserError(f"{directory} holds neither {SINGLE_NAME} nor {INDEX_NAME}")
        return {}
    if not single.exists():
        return _read_index(index)
    shards = set(_read_index(index).values()) - {SINGLE_NAME}
    if left := sorted(shard for shard in shards if (directory / shard).exists()):
        raise UserError(
            f"{directory} holds two sets of weights: {SINGLE_NAME}, and {INDEX_NAME} with "
            f"{left[0]}; move away the one that is not meant (transformers reads {SINGLE_NAME})"
        )
    if shards:
        warnings.warn(f"{index} is ignored: of its shards none is there", stacklevel=3)
    return {}


def _read_index(file: Path) -> dict[str, str]:
    weight_map = read_object(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{file} cannot be read: it has no weight_map, or an empty one")
    for shard in weight_map.values():
        plain = isinstance(shard, str) and shard == Path(shard).name
        if not plain or not shard.endswith(".safetensors"):
            raise UserError(f"{file}: {str(shard)[:80]!r} is not the name of a file beside it")
    return weight_map


class SafetensorsWriter:
    """Writes a set of tensors whose names, dtypes and shapes are known beforehand.

    All files are laid out at once; then tensors are written in any order, whole or by rows.
    ``close`` refuses to finish while a byte is missing, and writes the index last.
    """

    def __init__(
        self,
        directory: str | Path,
        tensors: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
        *,
        max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    ):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.tensors: dict[str, TensorInfo] = {}
        self._files: dict[Path, int] = {}
        shards = _split(tensors, max_shard_bytes)
        for number, names in enumerate(shards, start=1):
            name = SINGLE_NAME
            if len(shards) > 1:
                name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            file = self.directory / name
            self._files[file] = _lay_out(file, {n: tensors[n] for n in names}, self.tensors)
        self._left = {name: info.nbytes for name, info in self.tensors.items()}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._close_files()

    def write(self, name: str, array: np.ndarray, first_row: int = 0) -> None:
        """Writes a tensor, or its rows from ``first_row`` on. Thread-safe for disjoint rows."""
        info = self.tensors[name]
        if array.dtype != info.dtype or array.shape[1:] != info.shape[1:]:
            raise ValueError(
                f"{name}: {array.dtype}{list(array.shape)} for {info.dtype}{list(info.shape)}"
            )
        array = np.ascontiguousarray(array)
        row_bytes = info.nbytes // max(1, info.shape[0]) if info.shape else 0
        position = info.offset + first_row * row_bytes
        if position + array.nbytes > info.offset + info.nbytes:
            raise ValueError(f"{name}: rows {first_row}+{array.shape[0]} of {info.shape[0]}")
        write_all(self._files[info.file], array, position)
        with self._lock:
            self._left[name] -= array.nbytes

    def close(self) -> None:
        """Finishes the files and the index; raises ValueError where bytes were never written."""
        if unwritten := [name for name, left in self._left.items() if left]:
            self._close_files()
            raise ValueError(f"tensors not (wholly) written: {unwritten}")
        self._close_files()
        if len(self._files) > 1:
            index = {
                "metadata": {"total_size": sum(info.nbytes for info in self.tensors.values())},
                "weight_map": {n: info.file.name for n, info in sorted(self.tensors.items())},
            }
            text = json.dumps(index, indent=2) + "\n"
            (self.directory / INDEX_NAME).write_text(text, encoding="utf-8")

    def _close_files(self) -> None:
        for file, descriptor in self._files.items():
            if descriptor >= 0:
                os.close(descriptor)
                self._files[file] = -1


def write_all(descriptor: int, array: np.ndarray, position: int) -> None:
    """Writes a contiguous array's bytes at a byte position of an open file."""
    view = array.reshape(-1).view(np.uint8).data
    while view:
        written = os.pwrite(descriptor, view, position)
        view, position = view[written:], position + written


def _split(
    tensors: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], max_shard_bytes: int
) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, (dtype, shape) in tensors.items():
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _lay_out(
    file: Path,
    tensors: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    placed: dict[str, TensorInfo],
) -> int:
    """Writes a file's header, extends the file to its full size and returns its descriptor."""
    # The format asks for no alignment, but its own writer starts the data at a multiple of 8 and
    # puts wide dtypes first, so that every tensor can be mapped in place. So do we.
    order = sorted(tensors, key=lambda name: -tensors[name][0].itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in order:
        dtype, shape = tensors[name]
        placed[name] = TensorInfo(file, dtype, tuple(shape), position)
        end = position + placed[name].nbytes
        header[name] = {
            "dtype": _CODES[dtype],
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    for name in order:
        info = placed[name]
        placed[name] = TensorInfo(file, info.dtype, info.shape, start + info.offset)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.pwrite(descriptor, len(text).to_bytes(8, "little") + text, 0)
    os.ftruncate(descriptor, start + position)
    return descriptor
