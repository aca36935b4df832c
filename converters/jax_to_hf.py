"""From our checkpoint, converted or trained, to a Hugging Face directory, by pieces.

The inverse of ``hf_to_jax``, driven by the same table. Weight files are laid out first and filled
in the order our arrays are stored: a leaf that stacks eighty layers is read once and never held.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from converters.output import (
    SUFFIX,
    Buffers,
    copy_sidecars,
    finished_directory,
    progress_bar,
    refuse_overlap,
    run_jobs,
)
from vlaa_jax.models.qwen_vl.hf_config import read_hf_config
from vlaa_jax.models.qwen_vl.hf_keys import LM_HEAD, Index, Key, Layout, Transform, key_table
from vlaa_jax.models.qwen_vl.safetensors_io import DEFAULT_SHARD_BYTES, SafetensorsWriter
from vlaa_jax.models.qwen_vl.sources import DTYPES, OrbaxSource, copy_tiled
from vlaa_jax.models.qwen_vl.weights import (
    MARKER_NAME,
    open_params,
    read_marker,
    sidecar_dir,
)
from vlaa_jax.schema import UserError

THREADS = min(8, os.cpu_count() or 1)
_buffers = Buffers()
_BUFFER_BYTES = 512 << 20
"""What the pieces in flight may hold together, as far as the stored chunks allow it."""


def export(
    checkpoint: str | Path,
    target: str | Path,
    *,
    layout: str = "old",
    dtype: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    show_progress: bool = False,
) -> Path:
    """Writes a checkpoint as an HF directory; returns the finished directory.

    Args:
      checkpoint: a converted checkpoint, a training run (its newest step) or ``RUN/checkpoints/N``.
      target: the HF directory to make.
      layout: spelling of the names, a ``Layout`` or ``source`` (what was converted).
      dtype: a name in ``sources.DTYPES``. By default a converted checkpoint keeps what it stores,
        and a training run takes what its source's config.json records.
      max_shard_bytes: upper bound of a weight file.
      overwrite: replace an existing target.
      show_progress: draw a bar on stderr.

    Raises:
      UserError: the checkpoint is unfinished or broken, or the target cannot be made.
    """
    if Path(checkpoint).name.endswith(SUFFIX):
        raise UserError(f"{checkpoint} is what an unfinished conversion left; run that again")
    source = open_params(checkpoint)
    if not isinstance(source, OrbaxSource):
        raise UserError(f"{checkpoint} is a Hugging Face directory already")
    names_layout = _layout(layout, Path(checkpoint))
    table = key_table(source.config)
    dtypes = {key: _export_dtype(source, key, Path(checkpoint), dtype) for key in table}
    tensors = {
        name: (dtypes[key], key.hf_shape) for key in table for name in key.hf_names(names_layout)
    }
    total = sum(key.size * dtypes[key].itemsize for key in table)
    target = Path(target)
    refuse_overlap(Path(checkpoint), target)
    with (
        finished_directory(target, needs_bytes=total, overwrite=overwrite) as scratch,
        progress_bar("jax-to-hf", total, show=show_progress) as advance,
    ):
        ordered = {name: tensors[name] for name in sorted(tensors, key=_file_order)}
        with SafetensorsWriter(scratch, ordered, max_shard_bytes=max_shard_bytes) as writer:
            for key in table:
                pieces = list(_pieces(source, key))
                piece_bytes = max(_piece_bytes(source, key, piece) for piece in pieces)
                # A piece is read, decoded and turned: three times its bytes for a moment.
                threads = max(1, min(THREADS, _BUFFER_BYTES // (3 * piece_bytes + 1)))
                names = key.hf_names(names_layout)
                jobs = (_job(source, writer, key, names, dtypes[key], piece) for piece in pieces)
                run_jobs(jobs, advance, threads)
        copy_sidecars(source.sidecars, scratch)
    return target


def _job(
    source: OrbaxSource,
    writer: SafetensorsWriter,
    key: Key,
    names: tuple[str, ...],
    dtype: np.dtype[Any],
    piece: Index,
) -> Callable[[], int]:
    def run() -> int:
        ours = source.read(key, piece)
        layers = [ours] if key.layers is None else list(ours)
        first_layer = 0 if key.layers is None else piece[0].start
        rows = piece[_row_axis(key)]
        for layer, array in enumerate(layers, start=first_layer):
            theirs = array if key.transform is Transform.SAME else array.T
            out = _buffers.take(theirs.shape, dtype)
            copy_tiled(out, theirs)
            out = out.reshape(out.shape[0], *key.hf_shape[1:])
            writer.write(names[layer], out, first_row=rows.start)
        return ours.size * dtype.itemsize

    return run


def _pieces(source: OrbaxSource, key: Key) -> Iterator[Index]:
    """Cuts a leaf so that no stored chunk is read twice and each piece is whole rows of theirs."""
    chunk = source.chunk_shape(key)
    steps = list(key.shape)
    if key.layers is not None:
        steps[0] = chunk[0]
    steps[_row_axis(key)] = chunk[_row_axis(key)]
    grid = [range(0, size, step) for size, step in zip(key.shape, steps, strict=True)]
    for starts in product(*grid):
        yield tuple(
            slice(start, min(start + step, size))
            for start, step, size in zip(starts, steps, key.shape, strict=True)
        )


def _row_axis(key: Key) -> int:
    """Our axis that their rows (their first axis) lie on."""
    first = 0 if key.layers is None else 1
    return first if key.transform is Transform.SAME else first + 1


def _piece_bytes(source: OrbaxSource, key: Key, piece: Index) -> int:
    sizes = [part.stop - part.start for part in piece]
    return int(np.prod(sizes, dtype=np.int64)) * source.dtype(key).itemsize


def _layout(layout: str, checkpoint: Path) -> Layout:
    if layout == "source":
        if not (checkpoint / MARKER_NAME).exists():
            raise UserError(
                f"--layout source: {checkpoint} has no {MARKER_NAME}; name the layout instead"
            )
        layout = read_marker(checkpoint)["source_layout"]
    try:
        return Layout(layout)
    except ValueError:
        raise UserError(f"unknown layout {layout!r}; known are {', '.join(Layout)}") from None


def _export_dtype(
    source: OrbaxSource, key: Key, checkpoint: Path, asked: str | None
) -> np.dtype[Any]:
    name = asked
    if name is None and not (checkpoint / MARKER_NAME).exists():
        name = recorded_dtype(read_hf_config(sidecar_dir(checkpoint)))
    if name is None:
        return source.dtype(key)
    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}; known are {', '.join(DTYPES)}")
    return DTYPES[name]


def recorded_dtype(hf: Mapping[str, Any]) -> str | None:
    """The weights' dtype a ``config.json`` records (``torch_dtype`` or ``dtype``), or None."""
    for place in (hf, hf.get("text_config") or {}):
        for key in ("dtype", "torch_dtype"):
            if isinstance(place.get(key), str):
                return place[key].removeprefix("torch.")
    return None


def _file_order(name: str) -> tuple[int, list[tuple[bool, int, str]]]:
    """Vision first, layers by number, the head last: the order of the released files."""
    part = 0 if "visual." in name else 2 if name == LM_HEAD else 1
    words = name.split(".")
    return part, [(word.isdigit(), int(word) if word.isdigit() else 0, word) for word in words]
