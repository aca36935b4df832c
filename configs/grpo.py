"""GRPO as in VLAA-Thinker (arXiv 2504.11468), final recipe: LR2 + KL2.

    python -m vlaa_jax.main --config=configs/grpo.py:3b --workdir=runs/grpo-3b \
        --config.data.records=VLAA-Thinking-GRPO-25K.json --config.data.image_root=images \
        --config.rewards.endpoint_url=http://HOST:PORT

Variants, after a colon; several with commas (`:7b,rule-only`), in any order: they are applied in
the order of this list, `tiny` after the models. One model and one of dapo, drgrpo, gspo at most.

    3b 7b      Qwen2.5-VL-Instruct      paper: average of six benchmarks 31.8 -> 35.4, 40.1 -> 42.5
    2vl-2b     Qwen2-VL-2B-Instruct     paper: 20.5 -> 20.3
    2vl-7b     Qwen2-VL-7B-Instruct     paper: 28.8 -> 32.5
    rule-only  without open-ended records and their reward model (paper, ablation on 3B, three
               benchmarks: 29.1 instead of 31.5); 39 rollouts are one pass over what is left
    dapo       arXiv 2503.14476: higher upper clip, token mean, no KL, groups without signal
               replaced, over-long answers paid less
    drgrpo     arXiv 2503.20783: no division by the standard deviation, constant length, no KL
    gspo       arXiv 2507.18071: ratio of whole sequences, no KL
    lora       low-rank adapters on all linear maps of the decoder; the base is the reference
    tiny       embedded checkpoint and data; a laptop CPU, about five minutes
    small      embedded checkpoint, own photos of any size: give data.records and data.image_root

Paper: 8 x H100, 49 rollouts of 512 prompts x 4 completions. Planned, not measured: a framework of
that kind answers and learns from about 2.2-2.7 responses per second on an H100 at 7B (EasyR1's
published numbers), so the 100,352 responses of a run take 5 hours or so on 8 H100 at 7B and 2 to 3
at 3B; expect the same order from a TPU v5p-16. Nothing larger than `tiny` has been run with this
code on an accelerator yet.

Models bring a mesh and batch sizes that fit by the planner (docs/planning.md, with the flags for
other devices): 3b and 2vl-2b are cut over 8 devices (TPU v6e-8, v5e-16, 8 x H100 or H200), 7b and
2vl-7b over 16 (v6e-16, v5p-32); more devices are copies, if 16 prompts can be dealt to them all.
Elsewhere say so: `--config.mesh.fsdp=1 --config.rollout.batch_prompts=64
--config.algo.micro_prompts=4` is 3B on one H200, `--config.mesh.fsdp=8` is 7B on eight.

Values marked (inferred) are not published; they are the defaults of the framework family the
authors adapted.
"""

from collections.abc import Callable

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

SYSTEM_PROMPT = (
    "You are VL-Thinking🤔, a helpful assistant with excellent reasoning ability. A user asks you "
    "a question, and you should try to solve it. You should first think about the reasoning "
    "process in the mind and then provides the user with the answer. The reasoning process and "
    "answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., "
    "<think> reasoning process here </think> <answer> answer here </answer>"
)
TINY_SYSTEM_PROMPT = "Think inside <think> </think>, then answer inside <answer> </answer>."

_MODEL = {
    "checkpoint": "",
    "dtype": "bfloat16",  # (inferred)
    "remat": "full",
    "unroll": 1,
    "attention": "auto",
    "numerics": "plain",
    "freeze": (),  # (inferred) the framework trains everything
    "lora": {
        "rank": 0,  # 0: train the weights themselves
        "alpha": 32.0,
        "modules": (
            *("q_proj", "k_proj", "v_proj", "o_proj"),
            *("gate_proj", "up_proj", "down_proj"),
        ),
        "vision_modules": (),
    },
}

_DATA = {
    "records": "",
    "image_root": "",
    "heldout": "",
    "columns": "",  # the records' own; see docs/data.md
    "system_prompt": SYSTEM_PROMPT,
    "max_prompt_tokens": 2048,  # (inferred)
    "min_prompt_bucket": 256,
    # Holds any image of max_pixels, whatever its shape; one size, one set of programs.
    "vision_rows_per_bin": 32,
    "vision_bins_per_shard": 0,
    "min_pixels": 0,
    "max_pixels": 262_144,  # (inferred) pixels, the paper's evaluation limit
    "bad_records": "stop",
    "verifier_types": (),  # all
    "box_space": "",  # normalized; see docs/data.md on vg
    "source_weights": "",  # every record once an epoch
    "embedded_train": 1000,
    "embedded_heldout": 200,
    "workers": 8,
}

_ROLLOUT = {
    "prompts": 512,  # (inferred) the paper's batch of 512, taken as prompts
    "completions": 4,
    "max_new_tokens": 1024,  # (inferred)
    "temperature": 0.8,
    "top_p": 1.0,  # (inferred)
    "top_k": 0,
    "min_p": 0.0,
    "tensor": 0,  # as mesh.tensor; 7B on v5e wants 2
    "batch_prompts": 64,
    "prefill_prompts": 16,
    "burst": 64,
}

