"""Settings settled at the door: a ConfigDict becomes frozen, checked dataclasses.

Below this line nobody asks for a key with a default. An unknown key, a wrong type or values that do
not fit together stop the program with one line that names the field.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from vlaa_jax.schema import BOX_SPACES, VERIFIER_TYPES, UserError
from vlaa_jax.settings import (
    ADVANTAGES,
    AGGREGATIONS,
    FREEZABLE,
    KL_ESTIMATORS,
    LOSSES,
    AlgoSettings,
    ModelSettings,
    OptimizerSettings,
    RolloutSettings,
    Settings,
)

T = TypeVar("T")


def settle(config: Mapping[str, Any]) -> Settings:
    """Turns a plain mapping (ConfigDict.to_dict()) into checked settings.

    Raises:
        UserError: unknown key, wrong type, value out of range, or fields that do not fit together.
    """
    settings = build(Settings, config, "config")
    _check(settings)
    return settings


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Builds a (nested) dataclass from a mapping, refusing unknown keys and wrong types."""
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
            raise UserError(f"{where}.{key}: unknown key; {hint}")
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in values:
            raise UserError(f"{where}.{f.name}: missing; the config must set it")
    built = {k: _value(hints[k], v, f"{where}.{k}") for k, v in values.items()}
    return cls(**built)


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: expected a group of settings, got {value!r}")
        return build(typing.cast(type, hint), value, where)
    origin = typing.get_origin(hint)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}: expected a list, got {value!r}")
        return tuple(
            _value(typing.get_args(hint)[0], v, f"{where}[{i}]") for i, v in enumerate(value)
        )
    if origin in (typing.Union, types.UnionType):
        return value
    if origin is not None:
        hint = origin
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    wrong_bool = isinstance(value, bool) and hint is not bool
    if hint is not Any and (wrong_bool or not isinstance(value, hint)):
        name = getattr(hint, "__name__", str(hint))
        raise UserError(f"{where}: expected {name}, got {type(value).__name__} {value!r}")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{where}: {value} is not a finite number")
    return value


def _check(s: Settings) -> None:
    _one_of("task", s.task, ("grpo",))
    if not 0 <= s.seed < 2**32:
        raise UserError(f"seed: {s.seed} is not within 0 and 2^32 - 1")
    for name, allowed in _CHOICES.items():
        group, key = name.split(".")
        chosen = getattr(getattr(s, group), key)
        for value in chosen if isinstance(chosen, tuple) else (chosen,):
            _one_of(name, value, allowed)
    for name, least in _LEAST.items():
        group, key = name.split(".")
        _at_least(name, getattr(getattr(s, group), key), least)
    box_space_by_source(s.data.box_space, "data.box_space")
    weight_by_source(s.data.source_weights, "data.source_weights")
    if s.data.records == "embedded" and (s.data.heldout or s.data.image_root):
        raise UserError("data.heldout and data.image_root: embedded records bring their own")
    if s.data.max_pixels and s.data.min_pixels > s.data.max_pixels:
        raise UserError(f"data.min_pixels: {s.data.min_pixels} is above data.max_pixels")
    for name in ("data", "fsdp", "tensor"):
        size = getattr(s.mesh, name)
        if size < 1 and not (name == "data" and size == -1):
            raise UserError(f"mesh.{name}: {size} is not a size (only mesh.data may be -1)")
    _check_trained(s.model)
    _check_loss(s.algo)
    _check_optimizer(s.optimizer)
    _check_sampling(s.rollout)
    _check_batches(s.rollout, s.algo)


def _check_loss(algo: AlgoSettings) -> None:
    if algo.loss == "gspo":
        if max(algo.clip_low, algo.clip_high) > 0.01:
            raise UserError(
                "algo.clip_low and clip_high: GSPO clips a length-normalised ratio; its paper uses "
                "3e-4 and 4e-4, values above 0.01 never clip"
            )
        if algo.aggregation != "sequence_mean":
            raise UserError(
                f"algo.aggregation: {algo.aggregation} with algo.loss=gspo is not GSPO, which "
                "weighs sequences alike; set sequence_mean"
            )
    if algo.loss != "cispo" and not min(algo.clip_low, algo.clip_high) > 0:
        raise UserError("algo.clip_low and clip_high: must be above 0, at 0 the first update clips")
    if algo.dual_clip and algo.loss != "clip":
        raise UserError(f"algo.dual_clip: algo.loss={algo.loss} has none; set 0")
    if 0 < algo.dual_clip <= 1:
        raise UserError(f"algo.dual_clip: {algo.dual_clip} must be above 1, or 0 for none")
    if algo.kl_in_reward and not algo.kl_coef:
        raise UserError("algo.kl_in_reward: there is no KL to put there, algo.kl_coef is 0")
    if algo.kl_coef and algo.kl_estimator == "k1" and not algo.kl_in_reward:
        raise UserError(
            "algo.kl_estimator: as a loss k1 has an expected gradient of zero; set "
            "algo.kl_in_reward=True or take k2 or k3"
        )


def _check_sampling(rollout: RolloutSettings) -> None:
    if rollout.temperature <= 0:
        raise UserError("rollout.temperature: must be above 0; GRPO needs differing completions")
    for name in ("top_p", "min_p"):
        value = getattr(rollout, name)
        if not 0 <= value <= 1 or (name == "top_p" and value == 0):
            raise UserError(f"rollout.{name}: {value} is not a probability mass")


