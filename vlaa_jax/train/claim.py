"""Whose a run directory is: one run at a time, with the settings it began with. No jax here."""

import dataclasses
import fcntl
import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vlaa_jax.data.sources.table import source_class
from vlaa_jax.foreign import local_path
from vlaa_jax.parallel import hosts
from vlaa_jax.schema import UserError
from vlaa_jax.settings.fields import harmless_names, path_names
from vlaa_jax.settings.shared import DataSettings

LOCK = "lock"


class Claim:
    """Holds a run directory, new or where it was interrupted, with a lock until it is closed.

    With several hosts, one of them writes, and all read: the directory is one they share. The
    settings are written down when everything else was opened: a mistyped option must not claim
    the directory for good.

    Args:
        path: the run directory.
        settings: of the task.

    Raises:
        UserError: it cannot be written, is in use, or holds a run with other settings.
    """

    def __init__(self, path: Path, settings: Any) -> None:
        self.path, self.settings = path, settings
        self._ends = ExitStack()
        _same_everywhere(settings)
        try:
            hosts.from_writer(self._take, "the run directory")
            if not (path / LOCK).exists():
                raise UserError(f"--workdir={path}: the hosts do not share this directory")
        except BaseException:
            self.close()
            raise

    def _take(self) -> None:
        self._ends.callback(lock(self.path))
        check_settings(self.path, self.settings)

    def kept(self) -> str:
        """What is said of a run that cannot write any more."""
        saved = steps_of(self.path / "checkpoints")
        if not saved:
            return "nothing was saved yet, the same command begins again"
        return f"steps up to {saved[0]} are saved, the same command goes on from there"

    def close(self) -> None:
        """Gives the directory back; once is enough."""
        self._ends.close()


def steps_of(directory: Path) -> list[int]:
    """Steps of the checkpoints that have their final name, newest first."""
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir() if path.is_dir()]
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _same_everywhere(settings: Any) -> None:
    """Looks whether all hosts were given the same settings, but for those that change no number."""
    told = hosts.gather(plain(settings), "the settings")
    harmless = harmless_names(type(settings))
    for host, other in enumerate(told):
        changed = sorted(set(_differences(told[0], other)) - harmless)
        if changed:
            raise UserError(
                f"host {host} was started with other settings than host 0 ({', '.join(changed)}); "
                "give all hosts the same command"
            )


def lock(path: Path) -> Callable[[], None]:
    """Takes the directory for this process; what it returns gives it back.

    The lock belongs to the open file, so it goes with the process, however that ends.

    Raises:
        UserError: the directory cannot be written, or another process holds it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, os.strerror(13))
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"--workdir={path}: cannot be used ({error.strerror})") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        by = f" by process {holder}" if holder.isdigit() else ""
        raise UserError(
            f"--workdir={path}: a run is going on in it{by}; wait for it or choose another workdir"
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return lambda: os.close(descriptor)


def check_settings(path: Path, settings: Any) -> None:
    """Looks whether the directory holds a run with other settings.

    Raises:
        UserError: it does, or what it holds cannot be read.
    """
    file = path / "config.json"
    if not file.exists():
        return
    try:
        recorded = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(recorded, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--workdir={path}: config.json cannot be read ({reason})") from error
    harmless, paths = harmless_names(type(settings)), path_names(type(settings))
    changed = sorted(
        f"{name}: {old!r} -> {new!r}"
        for name, (old, new) in _differences(recorded, plain(settings)).items()
        if name not in harmless and not (name in paths and _same_path(old, new))
    )
    if changed:
        raise UserError(
            f"--workdir={path} holds a run with other settings ({', '.join(changed[:5])}); "
            "give the same command to resume it, or another workdir"
        )


def _same_path(old: Any, new: Any) -> bool:
    """Whether two spellings mean one place: ``images/``, ``./images`` and its whole path do."""
    if not (isinstance(old, str) and isinstance(new, str) and old and new):
        return False
    return os.path.abspath(local_path(old)) == os.path.abspath(local_path(new))


def check_files(data: DataSettings) -> None:
    """Looks whether the data is there at all, before anything large is loaded.

    Raises:
        UserError: a path is missing, does not exist, or holds no records of a form that is known.
    """
    if data.records == "embedded":
        return
    rooted = False
    for name in ("records", "heldout", "validation"):
        path = getattr(data, name, "")
        if not path and name == "records":
            raise UserError("data.records is not set: give it with --config.data.records=...")
        try:
            rooted |= bool(path) and source_class(path).needs_root
        except UserError as error:
            raise UserError(f"data.{name}: {error}") from None
    root = data.image_root
    if rooted and not root:
        raise UserError("data.image_root is not set: give it with --config.data.image_root=...")
    if root and not local_path(root).is_dir():
        raise UserError(f"data.image_root: {root} does not exist")


def plain(settings: Any) -> dict[str, Any]:
    """Settings as JSON holds them."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def _differences(
    a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for name in a.keys() | b.keys():
        left, right = a.get(name), b.get(name)
        if isinstance(left, dict) and isinstance(right, dict):
            found |= _differences(left, right, f"{prefix}{name}.")
        elif left != right:
            found[f"{prefix}{name}"] = (left, right)
    return found
