"""Output directories that are either finished or visibly not, and the progress bar.

Everything is written under ``NAME.incomplete`` and renamed to ``NAME`` when the last byte is on the
disk. What an interrupted run leaves behind is never taken for a result, and the next run clears it.
"""

import fcntl
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from vlaa_jax import disk
from vlaa_jax.foreign import refuse_dangling
from vlaa_jax.schema import UserError

SUFFIX = ".incomplete"
_LOCK_NAME = ".lock"
_WEIGHT_SUFFIXES = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pkl"}
)
_WEIGHT_INDEX_SUFFIX = ".index.json"
_SIDECAR_FOLDERS = ("additional_chat_templates",)


@contextmanager
def finished_directory(target: Path, *, needs_bytes: int, overwrite: bool) -> Iterator[Path]:
    """Gives a scratch directory that becomes ``target`` when the block ends without an error.

    Args:
      target: the directory to make.
      needs_bytes: bytes about to be written, checked against the free space first.
      overwrite: whether an existing target is replaced, at the very end.

    Raises:
      UserError: target exists, another process is writing it, or the disk is full.
    """
    if target.exists() and not overwrite and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} exists; choose another name or pass --overwrite")
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; choose another name")
    scratch = target.with_name(target.name + SUFFIX)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir(exist_ok=True)
        lock_file = (scratch / _LOCK_NAME).open("w")
    except OSError as error:
        raise UserError(f"{scratch} cannot be made: {error.strerror}") from error
    with lock_file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another conversion is writing {scratch}; wait for it") from None
        _clear(scratch)
        _check_space(scratch, needs_bytes)
        with disk.refusals(scratch, "nothing of it is kept, run the command again"):
            try:
                yield scratch
                _sync(scratch)
            except BaseException:
                _clear(scratch)  # a full disk is not kept full
                raise
        (scratch / _LOCK_NAME).unlink()
        if target.exists():
            shutil.rmtree(target)
        scratch.rename(target)
        _sync_directory(target.parent)


def refuse_overlap(source: Path, target: Path) -> None:
    """Raises UserError where writing (and replacing) target would destroy its own source."""
    source, target = source.resolve(), target.resolve()
    if source == target or target in source.parents or source in target.parents:
        raise UserError(f"{target} overlaps with the source {source}; choose another target")


def sidecar_files(directory: Path) -> list[Path]:
    """The non-weight files of an HF directory, relative to it: configs, tokenizer, templates."""
    files = [file for file in sorted(directory.iterdir()) if file.is_file()]
    for folder in _SIDECAR_FOLDERS:
        files += sorted(file for file in (directory / folder).glob("*") if file.is_file())
    return [file.relative_to(directory) for file in files if not _is_weight_file(file)]


def copy_sidecars(source: Path, target: Path) -> None:
    """Copies every non-weight file byte for byte; a link to nothing raises UserError."""
    for entry in source.iterdir():
        refuse_dangling(entry)
    for file in sidecar_files(source):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target / file)


@contextmanager
def progress_bar(
    title: str, total_bytes: int, *, show: bool = True
) -> Iterator[Callable[[int], None]]:
    """A bar with bytes, rate and time left; gives the function to call with bytes done."""
    bar = Progress(
        TextColumn(title),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not show,
    )
    with bar:
        task = bar.add_task(title, total=total_bytes)
        yield lambda count: bar.advance(task, count)


def run_jobs(
    jobs: Iterator[Callable[[], int]], advance: Callable[[int], None], threads: int
) -> None:
    """Runs jobs that return the bytes they wrote, a few at a time; the first error stops all."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = []
        try:
            for job in jobs:
                waiting.append(pool.submit(job))
                # Short queue: a job holds memory only while it runs, but its arguments add up.
                if len(waiting) > 2 * threads:
                    advance(waiting.pop(0).result())
            while waiting:
                advance(waiting.pop(0).result())
        finally:
            for job_left in waiting:
                job_left.cancel()


class Buffers(threading.local):
    """Scratch arrays, one per thread and used again: fresh memory costs as much as the copy."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """An array with any content; the thread's earlier one must no longer be in use."""
        size = dtype.itemsize * math.prod(shape)
        if self._bytes.size < size:
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size].view(dtype).reshape(shape)


def _is_weight_file(file: Path) -> bool:
    return file.suffix in _WEIGHT_SUFFIXES or file.name.endswith(_WEIGHT_INDEX_SUFFIX)


def _clear(scratch: Path) -> None:
    for entry in scratch.iterdir():
        if entry.name == _LOCK_NAME:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _check_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(
            f"{directory} needs {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free there"
        )


def _sync(directory: Path) -> None:
    # A rename survives a power cut only with its contents on the disk before it.
    for root, folders, files in os.walk(directory):
        for name in files:
            with open(os.path.join(root, name), "rb") as stream:
                os.fsync(stream.fileno())
        for name in folders:
            _sync_directory(Path(root) / name)
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