_ALGO = {
    "advantage": "grpo",  # (inferred) mean and standard deviation of the group
    "loss": "clip",
    "clip_low": 0.2,  # (inferred)
    "clip_high": 0.2,  # (inferred)
    "dual_clip": 0.0,
    "aggregation": "sequence_mean",
    "kl_estimator": "k3",  # (inferred)
    "kl_coef": 1e-3,
    "kl_target": 5e-4,
    "kl_horizon": 10_000.0,  # (inferred)
    "kl_in_reward": False,
    "entropy_coef": 0.0,
    "importance_cap": 0.0,
    "dynamic_sampling": 0,
    "mask_truncated": False,
    "epochs": 1,
    "updates_per_rollout": 8,  # (inferred) 512 x 4 responses in batches of 256
    "micro_prompts": 16,
    "logprob_chunk": 0,
}

_OPTIMIZER = {
    "lr": 1e-6,  # (inferred) peak
    "min_lr": 5e-7,
    "warmup_frac": 0.03,
    "b1": 0.9,  # (inferred)
    "b2": 0.95,  # (inferred)
    "eps": 1e-8,  # (inferred)
    "weight_decay": 0.0,  # (inferred)
    "grad_clip": 1.0,  # (inferred)
    "max_skipped": 10,
}

_BENCHMARKS = {  # where the held-out records are looked at; docs/evaluation.md
    "root": "",  # none
    "names": (
        *("mathvista", "mathvision", "mathverse"),
        *("dynamath", "wemath", "logicvista"),
    ),
    "limit": 64,
    "check_digest": True,
    "new_tokens": 800,
    "batch": 16,
}

_RUN = {
    "steps": 49,
    "save_every": 5,
    "keep_checkpoints": 2,
    "wandb": "",  # a project; WANDB_MODE=offline needs no network
    "damaged": "stop",  # "older": go on from the newest checkpoint that is sound
    "eval_every": 0,
    "eval_completions": 1,
    "log_rollouts_every": 1,
    "compilation_cache": "~/.cache/vlaa_jax/xla",
}

_REWARDS = {
    "open_ended": "score_endpoint",
    "beta": 0.2,  # (inferred)
    "endpoint_url": "",
    "endpoint_model": "",
    "endpoint_key_env": "VLAA_REWARD_API_KEY",
    "endpoint_concurrency": 8,
    "endpoint_timeout_s": 60.0,
    "endpoint_retries": 3,
    "endpoint_backoff_s": 0.5,
    "endpoint_batch": 8,
    "endpoint_images": True,
    "endpoint_max_tokens": 64,
    "head_checkpoint": "",  # with open_ended "reward_head": its model,
    "head_file": "",  # and its weight, a safetensors file
    "head_batch": 8,
    "head_max_pixels": 0,  # 0: the checkpoint's own
    "head_max_tokens": 4096,
    "cache_entries": 100_000,
    "math_workers": 4,
    "math_timeout_s": 5.0,
    "custom": "",  # FILE.py:function, for records of the type "custom"
    "custom_timeout_s": 60.0,
    "custom_batch": 64,
    "max_failed_frac": 0.1,
    "format_weight": 0.0,
    "overlong_weight": 0.0,
    "overlong_buffer": 256,
    "repetition_weight": 0.0,
    "repetition_ngram": 20,
}

JUDGE = {
    "url": "",
    "model": "gpt-4o-mini-2024-07-18",
    "key_env": "OPENAI_API_KEY",
    "temperature": 0.0,
    "repeat": 0,
    "replies": "",
    "rules_only": False,
    "max_failed": 0.02,
    "concurrency": 8,
    "timeout_s": 60.0,
    "retries": 3,
}
"""Who reads the benchmark answers that rules cannot read."""


def get_config(variant: str = "") -> ConfigDict:
    """The paper's recipe, or variants of it.

    Raises:
        ValueError: a variant that does not exist, or two that exclude each other.
    """
    return with_variants("configs/grpo.py", _paper(), variant, VARIANTS, EXCLUSIVE)


def with_variants(
    file: str,
    config: ConfigDict,
    variant: str,
    variants: dict[str, Callable[[ConfigDict], None]],
    exclusive: tuple[set[str], ...],
) -> ConfigDict:
    """The config with named variants, applied in the order of the table.

    Raises:
        ValueError: a variant that does not exist, or two that exclude each other.
    """
    names = [name.strip() for name in variant.split(",") if name.strip()]
    for name in names:
        if name not in variants:
            known = ", ".join(sorted(variants))
            raise ValueError(f"{file} has no variant {name!r}; known: {known}")
    for group in exclusive:
        if len(both := sorted(group & set(names))) > 1:
            raise ValueError(f"{file}: choose one of {' and '.join(both)}, not both")
    for name, change in variants.items():
        if name in names:
            change(config)
    return config


