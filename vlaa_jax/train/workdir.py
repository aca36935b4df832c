"""The run directory: whose run it holds, and whether the data it asks for is there."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlaa_jax.schema import UserError
from vlaa_jax.settings.fields import harmless_names
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.settings.shared import PromptSettings

OPERATIONAL = (
    "data.workers",
    "data.processes",
    "data.bad_records",
    "run.save_every",
    "run.keep_checkpoints",
    "run.log_rollouts_every",
    "run.compilation_cache",
)
"""GrpoSettings that may differ when a run is resumed: they change no number."""


def check_workdir(workdir: Path, settings: GrpoSettings) -> None:
    """Makes the run directory, or checks that it holds a run with these settings.

    Raises:
        UserError: it cannot be written, or holds a run with other settings.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not os.access(workdir, os.W_OK):
            raise PermissionError(13, os.strerror(13))
        path = workdir / "config.json"
        if not path.exists():
            return
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--workdir={workdir}: cannot be used ({reason})") from error
    harmless = harmless_names(type(settings))
    changed = sorted(
        f"{name}: {old!r} -> {new!r}"
        for name, (old, new) in _differences(recorded, plain(settings)).items()
        if name not in harmless
    )
    if changed:
        raise UserError(
            f"--workdir={workdir} holds a run with other settings ({', '.join(changed[:5])}); "
            "give the same command to resume it, or another workdir"
        )


def check_files(data: PromptSettings) -> None:
    """Looks whether the data is there at all, before anything large is loaded.

    Raises:
        UserError: a path is missing or does not exist.
    """
    if data.records == "embedded":
        return
    for name in ("records", "image_root", "heldout"):
        path = getattr(data, name)
        if not path and name != "heldout":
            raise UserError(f"data.{name} is not set: give it with --config.data.{name}=...")
        if path and not Path(path).exists():
            raise UserError(f"data.{name}: {path} does not exist")


def plain(settings: GrpoSettings) -> dict[str, Any]:
    """GrpoSettings as JSON holds them."""
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
