"""Groups of settings that tasks share; a task's settings are made of these and its own."""

from dataclasses import dataclass, field

from vlaa_jax.schema import VERIFIER_TYPES, UserError
from vlaa_jax.settings import by_source
from vlaa_jax.settings.fields import (
    Group,
    above,
    at_least,
    at_most,
    below,
    one_of,
    reads_as,
    setting,
    within,
)

DTYPES = ("float32", "bfloat16")
FREEZABLE = ("vision", "merger", "language", "embeddings")


@dataclass(frozen=True)
class LoraSettings(Group, name="model.lora"):
    """Low-rank adapters (arXiv 2106.09685) in place of training the weights themselves."""

    rank: int = setting(0, at_least(0))
    """Rank of the branches; 0 trains the weights."""
    alpha: float = setting(32.0, above(0))
    """A branch is scaled by alpha / rank."""
    modules: tuple[str, ...] = (
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    )
    """Linear maps of the decoder that get a branch."""
    vision_modules: tuple[str, ...] = ()
    """Linear maps of the vision tower and merger that get a branch: qkv, proj, gate_proj, up_proj,
    down_proj (Qwen2-VL: fc1, fc2), mlp_0, mlp_2."""

    def check(self) -> None:
        """Adapters go somewhere."""
        if self.rank and not (self.modules or self.vision_modules):
            raise UserError("model.lora.modules: no linear map is named, nothing would train")


@dataclass(frozen=True)
class ModelSettings(Group, name="model"):
    """Which checkpoint, and how to compute with it."""

    checkpoint: str = setting("", path=True)
    """HF directory, one of our checkpoints, a hub id, or "embedded" (the tiny default)."""
    dtype: str = setting("bfloat16", one_of(*DTYPES))
    """Activation dtype: float32 or bfloat16. Matrices that do not train are kept in it; what trains
    is float32, and so are its moments."""
    remat: str = setting("full", one_of("none", "dots", "full"))
    """What is computed again in the backward pass: "full" all of a layer, "dots" all but its
    products with weights, "none" nothing."""
    unroll: int = setting(1, at_least(0))
    """Unroll factor of the layer scans; 0 unrolls fully."""
    attention: str = setting("auto", one_of("auto", "dense", "blockwise", "splash"))
    """How attention over prompts, completions and images is computed: "dense" holds all scores,
    "blockwise" some at a time, "splash" is a kernel for TPU; "auto" takes what suits the devices
    and the length."""
    numerics: str = setting("plain", one_of("plain", "exact"))
    """"exact": float32 activations, whatever dtype says, and matrices read rounded to bfloat16 by
    sampler, scorer and gradients alike: their log-probabilities then differ by 1e-5 at most."""
    freeze: tuple[str, ...] = setting((), one_of(*FREEZABLE))
    """Parts that do not train: any of vision, merger, language, embeddings; not beside LoRA."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """With adapters, the base never trains."""

    @property
    def exact(self) -> bool:
        """Whether sampler and trainer agree to 1e-5."""
        return self.numerics == "exact"

    @property
    def activations(self) -> str:
        """Type of activations."""
        return "float32" if self.exact else self.dtype

    @property
    def matrices(self) -> str:
        """Type that products read of their matrices, and that those which do not train have."""
        return "bfloat16" if self.exact else self.dtype

    def check(self) -> None:
        """Something trains, and it is said in one place what does."""
        if set(self.freeze) >= set(FREEZABLE):
            raise UserError("model.freeze: every part is frozen, nothing would train")
        if self.lora.rank and self.freeze:
            raise UserError(
                "model.freeze: with model.lora the base never trains; choose what does with "
                "model.lora.modules and model.lora.vision_modules"
            )


@dataclass(frozen=True)
class DataSettings(Group, name="data"):
    """Records and images."""

    records: str = setting("", path=True)
    """Records file in the released form, conversations, Parquet, folder of a build or of a TFDS
    data set, or "embedded" (drawn by code); see docs/data.md."""
    image_root: str = setting("", path=True)
    """Folder that image paths are relative to; not needed where records bring their images."""
    heldout: str = setting("", path=True)
    """Held-out records; empty turns evaluation off."""
    columns: str = setting("", reads_as(by_source.columns))
    """Names that fields have in the records, as in "question=problem,gt=solution"; a text that a
    field gets where it is missing, as in "verifier_type:=math". Empty: their own."""
    system_prompt: str = ""
    """Empty leaves the system turn to the chat template."""
    vision_rows_per_bin: int = setting(0, at_least(0))
    """Rows of 64 patches per vision bin, at least those of the largest image; 0 lets the planner
    choose for each batch."""
    vision_bins_per_shard: int = setting(0, at_least(0))
    """Vision bins per data shard; 0 takes as many as a batch needs, rounded up on the ladder."""
    min_pixels: int = setting(0, at_least(0))
    """Area smaller images are enlarged to; 0 takes the checkpoint's preprocessor_config.json."""
    max_pixels: int = setting(0, at_least(0))
    """Area larger images are shrunk to; 0 takes the checkpoint's preprocessor_config.json."""
    bad_records: str = setting("stop", one_of("stop", "skip"), harmless=True)
    """"stop" before the first step where there are bad records, or "skip" and count them."""
    source_weights: str = setting("", reads_as(by_source.source_weights))
    """How often records of each source come, as in "vg=2,synthesis=1"; sources not named do not
    come at all. Empty: every record once an epoch."""
    embedded_train: int = setting(2000, at_least(1))
    """Training records drawn where records is "embedded"."""
    embedded_heldout: int = setting(200, at_least(1))
    """Held-out records drawn where records is "embedded"."""
    workers: int = setting(2, at_least(0), harmless=True)
    """Threads that decode and encode images."""

    def check(self) -> None:
        """Where records come from, and how large their images are, is said once."""
        if self.records == "embedded" and (self.heldout or self.image_root):
            raise UserError("data.heldout and data.image_root: embedded records bring their own")
        if self.max_pixels and self.min_pixels > self.max_pixels:
            raise UserError(f"data.min_pixels: {self.min_pixels} is above data.max_pixels")