def _paper() -> ConfigDict:
    return ConfigDict(
        {
            "task": "grpo",
            "seed": 0,
            "model": _MODEL,
            "data": _DATA,
            "rollout": _ROLLOUT,
            "algo": _ALGO,
            "optimizer": _OPTIMIZER,
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "slices": 0},
            "benchmarks": _BENCHMARKS,
            "judge": JUDGE,  # of benchmarks
            "run": _RUN,
            # None: the space of the gold; "native": of the model's family.
            "rewards": {**_REWARDS, "answer_box_space": placeholder(str)},
        }
    )


def _tiny(config: ConfigDict) -> None:
    """The same code on drawn images and a 1.2-million-parameter base model."""
    config.model.update(checkpoint="embedded", dtype="float32", remat="none", unroll=0)
    config.data.update(
        records="embedded",
        system_prompt=TINY_SYSTEM_PROMPT,
        min_prompt_bucket=96,
        vision_rows_per_bin=2,
        vision_bins_per_shard=16,
        max_pixels=0,
        max_prompt_tokens=96,
        workers=1,
    )
    config.rollout.update(
        prompts=16,
        completions=8,
        max_new_tokens=48,
        temperature=1.0,
        batch_prompts=0,
        prefill_prompts=0,
        burst=0,
    )
    config.algo.update(updates_per_rollout=1, micro_prompts=0, kl_target=0.0)
    config.optimizer.update(lr=4e-4, min_lr=5e-5, b2=0.99)
    config.run.update(steps=120, save_every=20, eval_completions=4)
    config.rewards.update(open_ended="text_similarity", math_workers=2)


def _small(config: ConfigDict) -> None:
    """The embedded checkpoint on photos of one's own, on a laptop."""
    _tiny(config)
    config.data.update(
        records="",
        max_pixels=50_176,  # 224 x 224: 64 image tokens, and up to 110 of a strip
        vision_rows_per_bin=8,  # holds any image of max_pixels
        vision_bins_per_shard=0,
        max_prompt_tokens=512,
        min_prompt_bucket=128,
    )
    config.rollout.update(prompts=8, completions=4)
    config.run.update(steps=20, save_every=10)


def _model(checkpoint: str, fsdp: int) -> Callable[[ConfigDict], None]:
    """A released model, and the least parts that its training is cut into where it fits."""

    def change(config: ConfigDict) -> None:
        config.model.checkpoint = checkpoint
        config.mesh.fsdp = fsdp
        if config.task == "grpo":
            # Free rows wait for the longest answer of their group; with many slots that is cheap.
            config.rollout.update(batch_prompts=128, prefill_prompts=16)
            config.algo.micro_prompts = 16
        else:
            config.data.micro_rows = 16

    return change


def _rule_only(config: ConfigDict) -> None:
    config.data.verifier_types = ("digit", "mcq", "math", "iou")
    config.rewards.open_ended = "none"  # nothing asks it
    if config.data.records != "embedded":
        config.run.steps = 39  # (inferred) one pass over 20,195 records, as 49 over 25,195


def _dapo(config: ConfigDict) -> None:
    config.algo.update(
        clip_high=0.28,
        aggregation="token_mean",
        kl_coef=0.0,
        kl_target=0.0,
        dynamic_sampling=3,  # (inferred) cap on further rollouts
    )
    buffer = max(config.rollout.max_new_tokens // 5, 1)  # the paper's share: 4096 of 20480 tokens
    config.rewards.update(overlong_weight=1.0, overlong_buffer=buffer)


def _drgrpo(config: ConfigDict) -> None:
    config.algo.update(
        advantage="mean_only", aggregation="constant_length", kl_coef=0.0, kl_target=0.0
    )


def _gspo(config: ConfigDict) -> None:
    config.algo.update(
        loss="gspo",
        aggregation="sequence_mean",
        clip_low=3e-4,
        clip_high=4e-4,
        kl_coef=0.0,
        kl_target=0.0,
    )


def _lora(config: ConfigDict) -> None:
    config.model.lora.update(rank=64, alpha=128.0)  # (inferred)
    if config.data.records != "embedded":  # whose rate is large already
        config.optimizer.update(lr=1e-5, min_lr=5e-6)  # (inferred) adapters take larger steps


VARIANTS: dict[str, Callable[[ConfigDict], None]] = {
    "3b": _model("Qwen/Qwen2.5-VL-3B-Instruct", fsdp=8),
    "7b": _model("Qwen/Qwen2.5-VL-7B-Instruct", fsdp=16),
    "2vl-2b": _model("Qwen/Qwen2-VL-2B-Instruct", fsdp=8),
    "2vl-7b": _model("Qwen/Qwen2-VL-7B-Instruct", fsdp=16),
    "tiny": _tiny,
    "small": _small,
    "rule-only": _rule_only,
    "dapo": _dapo,
    "drgrpo": _drgrpo,
    "gspo": _gspo,
    "lora": _lora,
}
EXCLUSIVE = (
    {"3b", "7b", "2vl-2b", "2vl-7b", "tiny", "small"},
    {"dapo", "drgrpo", "gspo"},
)
