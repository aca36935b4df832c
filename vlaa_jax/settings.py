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
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vlaa_jax.schema import BOX_SPACES, VERIFIER_TYPES, UserError

T = TypeVar("T")

FREEZABLE = ("vision", "merger", "language", "embeddings")
ADVANTAGES = ("grpo", "mean_only", "leave_one_out", "batch_std")
LOSSES = ("clip", "gspo", "cispo")
AGGREGATIONS = ("token_mean", "sequence_mean", "constant_length")
KL_ESTIMATORS = ("k1", "k2", "k3")


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (arXiv 2106.09685) in place of training the weights themselves."""

    rank: int = 0
    """Rank of the branches; 0 trains the weights."""
    alpha: float = 32.0
    """A branch is scaled by alpha / rank."""
    modules: tuple[str, ...] = (
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    )
    """Linear maps of the decoder that get a branch."""
    vision_modules: tuple[str, ...] = ()
    """Linear maps of the vision tower and merger that get a branch: qkv, proj, gate_proj, up_proj,
    down_proj (Qwen2-VL: fc1, fc2), mlp_0, mlp_2."""


@dataclass(frozen=True)
class ModelSettings:
    """Which checkpoint, and how to compute with it."""

    checkpoint: str = ""
    """HF directory, one of our checkpoints, a hub id, or "embedded" (the tiny default)."""
    dtype: str = "bfloat16"
    """Activation dtype."""
    param_dtype: str = "float32"
    """Dtype of the trained weights; the optimizer's moments follow it."""
    remat: str = "full"
    unroll: int = 1
    """Unroll factor of the layer scans; 0 unrolls fully."""
    freeze: tuple[str, ...] = ()
    """Parts that do not train, of FREEZABLE."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """With adapters, the base is kept in `dtype` and never trains."""


@dataclass(frozen=True)
class DataSettings:
    """Records and images."""

    records: str = ""
    """Records file in the released form, folder of a build, or "embedded" (drawn by code)."""
    image_root: str = ""
    heldout: str = ""
    """Held-out records; empty turns evaluation off."""
    system_prompt: str = ""
    max_prompt_tokens: int = 2048
    min_prompt_bucket: int = 64
    """Smallest padded prompt length; larger ones come from the ladder."""
    vision_rows_per_bin: int = 0
    """Rows of 64 patches per vision bin; 0 lets the planner choose."""
    vision_bins_per_shard: int = 0
    """Vision bins per data shard; 0 lets the planner choose."""
    min_pixels: int = 0
    """0 takes the checkpoint's own preprocessor_config.json."""
    max_pixels: int = 0
    """0 takes the checkpoint's own preprocessor_config.json."""
    bad_records: str = "stop"
    """"stop" at the first bad record, or "skip" and count them."""
    verifier_types: tuple[str, ...] = ()
    """Only records of these verifier types are used; empty takes all."""
    box_space: str = ""
    """Space of iou boxes that do not name their own: one of BOX_SPACES, or one per source, as in
    "vg=normalized_square,coco=normalized". Empty: "normalized", or what a build was told."""
    source_weights: str = ""
    """How often records of each source come, as in "vg=2,synthesis=1"; sources not named do not
    come at all. Empty: every record once an epoch."""
    embedded_train: int = 2000
    embedded_heldout: int = 200
    workers: int = 2
    """Threads that decode and encode images."""
    processes: int = 0
    """Processes that decode and encode images instead of threads; 0: none."""


@dataclass(frozen=True)
class RolloutSettings:
    """Sampling. The checkpoint's generation_config is never inherited."""

    prompts: int = 512
    """Prompts per rollout."""
    completions: int = 4
    """Completions per prompt (the group size)."""
    max_new_tokens: int = 1024
    temperature: float = 0.8
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    batch_prompts: int = 0
    """Prompts decoded at once; 0 decodes all together."""
    prefill_prompts: int = 0
    """Prompts whose prefixes are computed at once, and that take over freed places together; 0
    takes batch_prompts."""
    burst: int = 0
    """Tokens decoded between two looks for finished completions; 0 decodes to the end in one go."""


@dataclass(frozen=True)
class AlgoSettings:
    """GRPO and its relatives."""

    advantage: str = "grpo"
    loss: str = "clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    """Bound of the ratio for negative advantages; 0 turns it off."""
    aggregation: str = "sequence_mean"
    kl_estimator: str = "k3"
    kl_coef: float = 1e-3
    """Initial KL coefficient; 0 drops the reference model."""
    kl_target: float = 5e-4
    """Target of the adaptive controller; 0 keeps the coefficient fixed."""
    kl_horizon: float = 10_000.0
    kl_in_reward: bool = False
    entropy_coef: float = 0.0
    importance_cap: float = 0.0
    """Cap of truncated sampler/trainer importance weights; 0 turns them off."""
    dynamic_sampling: int = 0
    """Most further rollouts of a step that replace groups with equal rewards; 0 keeps all."""
    mask_truncated: bool = False
    """Leave completions that hit the token limit out of the loss."""
    updates_per_rollout: int = 8
    micro_prompts: int = 0
    """Prompts per gradient-accumulation step; 0 takes a whole update at once."""
    logprob_chunk: int = 1024
    """Tokens whose vocabulary-size logits exist at the same time."""


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW with linear warm-up and cosine decay to a floor."""

    lr: float = 1e-6
    min_lr: float = 5e-7
    warmup_frac: float = 0.03
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    max_skipped: int = 10
    """Updates with non-finite gradients before the run stops."""