@dataclass(frozen=True)
class PromptSettings(DataSettings):
    """Records whose questions the policy answers itself."""

    max_prompt_tokens: int = setting(2048, at_least(1))
    """Longest prompt, image tokens included; a longer one is a bad record, nothing is cut."""
    min_prompt_bucket: int = setting(64, at_least(1))
    """Smallest padded prompt length; larger ones come from the ladder."""
    verifier_types: tuple[str, ...] = setting((), one_of(*VERIFIER_TYPES))
    """Only records of these are used: any of digit, mcq, math, iou, open_ended, custom; empty takes
    all."""
    box_space: str = setting("", reads_as(by_source.box_spaces))
    """Space of iou boxes that do not name their own: one of BOX_SPACES, or one per source, as in
    "vg=normalized_square,coco=normalized". Empty: "normalized", or what a build was told."""


@dataclass(frozen=True)
class RolloutSettings(Group, name="rollout"):
    """Sampling. The checkpoint's generation_config is never inherited."""

    prompts: int = setting(512, at_least(1))
    """Prompts per rollout."""
    completions: int = setting(4, at_least(2))
    """Completions per prompt (the group size)."""
    max_new_tokens: int = setting(1024, at_least(1))
    """Longest completion in tokens; one that has not ended by then is truncated."""
    temperature: float = setting(0.8, above(0))
    """Divides the logits, of sampler and trainer alike; above 0."""
    top_p: float = setting(1.0, above(0), at_most(1))
    """Mass of the likeliest tokens that are drawn from, above 0; 1 keeps all."""
    top_k: int = setting(0, at_least(0))
    """Number of likeliest tokens that are drawn from; 0 keeps all."""
    min_p: float = setting(0.0, within(0, 1))
    """Tokens below this share of the likeliest one's probability are not drawn; 0 keeps all."""
    tensor: int = setting(0, at_least(0))
    """Parts that heads and feed-forward columns are cut into while sampling, a multiple of
    mesh.tensor; 0 takes that. Where the whole weights do not fit beside the training state."""
    batch_prompts: int = setting(0, at_least(0))
    """Prompts decoded at once; 0 decodes all together."""
    prefill_prompts: int = setting(0, at_least(0))
    """Prompts whose prefixes are computed at once, and that take over freed places together; 0
    takes batch_prompts."""
    burst: int = setting(0, at_least(0))
    """Tokens decoded between two looks for finished completions; 0 decodes to the end in one go."""

    @property
    def is_cut(self) -> bool:
        """Whether unlikely tokens are left out."""
        return self.top_p < 1 or bool(self.top_k) or bool(self.min_p)

    @property
    def at_once(self) -> int:
        """Prompts whose prefixes are computed at once."""
        return self.prefill_prompts or self.batch_prompts or self.prompts


