"""Checkpoints seen as our parameter tree, read by leaf and slice.

``HFSource`` turns the tensors of a Hugging Face directory by the key table as they are read;
``OrbaxSource`` reads what Orbax (or ``hf-to-jax``) wrote, and adds trained LoRA branches to their
kernels on the way.
"""

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path as FilePath
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import tensorstore

from vlaa_jax.foreign import read_object
from vlaa_jax.models.qwen_vl import hf_keys
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.hf_config import read_config, read_hf_config, tie_keys
from vlaa_jax.models.qwen_vl.hf_keys import Index, Key, Layout, Path
from vlaa_jax.models.qwen_vl.safetensors_io import SafetensorsReader
from vlaa_jax.schema import UserError

_TILE = 512
_TILE_PADDING = 16
_READ_THREADS = min(8, os.cpu_count() or 1)
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float64": np.dtype(np.float64),
}
"""Names of the dtypes a checkpoint may have."""


class ParamSource(Protocol):
    """Parameters that can be read by leaf and slice."""

    config: QwenVLConfig
    sidecars: FilePath
    """The directory of config.json, tokenizer.json and the like."""

    def dtype(self, key: Key) -> np.dtype[Any]:
        """Stored dtype of a leaf."""

    def read(self, key: Key, index: Index | None = None) -> np.ndarray:
        """A slice of a leaf in our layout (all of it by default), in the stored dtype."""


class HFSource:
    """The weights of an HF directory in any layout, seen as our parameter tree.

    Raises:
      UserError: listing every tensor that is missing, unexpected, or of another shape or dtype than
        config.json and the other layers say.
    """

    def __init__(self, directory: str | FilePath):
        self.sidecars = FilePath(directory)
        self.config = read_config(directory)
        self.reader = SafetensorsReader(directory)
        where = str(directory)
        self._names = hf_keys.match_tensors(self.config, self.reader.shapes, where)
        self.layout: Layout = hf_keys.detect_layout(self.reader.tensors)
        self._dtypes = self._uniform_dtypes(where)
        self._check_tied(where)

    def dtype(self, key: Key) -> np.dtype[Any]:
        """Stored dtype of a leaf."""
        return self._dtypes[key.path]

    def tensor(self, key: Key, layer: int = 0) -> np.ndarray:
        """One of their tensors of a leaf, in their shape, as a memory map."""
        return self.reader.view(self._names[key.hf_names()[layer]])

    def read(self, key: Key, index: Index | None = None) -> np.ndarray:
        """A slice of a leaf in our layout, in the stored dtype."""
        bounds = slice_bounds(key.shape, index)
        out = np.empty([stop - start for start, stop in bounds], self.dtype(key))
        if key.layers is None:
            self.read_into(key, out, index)
            return out

        def layer(number: int) -> None:
            part = slice(bounds[0][0] + number, bounds[0][0] + number + 1)
            inner = tuple(slice(*bound) for bound in bounds[1:])
            self.read_into(key, out[number : number + 1], (part, *inner))

        with ThreadPoolExecutor(_READ_THREADS) as pool:
            list(pool.map(layer, range(len(out))))
        return out

    def read_into(self, key: Key, out: np.ndarray, index: Index | None = None) -> None:
        """Fills ``out`` with a slice of a leaf, cast to the dtype of ``out``."""
        bounds = slice_bounds(key.shape, index)
        if key.layers is None:
            targets, layers, inner = [out], range(1), bounds
        else:
            targets, layers, inner = list(out), range(*bounds[0]), bounds[1:]
        part = tuple(slice(*bound) for bound in inner)
        for target, layer in zip(targets, layers, strict=True):
            copy_tiled(target, key.transform.to_ours(self.tensor(key, layer))[part])

    def _uniform_dtypes(self, where: str) -> dict[Path, np.dtype[Any]]:
        dtypes, problems = {}, []
        for key in hf_keys.key_table(self.config):
            names = [self._names[old] for old in key.hf_names()]
            first = self.reader.tensors[names[0]].dtype
            problems += [
                f"{name} is {self.reader.tensors[name].dtype}, {names[0]} is {first}"
                for name in names
                if self.reader.tensors[name].dtype != first
            ]
            dtypes[key.path] = first
        if problems:
            raise UserError(
                f"{where}: layers that are stacked must share one dtype:\n  "
                + "\n  ".join(problems)
            )
        return dtypes

    def _check_tied(self, where: str) -> None:
        heads = [n for n in self.reader.tensors if hf_keys.canonical(n) == hf_keys.LM_HEAD]
        if not self.config.tie_word_embeddings or not heads:
            return
        head = self.reader.view(heads[0])
        embedding = self.reader.view(self._names[hf_keys.EMBEDDING])
        if head.dtype != embedding.dtype or not same_bytes(head, embedding):
            keys = " and ".join(tie_keys(read_hf_config(self.sidecars)))
            raise UserError(
                f"{where}: config.json ties the embeddings, but {heads[0]} differs from "
                f"{hf_keys.EMBEDDING}; set {keys} to false to use it, or delete it"
            )


