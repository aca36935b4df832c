"""The LoRA branches of a run as a PEFT adapter directory.

``adapter_model.safetensors`` and ``adapter_config.json`` as ``peft`` writes them, for a base model
under transformers >= 4.52 (modules below ``model.language_model`` and ``model.visual``).
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from converters.output import finished_directory, refuse_overlap
from vlaa_jax.foreign import local_path
from vlaa_jax.models.qwen_vl.hf_keys import Key, Layout, key_table
from vlaa_jax.models.qwen_vl.sources import OrbaxSource, read_json
from vlaa_jax.models.qwen_vl.weights import EMBEDDED, embedded_dir, open_params
from vlaa_jax.schema import UserError


def export_adapter(run: str | Path, target: str | Path, *, overwrite: bool = False) -> Path:
    """Writes the trained branches of a run, or of one of its checkpoints; gives the directory.

    Raises:
      UserError: the run holds no LoRA branches, or the target cannot be made.
    """
    source = open_params(run)
    if not isinstance(source, OrbaxSource) or not source.adapters:
        raise UserError(f"{run} holds no LoRA branches; leave out --adapter to export its weights")
    keys = [key for key in key_table(source.config) if key.path in source.adapters]
    tensors: dict[str, np.ndarray] = {}
    for key in keys:
        tensors |= _peft_tensors(source, key)
    needs_bytes = sum(tensor.nbytes for tensor in tensors.values())
    target = Path(target)
    refuse_overlap(Path(run), target)
    with finished_directory(target, needs_bytes=needs_bytes, overwrite=overwrite) as scratch:
        file = scratch / "adapter_model.safetensors"
        safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})
        text = json.dumps(_peft_config(source, keys, _base_model(Path(run))), indent=2)
        (scratch / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    return target


def _peft_tensors(source: OrbaxSource, key: Key) -> dict[str, np.ndarray]:
    a, b = (array.read().result() for array in source.adapters[key.path])
    if key.layers is None:
        a, b = a[None], b[None]
    tensors = {}
    for layer, weight in enumerate(key.hf_names(Layout.NEW)):
        module = f"base_model.model.{weight.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = np.ascontiguousarray(a[layer].T)
        tensors[f"{module}.lora_B.weight"] = np.ascontiguousarray(b[layer].T)
    return tensors


def _peft_config(source: OrbaxSource, keys: list[Key], base_model: str) -> dict[str, Any]:
    # One expression, matched against whole module names: a list of last parts such as "gate_proj"
    # would reach into the vision tower as well.
    modules = sorted({_module_pattern(key) for key in keys})
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model,
        "r": int(source.adapters[keys[0].path][0].shape[-1]),
        "lora_alpha": source.lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": "|".join(modules),
        "inference_mode": True,
    }


def _module_pattern(key: Key) -> str:
    name = key.hf_names(Layout.NEW)[0].removesuffix(".weight")
    pattern = re.escape(name)
    return pattern if key.layers is None else re.sub(r"\\\.0\\\.", r"\\.\\d+\\.", pattern, count=1)


def _base_model(run: Path) -> str:
    """The base as peft finds it: a hub id, or the whole path of what is on this machine."""
    run = run.parent.parent if run.parent.name == "checkpoints" else run
    name = str((read_json(run / "config.json").get("model") or {}).get("checkpoint") or "")
    if name == EMBEDDED:
        return str(embedded_dir())
    return str(local_path(name).absolute()) if name and local_path(name).exists() else name
