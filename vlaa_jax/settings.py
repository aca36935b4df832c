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
    """Activation dtype: float32 or bfloat16."""
    param_dtype: str = "float32"
    """Dtype of the trained weights, float32 or bfloat16; the optimizer's moments follow it."""
    remat: str = "full"
    """What is computed again in the backward pass: "full" all of a layer, "dots" all but its
    products with weights, "none" nothing."""
    unroll: int = 1
    """Unroll factor of the layer scans; 0 unrolls fully."""
    freeze: tuple[str, ...] = ()
    """Parts that do not train: any of vision, merger, language, embeddings; not beside LoRA."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """With adapters, the base is kept in `dtype` and never trains."""


@dataclass(frozen=True)
class DataSettings:
    """Records and images."""

    records: str = ""
    """Records file in the released form, folder of a build, or "embedded" (drawn by code)."""
    image_root: str = ""
    """Folder that image paths are relative to."""
    heldout: str = ""
    """Held-out records; empty turns evaluation off."""
    system_prompt: str = ""
    """Empty leaves the system turn to the chat template."""
    max_prompt_tokens: int = 2048
    """Longest prompt, image tokens included; a longer one is a bad record, nothing is cut."""
    min_prompt_bucket: int = 64
    """Smallest padded prompt length; larger ones come from the ladder."""
    vision_rows_per_bin: int = 0
    """Rows of 64 patches per vision bin, at least those of the largest image; 0 lets the planner
    choose for each batch."""
    vision_bins_per_shard: int = 0
    """Vision bins per data shard; 0 takes as many as a batch needs, rounded up on the ladder."""
    min_pixels: int = 0
    """Area smaller images are enlarged to; 0 takes the checkpoint's preprocessor_config.json."""
    max_pixels: int = 0
    """Area larger images are shrunk to; 0 takes the checkpoint's preprocessor_config.json."""
    bad_records: str = "stop"
    """"stop" at the first bad record, or "skip" and count them."""
    verifier_types: tuple[str, ...] = ()
    """Only records of these are used: any of digit, mcq, math, iou, open_ended; empty takes all."""
    box_space: str = ""
    """Space of iou boxes that do not name their own: one of BOX_SPACES, or one per source, as in
    "vg=normalized_square,coco=normalized". Empty: "normalized", or what a build was told."""
    source_weights: str = ""
    """How often records of each source come, as in "vg=2,synthesis=1"; sources not named do not
    come at all. Empty: every record once an epoch."""
    embedded_train: int = 2000
    """Training records drawn where records is "embedded"."""
    embedded_heldout: int = 200
    """Held-out records drawn where records is "embedded"."""
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
    """Longest completion in tokens; one that has not ended by then is truncated."""
    temperature: float = 0.8
    """Divides the logits, of sampler and trainer alike; above 0."""
    top_p: float = 1.0
    """Mass of the likeliest tokens that are drawn from, above 0; 1 keeps all."""
    top_k: int = 0
    """Number of likeliest tokens that are drawn from; 0 keeps all."""
    min_p: float = 0.0
    """Tokens below this share of the likeliest one's probability are not drawn; 0 keeps all."""
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
    """grpo, mean_only (Dr. GRPO), leave_one_out (RLOO) or batch_std; see docs/losses.md."""
    loss: str = "clip"
    """clip (PPO's ratio per token), gspo (ratio per sequence) or cispo (clipped weight)."""
    clip_low: float = 0.2
    """The ratio is clipped at 1 - clip_low; above 0 (cispo: or 0), for gspo at most 0.01."""
    clip_high: float = 0.2
    """The ratio is clipped at 1 + clip_high; as clip_low."""
    dual_clip: float = 0.0
    """Bound of the ratio for negative advantages, above 1 and for clip alone; 0 turns it off."""
    aggregation: str = "sequence_mean"
    """sequence_mean (the only one of gspo), token_mean or constant_length."""
    kl_estimator: str = "k3"
    """k2 or k3, or with kl_in_reward k1 as well."""
    kl_coef: float = 1e-3
    """Initial KL coefficient; 0 drops the reference model."""
    kl_target: float = 5e-4
    """Target of the adaptive controller; 0 keeps the coefficient fixed."""
    kl_horizon: float = 10_000.0
    """Sequences over which the controller acts; fewer make it quicker. At least 1."""
    kl_in_reward: bool = False
    """Subtract the KL from the reward instead of adding it to the loss."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus; 0 leaves it out, a negative one punishes entropy."""
    importance_cap: float = 0.0
    """Cap of truncated sampler/trainer importance weights; 0 turns them off."""
    dynamic_sampling: int = 0
    """Most further rollouts of a step that replace groups with equal rewards; 0 keeps all."""
    mask_truncated: bool = False
    """Leave completions that hit the token limit out of the loss."""
    updates_per_rollout: int = 8
    """Optimizer updates per step, each on an equal share of the prompts; 1 is on-policy."""
    micro_prompts: int = 0
    """Prompts per gradient-accumulation step; 0 takes a whole update at once."""
    logprob_chunk: int = 1024
    """Tokens whose logits over the vocabulary exist at the same time, over all devices; 0 takes as
    many as make 2^26 logits on a data shard."""


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW with linear warm-up and cosine decay to a floor."""

    lr: float = 1e-6
    """Peak learning rate."""
    min_lr: float = 5e-7
    """Rate at the end of the cosine; at most lr."""
    warmup_frac: float = 0.03
    """Share of all updates over which the rate rises from 0 to lr, 0 to 1."""
    b1: float = 0.9
    """Decay of the mean of gradients, from 0 to below 1."""
    b2: float = 0.95
    """Decay of the mean of squared gradients, from 0 to below 1."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay, times the rate; of every trained parameter."""
    grad_clip: float = 1.0
    """Bound of the global gradient norm; 0 turns it off."""
    max_skipped: int = 10
    """Updates with non-finite gradients before the run stops."""


@dataclass(frozen=True)
class MeshSettings:
    """Sizes of the mesh axes; their product is the number of devices."""

    data: int = -1
    """Copies of the parameters, each with its share of the prompts; -1 takes what is left."""
    fsdp: int = 1
    """Parts that parameters and optimizer state are cut into; prompts are dealt to them too."""
    tensor: int = 1
    """Parts that heads and feed-forward columns are cut into."""


@dataclass(frozen=True)
class RunSettings:
    """Length of the run and what it writes."""

    steps: int = 49
    """Rollouts (a step is one rollout with all its updates)."""
    save_every: int = 10
    """Steps between checkpoints; the last step and a new best by held-out reward are saved too."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay; the best stays beside them."""
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
    """grpo, the only one so far."""
    seed: int = 0
    """Of sampling, the order of records and new adapters; 0 to 2^32 - 1."""
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    algo: AlgoSettings = field(default_factory=AlgoSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    mesh: MeshSettings = field(default_factory=MeshSettings)
    run: RunSettings = field(default_factory=RunSettings)
    rewards: Mapping[str, Any] = field(default_factory=dict)
    """Options of the mixed reward; `vlaa_jax.rewards` checks them against its own dataclass."""