@dataclass(frozen=True)
class OptimizerSettings(Group, name="optimizer"):
    """AdamW with linear warm-up and cosine decay to a floor."""

    lr: float = setting(1e-6, at_least(0))
    """Peak learning rate."""
    min_lr: float = setting(5e-7, at_least(0))
    """Rate at the end of the cosine; at most lr."""
    warmup_frac: float = setting(0.03, within(0, 1))
    """Share of all updates over which the rate rises from 0 to lr, 0 to 1."""
    b1: float = setting(0.9, at_least(0), below(1))
    """Decay of the mean of gradients, from 0 to below 1."""
    b2: float = setting(0.95, at_least(0), below(1))
    """Decay of the mean of squared gradients, from 0 to below 1."""
    eps: float = setting(1e-8, above(0))
    """Added to the root of the second moment."""
    weight_decay: float = setting(0.0, at_least(0))
    """Decoupled weight decay, times the rate; of every trained parameter."""
    grad_clip: float = setting(1.0, at_least(0))
    """Bound of the global gradient norm; 0 turns it off."""
    max_skipped: int = setting(10, at_least(0), harmless=True)
    """Updates with non-finite gradients before the run stops."""

    def check(self) -> None:
        """The rate falls."""
        if self.min_lr > self.lr:
            raise UserError(
                f"optimizer.min_lr: {self.min_lr} is above optimizer.lr={self.lr}; set both"
            )


@dataclass(frozen=True)
class MeshSettings(Group, name="mesh"):
    """Sizes of the mesh axes; their product is the number of devices.

    A run may be resumed with others: sums are then taken in another order, and rows of supervised
    data may be packed otherwise from there on.
    """

    data: int = setting(-1, at_least(-1), harmless=True)
    """Copies of the parameters, each with its share of the prompts; -1 takes what is left."""
    fsdp: int = setting(1, at_least(1), harmless=True)
    """Parts that parameters and optimizer state are cut into; prompts are dealt to them too."""
    tensor: int = setting(1, at_least(1), harmless=True)
    """Parts that heads and feed-forward columns are cut into."""
    slices: int = setting(0, at_least(0), harmless=True)
    """Slices (or groups of hosts) with a slow network between them, which data alone goes across;
    0 takes what the devices say."""

    def check(self) -> None:
        """Sizes are sizes."""
        if not self.data:
            raise UserError("mesh.data: 0 is not a size; -1 takes what the other axes leave")


@dataclass(frozen=True)
class RunSettings(Group, name="run"):
    """Length of the run and what it writes."""

    steps: int = setting(49, at_least(0))
    """Steps: of GRPO, rollouts with all their updates; of SFT, updates (0: data.epochs says)."""
    save_every: int = setting(10, at_least(1), harmless=True)
    """Steps between checkpoints; the last step and a new best by held-out reward are saved too."""
    keep_checkpoints: int = setting(2, at_least(1), harmless=True)
    """How many of the newest checkpoints stay; the best stays beside them."""
    eval_every: int = setting(0, at_least(0))
    """Steps between evaluations on held-out records; 0 evaluates before and after only."""
    eval_completions: int = setting(1, at_least(1))
    """Completions per held-out record (mean@n, pass@n)."""
    log_rollouts_every: int = setting(1, at_least(0), harmless=True)
    """Steps between recorded rollouts; 0 records none. Held-out answers are always recorded."""
    wandb: str = setting("", harmless=True)
    """Project of Weights & Biases that gets the metrics too; empty: none."""
    damaged: str = setting("stop", one_of("stop", "older"), harmless=True)
    """What to do where the newest checkpoint is damaged: "stop", or go on from an "older" one."""
    compilation_cache: str = setting("~/.cache/vlaa_jax/xla", harmless=True)
    """Folder of the persistent compilation cache; empty turns it off."""

    def logs_rollouts(self, step: int) -> bool:
        """Whether this step's completions are written."""
        return bool(self.log_rollouts_every) and step % self.log_rollouts_every == 0
