"""Parameters from any checkpoint: an HF directory or one of ours, whole or by the slice.

``load_params`` gives the nested dict of ``hf_keys.param_shapes``, as host arrays, or placed on a
mesh when told the shardings: a leaf is then read shard by shard, and no host holds the whole model.

``open_params`` gives the source itself, which the converters stream from.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Protocol

import huggingface_hub
import ml_dtypes
import numpy as np
import tensorstore

from vlaa_jax.models.qwen_vl import hf_keys
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.hf_keys import Index, Key, Layout, Path
from vlaa_jax.models.qwen_vl.safetensors_io import SafetensorsReader
from vlaa_jax.schema import UserError

MARKER_NAME = "vlaa_jax.json"
"""The file that makes a directory a finished converted checkpoint; written last."""
FORMAT_VERSION = 1
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "README.md"]
"""What is fetched from the hub: weights, configuration, tokenizer; no pickles."""
if TYPE_CHECKING:
    import jax

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
        self.config = QwenVLConfig.from_hf_dir(directory)
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
        bounds = _bounds(key.shape, index)
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
        bounds = _bounds(key.shape, index)
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
            raise UserError(
                f"{where}: config.json ties the embeddings, but {heads[0]} differs from "
                f"{hf_keys.EMBEDDING}; set tie_word_embeddings to false to use it, or delete it"
            )


class OrbaxSource:
    """A parameter tree that Orbax wrote, or that ``hf-to-jax`` wrote in Orbax's format.

    The arrays are opened through tensorstore, so a slice reads only the chunks it touches.

    Args:
      params_dir: the directory with ``_METADATA``.
      sidecars: the directory with config.json.

    Raises:
      UserError: listing every array that is missing, unexpected, of another shape, or incomplete.
    """

    def __init__(self, params_dir: str | FilePath, sidecars: str | FilePath):
        self.sidecars = FilePath(sidecars)
        self.config = QwenVLConfig.from_hf_dir(sidecars)
        self._directory = FilePath(params_dir).resolve()
        metadata = _read_json(self._directory / "_METADATA")
        self._ocdbt = bool(metadata.get("use_ocdbt"))
        self._driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
        stored = {
            ".".join(part["key"] for part in entry["key_metadata"])
            for entry in metadata["tree_metadata"].values()
        }
        self._arrays = self._open_all(stored)

    def dtype(self, key: Key) -> np.dtype[Any]:
        """Stored dtype of a leaf."""
        return self._arrays[key.path].dtype.numpy_dtype

    def chunk_shape(self, key: Key) -> tuple[int, ...]:
        """Shape of the pieces a leaf is stored in: reading less than one reads all of it."""
        return tuple(self._arrays[key.path].chunk_layout.read_chunk.shape)

    def read(self, key: Key, index: Index | None = None) -> np.ndarray:
        """A slice of a leaf, in the stored dtype."""
        array = self._arrays[key.path]
        return array[tuple(slice(*bound) for bound in _bounds(key.shape, index))].read().result()

    def _open_all(self, stored: set[str]) -> dict[Path, Any]:
        table = hf_keys.key_table(self.config)
        problems = [f"unexpected: {name}" for name in sorted(stored - {key.name for key in table})]
        opening = {}
        for key in table:
            if key.name in stored:
                opening[key] = tensorstore.open(self._spec(key.name), read=True, open=True)
            else:
                problems.append(f"missing: {key.name} {list(key.shape)}")
        arrays = {}
        for key, future in opening.items():
            try:
                array = arrays[key.path] = future.result()
            except ValueError as error:
                problems.append(f"unreadable: {key.name}: {str(error).splitlines()[0]}")
                continue
            if tuple(array.shape) != key.shape:
                problems.append(
                    f"wrong shape: {key.name} is {list(array.shape)}, not {list(key.shape)}"
                )
            elif not self._ocdbt and (lost := self._missing_chunks(key, array)):
                problems.append(f"incomplete: {key.name} lacks {lost} of its chunk files")
        if problems:
            raise UserError(
                f"{self._directory}: {len(problems)} arrays do not fit "
                f"{self.sidecars / 'config.json'}:\n  " + "\n  ".join(problems)
            )
        return arrays

    def _spec(self, name: str) -> dict[str, Any]:
        if self._ocdbt:
            store = {"driver": "ocdbt", "base": f"file://{self._directory}/", "path": f"{name}/"}
        else:
            store = {"driver": "file", "path": f"{self._directory / name}/"}
        return {"driver": self._driver, "kvstore": store}

    def _missing_chunks(self, key: Key, array: Any) -> int:
        # tensorstore reads an absent chunk as zeros, so a file lost in a copy would go unnoticed.
        chunk = array.chunk_layout.read_chunk.shape
        needed = math.prod(-(-size // part) for size, part in zip(key.shape, chunk, strict=True))
        if self._driver != "zarr":
            return 0
        found = sum(name[0].isdigit() for name in os.listdir(self._directory / key.name))
        return max(0, needed - found)


def open_params(path: str | FilePath) -> HFSource | OrbaxSource:
    """Finds out what kind of checkpoint ``path`` is and opens it.

    Args:
      path: an HF directory, a hub id, a converted checkpoint, a training run, or one of its
        ``checkpoints/STEP``.

    Raises:
      UserError: it is none of these, is unfinished, or its weights do not fit its config.json.
    """
    path = resolve(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a directory; give an HF directory or a checkpoint")
    if (path / MARKER_NAME).exists():
        read_marker(path)
        return OrbaxSource(path / "params", path / "hf")
    if (path / "params" / "_METADATA").exists() and path.parent.name == "checkpoints":
        return OrbaxSource(path / "params", path.parent.parent / "hf")
    if (steps := _finished_steps(path)) or (path / "checkpoints").is_dir():
        if not steps:
            raise UserError(f"{path / 'checkpoints'} holds no finished checkpoint yet")
        return OrbaxSource(path / "checkpoints" / str(steps[-1]) / "params", path / "hf")
    if (path / "params").is_dir() and (path / "hf").is_dir():
        raise UserError(f"{path} lacks {MARKER_NAME}: its conversion did not finish, run it again")
    return HFSource(path)


def resolve(path: str | FilePath, revision: str | None = None) -> FilePath:
    """A local directory for a path or a hub id such as ``Qwen/Qwen2.5-VL-3B-Instruct``.

    A path that exists is returned as it is; else a hub id is downloaded (or found in the cache).

    Raises:
      UserError: it is neither, or the download fails.
    """
    local = FilePath(path)
    if local.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        return local
    try:
        return FilePath(
            huggingface_hub.snapshot_download(
                str(path), revision=revision, allow_patterns=HUB_PATTERNS
            )
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path} is no local directory and could not be fetched from the hub: {reason}"
        ) from error


def sidecar_dir(path: str | FilePath) -> FilePath:
    """Where the config.json, tokenizer and processor files of any checkpoint lie."""
    path = resolve(path)
    if path.parent.name == "checkpoints" and (path / "params").is_dir():
        path = path.parent.parent
    return path / "hf" if (path / "hf" / "config.json").exists() else path


def load_config(path: str | FilePath) -> QwenVLConfig:
    """The model configuration of any checkpoint."""
    return QwenVLConfig.from_hf_dir(sidecar_dir(path))


def load_params(
    path: str | FilePath,
    abstract: Mapping[str, Any] | None = None,
    *,
    dtype: Any = None,
) -> dict[str, Any]:
    """Loads parameters as the nested dict of ``hf_keys.param_shapes``.

    Args:
      path: any checkpoint ``open_params`` takes.
      abstract: nested dict of ``jax.ShapeDtypeStruct`` with shardings (any part of the tree). Each
        process then reads only the slices of its own devices, one leaf at a time, straight onto
        them. Without it the result is host arrays of the whole tree.
      dtype: dtype of the result; by default that of ``abstract``, else the stored one.

    Raises:
      UserError: the checkpoint cannot be read or does not fit its config.json, or ``abstract`` asks
        for a leaf or a shape that it does not have.
    """
    source = open_params(path)
    keys = {key.path: key for key in hf_keys.key_table(source.config)}
    if abstract is None:
        return hf_keys.nest({p: _cast(source.read(key), dtype) for p, key in keys.items()})
    wanted = dict(hf_keys.flatten(abstract))
    _check_wanted(wanted, keys, str(path))
    return hf_keys.nest(
        {p: _place(source, keys[p], leaf, dtype or leaf.dtype) for p, leaf in wanted.items()}
    )


def read_marker(path: str | FilePath) -> dict[str, Any]:
    """The marker file of a converted checkpoint; UserError where its version is not ours."""
    file = FilePath(path) / MARKER_NAME
    marker = _read_json(file)
    if marker.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{file}: format_version is {marker.get('format_version')!r}, this release reads "
            f"{FORMAT_VERSION}; convert the checkpoint again"
        )
    return marker


def _place(source: ParamSource, key: Key, leaf: Any, dtype: Any) -> "jax.Array":
    import jax  # not at the top: the converters read without it and start a second sooner

    sharding = leaf.sharding
    if sharding is None:
        return jax.device_put(_cast(source.read(key), dtype))
    groups: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(key.shape).items():
        groups.setdefault(tuple(_bounds(key.shape, index)), []).append(device)
    shards = []
    for bounds, devices in groups.items():
        host = _cast(source.read(key, tuple(slice(*bound) for bound in bounds)), dtype)
        # Waiting before the next read keeps one shard, not all of them, in host memory.
        shards += jax.block_until_ready([jax.device_put(host, device) for device in devices])
    return jax.make_array_from_single_device_arrays(key.shape, sharding, shards)


def _check_wanted(wanted: Mapping[Path, Any], keys: Mapping[Path, Key], where: str) -> None:
    problems = []
    for path, leaf in wanted.items():
        if path not in keys:
            problems.append(f"the checkpoint has no {'.'.join(path)}")
        elif tuple(leaf.shape) != keys[path].shape:
            problems.append(f"{'.'.join(path)} is {list(keys[path].shape)}, not {list(leaf.shape)}")
    if problems:
        raise UserError(f"{where} does not fit the model:\n  " + "\n  ".join(problems))


def _finished_steps(run: FilePath) -> list[int]:
    # Orbax writes a step under a temporary name and renames it, so a bare number is finished.
    found = (run / "checkpoints").glob("[0-9]*/params/_METADATA")
    return sorted(int(f.parent.parent.name) for f in found if f.parent.parent.name.isdigit())


def _read_json(file: FilePath) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; the checkpoint is incomplete") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object")
    return content


def _cast(array: np.ndarray, dtype: Any) -> np.ndarray:
    return array if dtype is None else array.astype(dtype, copy=False)


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


def _bounds(shape: tuple[int, ...], index: Index | None) -> list[tuple[int, int]]:
    index = index or ()
    slices = (*index, *[slice(None)] * (len(shape) - len(index)))
    bounds = []
    for part, size in zip(slices, shape, strict=True):
        start, stop, step = part.indices(size)
        if step != 1:
            raise ValueError(f"slices must have step 1, not {part}")
        bounds.append((start, max(start, stop)))
    return bounds