def _check_batches(rollout: RolloutSettings, algo: AlgoSettings) -> None:
    updates, at_once = algo.updates_per_rollout, rollout.batch_prompts
    _divides("rollout.prompts", rollout.prompts, "algo.updates_per_rollout", updates)
    if algo.micro_prompts:
        per_update = rollout.prompts // updates
        _divides("prompts per update", per_update, "algo.micro_prompts", algo.micro_prompts)
    if at_once:
        _divides("rollout.prompts", rollout.prompts, "rollout.batch_prompts", at_once)
    if rollout.prefill_prompts:
        together = at_once or rollout.prompts
        _divides("prompts at once", together, "rollout.prefill_prompts", rollout.prefill_prompts)


def _check_optimizer(optimizer: OptimizerSettings) -> None:
    lowest, peak, share = optimizer.min_lr, optimizer.lr, optimizer.warmup_frac
    if lowest > peak:
        raise UserError(f"optimizer.min_lr: {lowest} is above optimizer.lr={peak}; set both")
    if share > 1:
        raise UserError(f"optimizer.warmup_frac: {share} is a share of the run, 0 to 1")
    for name in ("b1", "b2"):
        if not 0 <= getattr(optimizer, name) < 1:
            raise UserError(f"optimizer.{name}: {getattr(optimizer, name)} is not below 1, from 0")


def box_space_by_source(text: str, where: str) -> str | dict[str, str]:
    """``"normalized"`` or ``"vg=normalized_square,coco=normalized"`` as ``RecordFile`` takes it.

    Raises:
        UserError: names ``where`` and what is no space, or given twice.
    """
    if not text.strip():
        return "normalized"
    if "=" not in text:
        _one_of(where, text.strip(), BOX_SPACES)
        return text.strip()
    spaces = _assignments(text, where)
    for source, space in spaces.items():
        _one_of(f"{where}: {source}", space, BOX_SPACES)
    return spaces


def weight_by_source(text: str, where: str) -> dict[str, float] | None:
    """``"vg=2,synthesis=1"`` as relative shares; None for an empty text.

    Raises:
        UserError: names ``where`` and what is no weight, or given twice.
    """
    if not text.strip():
        return None
    weights = {}
    for source, value in _assignments(text, where).items():
        try:
            weights[source] = float(value)
        except ValueError as error:
            raise UserError(f"{where}: {source}={value}: expected a number") from error
        if not 0 < weights[source] < math.inf:
            raise UserError(f"{where}: {source}={value}: must be above 0; leave the source out")
    return weights


def _assignments(text: str, where: str) -> dict[str, str]:
    """``A=1,B=2`` as a mapping from names in lower case, as the folders of the data set are."""
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise UserError(f"{where}: {part.strip()!r} is not SOURCE=VALUE (in {text!r})")
        if name.casefold() in found:
            raise UserError(f"{where}: {name!r} is given twice")
        found[name.casefold()] = value
    return found


def _check_trained(model: ModelSettings) -> None:
    if set(model.freeze) >= set(FREEZABLE):
        raise UserError("model.freeze: every part is frozen, nothing would train")
    lora = model.lora
    _at_least("model.lora.rank", lora.rank, 0)
    if not lora.rank:
        return
    if lora.alpha <= 0:
        raise UserError(f"model.lora.alpha: {lora.alpha} must be above 0")
    if not lora.modules and not lora.vision_modules:
        raise UserError("model.lora.modules: no linear map is named, nothing would train")
    if model.freeze:
        raise UserError(
            "model.freeze: with model.lora the base never trains; choose what does with "
            "model.lora.modules and model.lora.vision_modules"
        )


_CHOICES: dict[str, tuple[str, ...]] = {
    "model.dtype": ("float32", "bfloat16"),
    "model.param_dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "dots", "full"),
    "model.freeze": FREEZABLE,
    "data.bad_records": ("stop", "skip"),
    "data.verifier_types": tuple(VERIFIER_TYPES),
    "algo.advantage": ADVANTAGES,
    "algo.loss": LOSSES,
    "algo.aggregation": AGGREGATIONS,
    "algo.kl_estimator": KL_ESTIMATORS,
}

_LEAST: dict[str, float] = {
    "rollout.prompts": 1,
    "rollout.completions": 2,
    "rollout.max_new_tokens": 1,
    "rollout.top_k": 0,
    "rollout.batch_prompts": 0,
    "rollout.prefill_prompts": 0,
    "rollout.burst": 0,
    "run.steps": 0,
    "run.save_every": 1,
    "run.keep_checkpoints": 1,
    "run.eval_every": 0,
    "run.eval_completions": 1,
    "run.log_rollouts_every": 0,
    "algo.updates_per_rollout": 1,
    "algo.micro_prompts": 0,
    "algo.dynamic_sampling": 0,
    "algo.logprob_chunk": 0,
    "algo.kl_coef": 0,
    "algo.kl_target": 0,
    "algo.kl_horizon": 1,
    "algo.clip_low": 0,
    "algo.clip_high": 0,
    "algo.importance_cap": 0,
    "optimizer.lr": 0,
    "optimizer.min_lr": 0,
    "optimizer.warmup_frac": 0,
    "optimizer.grad_clip": 0,
    "optimizer.weight_decay": 0,
    "optimizer.max_skipped": 0,
    "model.unroll": 0,
    "data.workers": 0,
    "data.processes": 0,
    "data.min_pixels": 0,
    "data.max_pixels": 0,
    "data.vision_rows_per_bin": 0,
    "data.vision_bins_per_shard": 0,
    "data.embedded_train": 1,
    "data.embedded_heldout": 1,
    "data.max_prompt_tokens": 1,
    "data.min_prompt_bucket": 1,
}


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name}: {value!r} is not one of {', '.join(allowed)}")


def _at_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise UserError(f"{name}: {value} is too small; it must be at least {least}")


def _divides(name: str, value: int, by_name: str, by: int) -> None:
    if value % by:
        raise UserError(f"{name}={value} is not a multiple of {by_name}={by}")
