"""From a Hugging Face directory to our checkpoint, by pieces of a few MiB.

The result is ``OUT/params`` in Orbax's format (one uncompressed zarr array per leaf, written here
by chunk because Orbax itself takes whole arrays only), ``OUT/hf`` with every other file of the
source, and ``OUT/vlaa_jax.json``, whose presence says that the checkpoint is whole.
"""

import json
import os
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from converters.output import (
    Buffers,
    copy_sidecars,
    finished_directory,
    progress_bar,
    refuse_overlap,
    run_jobs,
)
from vlaa_jax.models.qwen_vl.hf_keys import Key, Transform, key_table
from vlaa_jax.models.qwen_vl.safetensors_io import write_all
from vlaa_jax.models.qwen_vl.sources import DTYPES, HFSource
from vlaa_jax.models.qwen_vl.weights import FORMAT_VERSION, MARKER_NAME, resolve
from vlaa_jax.schema import UserError

CHUNK_BYTES = 32 << 20
"""Upper bound of a chunk, where the shape divides: large enough for object stores, small enough
that a shard of a mesh does not read much that it does not need."""
THREADS = min(8, os.cpu_count() or 1)
_ZARR_DTYPES = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "bfloat16"}
_buffers = Buffers()
_DICT_KEY = 2  # Orbax's KeyType.DICT


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    show_progress: bool = False,
) -> Path:
    """Converts an HF directory or hub id; returns the finished directory.

    Args:
      source: HF directory with safetensors weights in any layout, or a hub id.
      target: the checkpoint to make.
      dtype: a name in ``sources.DTYPES``; by default each tensor keeps its own.
      overwrite: replace an existing target.
      show_progress: draw a bar on stderr.

    Raises:
      UserError: the source is broken or does not fit its config.json, or the target cannot be made.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; known are {', '.join(DTYPES)}")
    directory = resolve(source)
    if (directory / MARKER_NAME).exists():
        raise UserError(f"{directory} is a converted checkpoint already")
    weights = HFSource(directory)
    table = key_table(weights.config)
    dtypes = {key: DTYPES[dtype] if dtype else weights.dtype(key) for key in table}
    total = sum(key.size * dtypes[key].itemsize for key in table)
    target = Path(target)
    refuse_overlap(weights.sidecars, target)
    with (
        finished_directory(target, needs_bytes=total, overwrite=overwrite) as scratch,
        progress_bar("hf-to-jax", total, show=show_progress) as advance,
    ):
        params = scratch / "params"
        params.mkdir()
        jobs = (
            job
            for key in table
            for job in _array_jobs(weights, key, dtypes[key], params / key.name)
        )
        run_jobs(jobs, advance, THREADS)
        _write_json(params / "_METADATA", _tree_metadata(table))
        _write_json(params / "_CHECKPOINT_METADATA", _CHECKPOINT_METADATA)
        (scratch / "hf").mkdir()
        copy_sidecars(weights.sidecars, scratch / "hf")
        _write_json(scratch / MARKER_NAME, _marker(weights, {d.name for d in dtypes.values()}))
    return target


def chunk_shape(key: Key, itemsize: int, limit: int = CHUNK_BYTES) -> tuple[int, ...]:
    """Shape of the pieces a leaf is stored in.

    Small leaves are one piece. Else a piece is one layer's share of whole rows of *their* tensor,
    so that conversion reads and writes runs of bytes in both directions.
    """
    if key.size * itemsize <= limit or len(key.layer_shape) == 1:
        return key.shape
    axis = 0 if key.transform is Transform.SAME else 1
    row_bytes = key.layer_shape[1 - axis] * itemsize
    piece = list(key.layer_shape)
    piece[axis] = _largest_divisor(key.layer_shape[axis], max(1, limit // row_bytes))
    return tuple(piece) if key.layers is None else (1, *piece)


def _array_jobs(
    weights: HFSource, key: Key, dtype: np.dtype[Any], directory: Path
) -> Iterator[Callable[[], int]]:
    chunk = chunk_shape(key, dtype.itemsize)
    directory.mkdir()
    _write_json(directory / ".zarray", _zarray(key.shape, chunk, dtype))
    grid = [range(0, size, piece) for size, piece in zip(key.shape, chunk, strict=True)]
    for starts in product(*grid):
        index = tuple(slice(a, a + n) for a, n in zip(starts, chunk, strict=True))
        name = ".".join(str(a // n) for a, n in zip(starts, chunk, strict=True))

        def job(index: tuple[slice, ...] = index, name: str = name) -> int:
            piece = _buffers.take(chunk, dtype)
            weights.read_into(key, piece, index)
            descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                write_all(descriptor, piece, 0)
            finally:
                os.close(descriptor)
            return piece.nbytes

        yield job


def _largest_divisor(size: int, limit: int) -> int:
    return next(n for n in range(min(size, limit), 0, -1) if size % n == 0)


def _zarray(shape: tuple[int, ...], chunk: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Header of a zarr 2 array (https://zarr-specs.readthedocs.io), as tensorstore reads it."""
    return {
        "chunks": list(chunk),
        "compressor": None,
        "dimension_separator": ".",
        "dtype": _ZARR_DTYPES[dtype.name],
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": list(shape),
        "zarr_format": 2,
    }


def _tree_metadata(table: tuple[Key, ...]) -> dict[str, Any]:
    """Orbax's ``_METADATA`` of a nested dict of arrays (PyTreeCheckpointHandler, without OCDBT)."""
    entries = {
        str(key.path): {
            "key_metadata": [{"key": part, "key_type": _DICT_KEY} for part in key.path],
            "value_metadata": {
                "value_type": "np.ndarray",
                "skip_deserialize": False,
                "write_shape": list(key.shape),
            },
        }
        for key in table
    }
    return {
        "tree_metadata": entries,
        "use_ocdbt": False,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }


_CHECKPOINT_METADATA: dict[str, Any] = {
    "item_handlers": "orbax.checkpoint._src.handlers.pytree_checkpoint_handler"
    ".PyTreeCheckpointHandler",
    "metrics": {},
    "performance_metrics": {},
    "init_timestamp_nsecs": None,
    "commit_timestamp_nsecs": None,
    "custom_metadata": {},
}


def _marker(weights: HFSource, dtypes: set[str]) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "family": weights.config.family,
        "dtype": dtypes.pop() if len(dtypes) == 1 else "mixed",
        "source_layout": weights.layout.value,
    }


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
