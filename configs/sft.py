"""SFT as in VLAA-Thinker (arXiv 2504.11468, section 3.1): one epoch, the vision tower frozen.

    python -m vlaa_jax.main --config=configs/sft.py:3b,25k --workdir=runs/sft-3b \
        --config.data.records=top-25000.json --config.data.image_root=images

Variants, after a colon; several with commas, applied in the order of this list.

    3b 7b          Qwen2.5-VL-Instruct, cut over 8 and 16 devices (configs/grpo.py), 16 rows at once
    2vl-2b 2vl-7b  Qwen2-VL-Instruct, likewise
    25k 126k aha   how much is learnt: the 25K of highest perplexity (configs/perplexity.py writes
                   them), everything, or the 55K answers with aha cues; each is a file of its own:
                   give it as data.records
    lora           low-rank adapters on all linear maps of the decoder
    tiny           embedded checkpoint and data; a laptop CPU, a minute or two
    base           what makes the embedded checkpoint, from random weights; it is run by
                   converters/tiny_checkpoint.py, which draws its records
    small          embedded checkpoint, own photos of any size: give data.records, data.image_root

The paper trains 190 updates of 128 samples on 25K and 985 on 126K. Here samples are packed into
rows of a fixed length, so an update holds about 128 of them, and one pass over the data ends the
run. GRPO after it is `configs/grpo.py` with `--config.model.checkpoint=RUN`.

Values marked (inferred) are not published.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import grpo


def get_config(variant: str = "") -> ConfigDict:
    """The paper's recipe, or variants of it.

    Raises:
        ValueError: a variant that does not exist, or two that exclude each other.
    """
    return grpo.with_variants("configs/sft.py", _paper(), variant, VARIANTS, EXCLUSIVE)


def _paper() -> ConfigDict:
    base = grpo.get_config().to_dict()  # what both tasks share is said there
    rollout = {**base["rollout"], "prompts": 64, "batch_prompts": 64, "temperature": 0.8}
    return ConfigDict(
        {
            "task": "sft",
            "seed": 0,
            "logprob_chunk": 0,
            "model": {**base["model"], "freeze": ("vision",)},  # (inferred) the merger trains
            "data": {
                **base["data"],
                "validation": "",
                "tokens_per_row": 4096,  # (inferred)
                "rows": 32,  # (inferred) about 128 samples of 1,000 tokens
                "micro_rows": 0,
                "epochs": 1.0,
            },
            "optimizer": {
                **base["optimizer"],
                "lr": 1e-5,  # (inferred)
                "min_lr": 1e-6,  # (inferred)
                "warmup_frac": 0.03,  # (inferred)
            },
            "mesh": base["mesh"],
            "benchmarks": base["benchmarks"],
            "judge": base["judge"],
            "run": {**base["run"], "steps": 0, "save_every": 50},
            "rollout": rollout,  # of held-out questions
            "rewards": base["rewards"],
        }
    )


def _tiny(config: ConfigDict) -> None:
    """The same code on drawn images and a 1.2-million-parameter model."""
    base = grpo.get_config("tiny")
    config.model.update(base.model.to_dict() | {"freeze": ("vision",)})
    kept = ("validation", "tokens_per_row", "rows", "micro_rows", "epochs")
    config.data.update({k: v for k, v in base.data.to_dict().items() if k not in kept})
    config.data.update(tokens_per_row=512, rows=4, embedded_train=1000)
    config.rollout.update(base.rollout.to_dict() | {"prompts": 16})
    config.optimizer.update(lr=5e-4, min_lr=5e-5)
    config.run.update(save_every=10, eval_completions=4)
    config.rewards.update(base.rewards.to_dict())


def _base(config: ConfigDict) -> None:
    """From random weights, so everything trains, at a rate for a narrow model."""
    _tiny(config)
    config.model.freeze = ()
    config.data.update(records="", tokens_per_row=384, rows=8, epochs=2.0)
    config.optimizer.update(lr=2.5e-3, min_lr=5e-5, b2=0.98, weight_decay=0.02)
    config.run.save_every = 200


def _small(config: ConfigDict) -> None:
    """The embedded checkpoint on photos of one's own, on a laptop."""
    _tiny(config)
    base = grpo.get_config("small")
    for name in ("records", "max_pixels", "vision_rows_per_bin", "vision_bins_per_shard"):
        config.data[name] = base.data[name]
    config.data.update(max_prompt_tokens=512, min_prompt_bucket=128, tokens_per_row=1024)


def _all(config: ConfigDict) -> None:
    """Every record of the released file; the default, named."""


def _subset(config: ConfigDict) -> None:
    """The records of highest perplexity: a file that configs/perplexity.py writes."""
    config.run.save_every = 20


def _lora(config: ConfigDict) -> None:
    grpo.VARIANTS["lora"](config)
    config.model.freeze = ()  # the base never trains: the adapters' modules say what does
    if config.data.records != "embedded":
        config.optimizer.update(lr=1e-4, min_lr=1e-5)  # (inferred)


VARIANTS: dict[str, Callable[[ConfigDict], None]] = {
    **{name: grpo.VARIANTS[name] for name in ("3b", "7b", "2vl-2b", "2vl-7b")},
    "tiny": _tiny,
    "base": _base,
    "small": _small,
    "25k": _subset,
    "126k": _all,
    "aha": _all,
    "lora": _lora,
}
EXCLUSIVE = ({"3b", "7b", "2vl-2b", "2vl-7b", "tiny", "base", "small"}, {"25k", "126k", "aha"})