@dataclass(frozen=True)
class MeshSettings:
    """Sizes of the mesh axes; -1 takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class RunSettings:
    """Length of the run and what it writes."""

    steps: int = 49
    """Rollouts (a step is one rollout with all its updates)."""
    save_every: int = 10
    keep_checkpoints: int = 2
    eval_every: int = 0
    """Steps between evaluations on held-out records; 0 evaluates before and after only."""
    eval_completions: int = 1
    """Completions per held-out record (mean@n, pass@n)."""
    log_rollouts_every: int = 1
    """Steps between rollout files; 0 writes none."""
    compilation_cache: str = "~/.cache/vlaa_jax/xla"
    """Folder of the persistent compilation cache; empty turns it off."""


@dataclass(frozen=True)
class Settings:
    """Everything a run needs, checked."""

    task: str
    seed: int = 0
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    algo: AlgoSettings = field(default_factory=AlgoSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    mesh: MeshSettings = field(default_factory=MeshSettings)
    run: RunSettings = field(default_factory=RunSettings)
    rewards: Mapping[str, Any] = field(default_factory=dict)
    """Options of the mixed reward; `vlaa_jax.rewards` checks them against its own dataclass."""


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
        return float(value)
    wrong_bool = isinstance(value, bool) and hint is not bool
    if hint is not Any and (wrong_bool or not isinstance(value, hint)):
        name = getattr(hint, "__name__", str(hint))
        raise UserError(f"{where}: expected {name}, got {type(value).__name__} {value!r}")
    return value


def _check(s: Settings) -> None:
    _one_of("task", s.task, ("grpo",))
    _one_of("model.dtype", s.model.dtype, ("float32", "bfloat16"))
    _one_of("model.param_dtype", s.model.param_dtype, ("float32", "bfloat16"))
    _one_of("model.remat", s.model.remat, ("none", "dots", "full"))
    for part in s.model.freeze:
        _one_of("model.freeze", part, FREEZABLE)
    _one_of("data.bad_records", s.data.bad_records, ("stop", "skip"))
    for kind in s.data.verifier_types:
        _one_of("data.verifier_types", kind, VERIFIER_TYPES)
    box_space_by_source(s.data.box_space, "data.box_space")
    weight_by_source(s.data.source_weights, "data.source_weights")
    _one_of("algo.advantage", s.algo.advantage, ADVANTAGES)
    _one_of("algo.loss", s.algo.loss, LOSSES)
    _one_of("algo.aggregation", s.algo.aggregation, AGGREGATIONS)
    _one_of("algo.kl_estimator", s.algo.kl_estimator, KL_ESTIMATORS)
    for name, least in _LEAST.items():
        group, key = name.split(".")
        _at_least(name, getattr(getattr(s, group), key), least)
    for name in ("data", "fsdp", "tensor"):
        size = getattr(s.mesh, name)
        if size < 1 and not (name == "data" and size == -1):
            raise UserError(f"mesh.{name}: {size} is not a size (only mesh.data may be -1)")
    if set(s.model.freeze) >= set(FREEZABLE):
        raise UserError("model.freeze: every part is frozen, nothing would train")
    _check_lora(s.model)
    if s.algo.loss == "gspo" and max(s.algo.clip_low, s.algo.clip_high) > 0.01:
        raise UserError(
            "algo.clip_low and clip_high: GSPO clips a length-normalised ratio; its paper uses "
            "3e-4 and 4e-4, values above 0.01 never clip"
        )
    if s.algo.kl_in_reward and not s.algo.kl_coef:
        raise UserError("algo.kl_in_reward: there is no KL to put there, algo.kl_coef is 0")
    _check_rate(s.optimizer)
    if 0 < s.algo.dual_clip <= 1:
        raise UserError(f"algo.dual_clip: {s.algo.dual_clip} must be above 1, or 0 for none")
    if s.data.records == "embedded" and (s.data.heldout or s.data.image_root):
        raise UserError("data.heldout and data.image_root: embedded records bring their own")
    if s.rollout.temperature <= 0:
        raise UserError("rollout.temperature: must be above 0; GRPO needs differing completions")
    for name in ("top_p", "min_p"):
        value = getattr(s.rollout, name)
        if not 0 <= value <= 1 or (name == "top_p" and value == 0):
            raise UserError(f"rollout.{name}: {value} is not a probability mass")
    _divides(
        "rollout.prompts", s.rollout.prompts, "algo.updates_per_rollout", s.algo.updates_per_rollout
    )
    per_update = s.rollout.prompts // s.algo.updates_per_rollout
    if s.algo.micro_prompts:
        _divides("prompts per update", per_update, "algo.micro_prompts", s.algo.micro_prompts)
    if s.rollout.batch_prompts:
        _divides(
            "rollout.prompts", s.rollout.prompts, "rollout.batch_prompts", s.rollout.batch_prompts
        )
    if s.rollout.prefill_prompts:
        at_once = s.rollout.batch_prompts or s.rollout.prompts
        _divides("prompts at once", at_once, "rollout.prefill_prompts", s.rollout.prefill_prompts)


def _check_rate(optimizer: OptimizerSettings) -> None:
    lowest, peak, share = optimizer.min_lr, optimizer.lr, optimizer.warmup_frac
    if lowest > peak:
        raise UserError(f"optimizer.min_lr: {lowest} is above optimizer.lr={peak}; set both")
    if share > 1:
        raise UserError(f"optimizer.warmup_frac: {share} is a share of the run, 0 to 1")


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


def _check_lora(model: ModelSettings) -> None:
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
    "optimizer.max_skipped": 0,
    "model.unroll": 0,
    "data.workers": 0,
    "data.processes": 0,
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
