"""The persistent cache of compiled programs: where it cannot be used or is damaged, that is said.

jax goes on without an entry that it cannot read, with a warning of several lines at each, and never
replaces it: a damaged cache would cost the full time of compiling at every start from then on.
"""

import os
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from vlaa_jax.foreign import local_path

_UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '([\w.<>-]+)'")
_UNWRITABLE = re.compile(r"Error writing persistent compilation cache entry for .*?: (.*)", re.S)


def use(folder: str, say: Callable[[str], None]) -> None:
    """Has programs kept in a folder and taken from there.

    Args:
        folder: made where it is missing; one that cannot be used is told and done without.
        say: told, in one line each, of what is wrong with it.
    """
    path = local_path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        say(f"warning: run.compilation_cache: {path} cannot be used ({reason}); going on without")
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    _Watch(path, say).start()


class _Watch:
    """Reads jax's warnings about its cache, and does what they ask for."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._path, self._say = path, say
        self._told: set[str] = set()
        self._others = warnings.showwarning

    def start(self) -> None:
        for how in ("reading", "writing"):
            warnings.filterwarnings("always", f"Error {how} persistent compilation cache")
        warnings.showwarning = self._show  # type: ignore[assignment]

    def _show(self, message: Any, *rest: Any, **more: Any) -> None:
        text = str(message)
        if found := _UNREADABLE.match(text):
            for entry in self._path.glob(f"{found[1]}-*"):
                entry.unlink(missing_ok=True)  # what is compiled now takes its place
            self._once("holds damaged entries: they are removed and compiled anew")
        elif found := _UNWRITABLE.match(text):
            reason = " ".join(found[1].split())[:120]
            self._once(f"cannot be written ({reason}); what is compiled now will be again")
        else:
            self._others(message, *rest, **more)

    def _once(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self._say(f"warning: run.compilation_cache: {self._path} {what}")