class OrbaxSource:
    """A parameter tree that Orbax wrote, or that ``hf-to-jax`` wrote in Orbax's format.

    The arrays are opened through tensorstore, so a slice reads only the chunks it touches. A kernel
    with a LoRA branch beside it (``....lora.a`` and ``.b``) is read as kernel + scale * a @ b.

    Args:
      params_dir: the directory with ``_METADATA``.
      sidecars: the directory with config.json.
      lora_alpha: the run's alpha; a branch's scale is alpha / rank (arXiv 2106.09685, 4.1).

    Raises:
      UserError: listing every array that is missing, unexpected, of another shape, or incomplete.
    """

    def __init__(
        self,
        params_dir: str | FilePath,
        sidecars: str | FilePath,
        *,
        lora_alpha: float | None = None,
    ):
        self.sidecars = FilePath(sidecars)
        self.config = read_config(sidecars)
        self.lora_alpha = lora_alpha
        self._directory = FilePath(params_dir).resolve()
        metadata = read_json(self._directory / "_METADATA")
        self._ocdbt = bool(metadata.get("use_ocdbt"))
        self._driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
        stored = _stored_names(metadata, self._directory / "_METADATA")
        table = hf_keys.key_table(self.config)
        problems = _name_problems(table, stored)
        shapes = {key.path: key.shape for key in table if key.name in stored}
        self._arrays = self._open(shapes, problems)
        branches = self._open(_branch_shapes(table, stored, self._rank(stored)), problems)
        if problems:
            raise UserError(
                f"{self._directory}: {len(problems)} arrays do not fit "
                f"{self.sidecars / 'config.json'}:\n  " + "\n  ".join(problems)
            )
        self.adapters: dict[Path, tuple[Any, Any]] = {
            (*path[:-2], "kernel"): (array, branches[(*path[:-1], "b")])
            for path, array in branches.items()
            if path[-1] == "a"
        }
        """Kernel path to its stored branch: a [L, in, rank] and b [L, rank, out]."""
        if self.adapters and lora_alpha is None:
            raise UserError(f"{params_dir} holds LoRA branches, but the run's alpha is unknown")

    def dtype(self, key: Key) -> np.dtype[Any]:
        """Stored dtype of a leaf."""
        return self._arrays[key.path].dtype.numpy_dtype

    def chunk_shape(self, key: Key) -> tuple[int, ...]:
        """Shape of the pieces a leaf is stored in: reading less than one reads all of it."""
        return tuple(self._arrays[key.path].chunk_layout.read_chunk.shape)

    def read(self, key: Key, index: Index | None = None) -> np.ndarray:
        """A slice of a leaf, in the stored dtype (float32 where a branch was added)."""
        bounds = slice_bounds(key.shape, index)
        slices = tuple(slice(*bound) for bound in bounds)
        base = self._arrays[key.path][slices].read().result()
        if key.path not in self.adapters:
            return base
        stored_a, stored_b = self.adapters[key.path]
        *lead, inputs, outputs = slices
        a = stored_a[(*lead, inputs)].read().result().astype(np.float32)
        b = stored_b[(*lead, slice(None), outputs)].read().result().astype(np.float32)
        return base.astype(np.float32) + np.float32(self.lora_scale(key)) * (a @ b)

    def lora_scale(self, key: Key) -> float:
        """Factor of a kernel's branch."""
        assert self.lora_alpha is not None
        return self.lora_alpha / self.adapters[key.path][0].shape[-1]

    def _rank(self, stored: set[str]) -> int:
        first = min((name for name in stored if name.endswith(".lora.a")), default=None)
        if first is None:
            return 0
        return int(tensorstore.open(self._spec(first), read=True, open=True).result().shape[-1])

    def _open(self, shapes: Mapping[Path, tuple[int, ...]], problems: list[str]) -> dict[Path, Any]:
        """Opens arrays; what is wrong with them is added to ``problems``."""
        opening = {
            path: tensorstore.open(self._spec(".".join(path)), read=True, open=True)
            for path in shapes
        }
        arrays = {}
        for path, future in opening.items():
            name, shape = ".".join(path), shapes[path]
            try:
                array = arrays[path] = future.result()
            except ValueError as error:
                problems.append(f"unreadable: {name}: {str(error).splitlines()[0]}")
                continue
            if tuple(array.shape) != shape:
                problems.append(f"wrong shape: {name} is {list(array.shape)}, not {list(shape)}")
            elif not self._ocdbt and (lost := self._missing_chunks(name, array)):
                problems.append(f"incomplete: {name} lacks {lost} of its chunk files")
        return arrays

    def _spec(self, name: str) -> dict[str, Any]:
        if self._ocdbt:
            store = {"driver": "ocdbt", "base": f"file://{self._directory}/", "path": f"{name}/"}
        else:
            store = {"driver": "file", "path": f"{self._directory / name}/"}
        return {"driver": self._driver, "kvstore": store}

    def _missing_chunks(self, name: str, array: Any) -> int:
        # tensorstore reads an absent chunk as zeros, so a file lost in a copy would go unnoticed.
        chunk = array.chunk_layout.read_chunk.shape
        needed = math.prod(-(-size // part) for size, part in zip(array.shape, chunk, strict=True))
        if self._driver != "zarr":
            return 0
        found = sum(file[0].isdigit() for file in os.listdir(self._directory / name))
        return max(0, needed - found)


def _stored_names(metadata: Mapping[str, Any], file: FilePath) -> set[str]:
    """Dotted names of the arrays that a ``_METADATA`` lists."""
    try:
        return {
            ".".join(part["key"] for part in entry["key_metadata"])
            for entry in metadata["tree_metadata"].values()
        }
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is no list of arrays as Orbax writes it") from None


def _name_problems(table: tuple[Key, ...], stored: set[str]) -> list[str]:
    """What is missing or unexpected among the names of stored arrays, LoRA branches allowed."""
    names = {key.name for key in table}
    branches = {
        f"{key.name.removesuffix('.kernel')}.lora.{part}"
        for key in table
        if key.path[-1] == "kernel"
        for part in "ab"
    }
    pairs = {name: name[:-1] + ("b" if name[-1] == "a" else "a") for name in stored & branches}
    return [
        *(f"missing: {key.name} {list(key.shape)}" for key in table if key.name not in stored),
        *(f"missing: {pairs[name]}" for name in sorted(pairs) if pairs[name] not in stored),
        *(f"unexpected: {name}" for name in sorted(stored - names - branches)),
    ]


def _branch_shapes(
    table: tuple[Key, ...], stored: set[str], rank: int
) -> dict[Path, tuple[int, ...]]:
    """Path and shape of every stored LoRA array."""
    shapes = {}
    for key in table:
        linear = key.path[:-1]
        if (
            key.path[-1] == "kernel"
            and {".".join((*linear, "lora", part)) for part in "ab"} <= stored
        ):
            *lead, inputs, outputs = key.shape
            shapes[(*linear, "lora", "a")] = (*lead, inputs, rank)
            shapes[(*linear, "lora", "b")] = (*lead, rank, outputs)
    return shapes


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two contiguous arrays of one dtype are equal bit by bit; NaN equals itself."""
    if a.shape != b.shape:
        return False
    flat_a, flat_b = (x.reshape(-1).view(np.uint8) for x in (a, b))
    step = 1 << 26
    return all(
        np.array_equal(flat_a[i : i + step], flat_b[i : i + step])
        for i in range(0, flat_a.size, step)
    )


def copy_tiled(target: np.ndarray, source: np.ndarray) -> None:
    """Copies between two orders of memory by tiles that stay in cache, casting where dtypes differ.

    NumPy walks a transposed copy one element a cache line. Through a small tile with padded rows
    (rows of a power of two all fall on the same cache sets) it is about eight times as fast.
    """
    if target.dtype == source.dtype:
        bits = np.dtype(f"u{target.dtype.itemsize}")
        target, source = target.view(bits), source.view(bits)
    if target.ndim != 2 or source.strides[-1] == source.itemsize:
        np.copyto(target, source, casting="unsafe")
        return
    padded = np.empty((_TILE, _TILE + _TILE_PADDING), target.dtype)
    rows, columns = source.T.shape
    for row in range(0, rows, _TILE):
        for column in range(0, columns, _TILE):
            part = source.T[row : row + _TILE, column : column + _TILE]
            tile = padded[: part.shape[0], : part.shape[1]]
            np.copyto(tile, part, casting="unsafe")
            target[column : column + _TILE, row : row + _TILE] = tile.T


def slice_bounds(shape: tuple[int, ...], index: Index | None) -> list[tuple[int, int]]:
    """Start and stop on every axis of a slice that may leave out trailing axes, or all."""
    index = index or ()
    slices = (*index, *[slice(None)] * (len(shape) - len(index)))
    bounds = []
    for part, size in zip(slices, shape, strict=True):
        start, stop, step = part.indices(size)
        if step != 1:
            raise ValueError(f"slices must have step 1, not {part}")
        bounds.append((start, max(start, stop)))
    return bounds


def read_json(file: FilePath) -> dict[str, Any]:
    """A JSON object; UserError where the file is absent or holds anything else."""
    try:
        return read_object(file)
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; the checkpoint is incomplete") from None
