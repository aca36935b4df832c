"""Parameters from any checkpoint: an HF directory or one of ours, whole or by the slice.

``load_params`` gives the nested dict of ``hf_keys.param_shapes``, as host arrays, or placed on a
mesh when told the shardings: a leaf is then read shard by shard, and no host holds the whole model.

``open_params`` gives the source itself, which the converters stream from.
"""

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import huggingface_hub

from vlaa_jax import digests
from vlaa_jax.foreign import local_path
from vlaa_jax.models.qwen_vl import hf_keys
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.hf_config import read_config
from vlaa_jax.models.qwen_vl.hf_keys import Key, Path
from vlaa_jax.models.qwen_vl.sources import (
    HFSource,
    OrbaxSource,
    ParamSource,
    read_json,
    slice_bounds,
)
from vlaa_jax.schema import UserError

if TYPE_CHECKING:
    import jax

EMBEDDED = "embedded"
MARKER_NAME = "vlaa_jax.json"
"""The file that makes a directory a finished converted checkpoint; written last."""
FORMAT_VERSION = 1
SIDECAR_PATTERNS = ["*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "README.md"]
HUB_PATTERNS = ["*.safetensors", *SIDECAR_PATTERNS]
"""What is fetched from the hub: weights, configuration, tokenizer; no pickles."""


def open_params(path: str | FilePath) -> HFSource | OrbaxSource:
    """Finds out what kind of checkpoint ``path`` is and opens it.

    Args:
      path: an HF directory, a hub id, a converted checkpoint, a training run, or one of its
        ``checkpoints/STEP``.

    Raises:
      UserError: it is none of these, is unfinished, or its weights do not fit its config.json.
    """
    path = existing(path)
    if (path / MARKER_NAME).exists():
        read_marker(path)
        return OrbaxSource(path / "params", path / "hf")
    if (step := step_of(path)) is not None:
        return _open_step(step)
    if (path / "params").is_dir() and (path / "hf").is_dir():
        raise UserError(f"{path} lacks {MARKER_NAME}: its conversion did not finish, run it again")
    return HFSource(path)


def step_of(path: FilePath) -> FilePath | None:
    """The checkpoint of a run that a path means: itself, or a run's newest; None for others.

    Raises:
      UserError: a run without a finished checkpoint.
    """
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return path
    if not (path / "checkpoints").is_dir():
        return None
    steps = _steps(path / "checkpoints")
    if not steps:
        raise UserError(f"{path / 'checkpoints'} holds no finished checkpoint yet")
    return path / "checkpoints" / str(steps[-1])


def _open_step(step: FilePath) -> OrbaxSource:
    _check_digests(step)
    run = step.parent.parent
    alpha = None
    if (run / "config.json").exists():
        try:
            model = read_json(run / "config.json").get("model") or {}
            alpha = (model.get("lora") or {}).get("alpha")
        except AttributeError:
            raise UserError(f"{run / 'config.json'}: model.lora is no group of settings") from None
    return OrbaxSource(step / "params", run / "hf", lora_alpha=alpha)


def embedded_dir() -> FilePath:
    """The tiny checkpoint in this package, an ordinary HF directory."""
    return FilePath(str(resources.files("vlaa_jax") / "assets" / "tiny"))


def resolve(path: str | FilePath, revision: str | None = None, *, whole: bool = True) -> FilePath:
    """A local directory for a path or a hub id such as ``Qwen/Qwen2.5-VL-3B-Instruct``.

    A path that exists is returned, with a leading ``~`` as the home folder; ``embedded`` is the
    tiny checkpoint in this package; else a hub id is downloaded (or found in the cache), without
    its weights unless it is wanted whole.

    Raises:
      UserError: it is neither, or the download fails.
    """
    local = local_path(path)
    if str(path) == EMBEDDED:
        return embedded_dir()
    if local.exists() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path)):
        return local
    try:
        return FilePath(
            huggingface_hub.snapshot_download(
                str(path),
                revision=revision,
                allow_patterns=HUB_PATTERNS if whole else SIDECAR_PATTERNS,
            )
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path} is no local directory and could not be fetched from the hub: {reason}"
        ) from error


def existing(path: str | FilePath) -> FilePath:
    """`resolve`, and UserError where no directory comes of it."""
    directory = resolve(path)
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; give an HF directory or a checkpoint")
    return directory


def sidecar_dir(path: str | FilePath) -> FilePath:
    """Where the config.json, tokenizer and processor files of any checkpoint lie."""
    path = resolve(path, whole=False)
    if path.parent.name == "checkpoints" and (path / "params").is_dir():
        path = path.parent.parent
    return path / "hf" if (path / "hf" / "config.json").exists() else path


def load_config(path: str | FilePath) -> QwenVLConfig:
    """The model configuration of any checkpoint."""
    return read_config(sidecar_dir(path))


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
        return hf_keys.nest(
            {
                p: source.read(k).astype(dtype or source.dtype(k), copy=False)
                for p, k in keys.items()
            }
        )
    wanted = dict(hf_keys.flatten(abstract))
    _check_wanted(wanted, keys, str(path))
    return hf_keys.nest(
        {p: _place(source, keys[p], leaf, dtype or leaf.dtype) for p, leaf in wanted.items()}
    )


def read_marker(path: str | FilePath) -> dict[str, Any]:
    """The marker file of a converted checkpoint; UserError where its version is not ours."""
    file = FilePath(path) / MARKER_NAME
    marker = read_json(file)
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
        return jax.device_put(source.read(key).astype(dtype, copy=False))
    groups: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(key.shape).items():
        groups.setdefault(tuple(slice_bounds(key.shape, index)), []).append(device)
    shards = []
    for bounds, devices in groups.items():
        part = source.read(key, tuple(slice(*bound) for bound in bounds))
        host = part.astype(dtype, copy=False)
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


def _steps(checkpoints: FilePath) -> list[int]:
    # Orbax writes a step under a temporary name and renames it, so a bare number is finished.
    return sorted(int(f.name) for f in checkpoints.iterdir() if f.name.isdigit() and f.is_dir())


def _check_digests(step: FilePath) -> None:
    """Refuses weights that are not as a run wrote them; others may come without digests."""
    params, found = step / "params", None
    if not params.is_dir():
        found = "it is missing"
    elif (params / digests.NAME).exists():
        found = digests.problem(params)
    if found is None:
        return
    older = [n for n in _steps(step.parent) if n < int(step.name)]
    instead = f"; an older one is {step.parent / str(older[-1])}" if older else ""
    raise UserError(f"{step}: damaged, params/{found}{instead}")
