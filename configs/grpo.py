"""GRPO as in VLAA-Thinker (arXiv 2504.11468), final recipe: LR2 + KL2.

    python -m vlaa_jax.main --config=configs/grpo.py --workdir=runs/grpo \
        --config.model.checkpoint=Qwen/Qwen2.5-VL-3B-Instruct \
        --config.data.records=VLAA-Thinking-GRPO-25K.json --config.data.image_root=images \
        --config.rewards.endpoint_url=http://HOST:PORT

Variants, after a colon:
    tiny    embedded checkpoint and data; a laptop CPU, about five minutes

Paper: 8 x H100, 49 rollouts of 512 prompts x 4 completions; Qwen2.5-VL-3B goes from 31.8 to 35.4
on the average of the six benchmarks. Values marked (inferred) are not published; they are the
defaults of the framework family the authors adapted.
"""

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


def get_config(variant: str = "") -> ConfigDict:
    """The paper's recipe, or a variant of it."""
    config = _paper()
    if variant == "tiny":
        _tiny(config)
    elif variant:
        raise ValueError(f"configs/grpo.py has no variant {variant!r}; known: tiny")
    return config


def _paper() -> ConfigDict:
    return ConfigDict(
        {
            "task": "grpo",
            "seed": 0,
            "model": {
                "checkpoint": "",
                "dtype": "bfloat16",
                "param_dtype": "float32",
                "remat": "full",
                "unroll": 1,
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
            },
            "data": {
                "records": "",
                "image_root": "",
                "heldout": "",
                "system_prompt": SYSTEM_PROMPT,
                "max_prompt_tokens": 2048,  # (inferred)
                "min_prompt_bucket": 256,
                "vision_rows_per_bin": 0,
                "vision_bins_per_shard": 0,
                "min_pixels": 0,
                "max_pixels": 262_144,  # (inferred) pixels, the paper's evaluation limit
                "bad_records": "stop",
                "embedded_train": 1000,
                "embedded_heldout": 200,
                "workers": 8,
            },
            "rollout": {
                "prompts": 512,
                "completions": 4,
                "max_new_tokens": 1024,  # (inferred)
                "temperature": 0.8,
                "top_p": 1.0,  # (inferred)
                "top_k": 0,
                "min_p": 0.0,
                "batch_prompts": 64,
                "prefill_prompts": 16,
                "burst": 64,
            },
            "algo": {
                "advantage": "grpo",
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
                "updates_per_rollout": 8,  # 512 x 4 responses in batches of 256
                "micro_prompts": 16,
                "logprob_chunk": 0,
            },
            "optimizer": {
                "lr": 1e-6,  # (inferred) peak
                "min_lr": 5e-7,
                "warmup_frac": 0.03,
                "b1": 0.9,  # (inferred)
                "b2": 0.95,  # (inferred)
                "eps": 1e-8,  # (inferred)
                "weight_decay": 0.0,  # (inferred)
                "grad_clip": 1.0,  # (inferred)
                "max_skipped": 10,
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "run": {
                "steps": 49,
                "save_every": 5,
                "keep_checkpoints": 2,
                "eval_every": 0,
                "eval_completions": 1,
                "log_rollouts_every": 1,
                "compilation_cache": "~/.cache/vlaa_jax/xla",
            },
            "rewards": {
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
                "cache_entries": 100_000,
                "math_workers": 4,
                "math_timeout_s": 5.0,
                "answer_box_space": placeholder(str),  # None: the space of the gold box
                "max_failed_frac": 0.1,
                "format_weight": 0.0,
                "overlong_weight": 0.0,
                "overlong_buffer": 256,
                "repetition_weight": 0.0,
                "repetition_ngram": 20,
            },
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
