"""Every setting of a run, with its default and unit, as frozen dataclasses.

`vlaa_jax.settle` makes them from a config file and checks them; nobody below asks for a default.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
