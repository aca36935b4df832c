"""Records of highest answer perplexity: the SFT subsets of VLAA-Thinker (arXiv 2504.11468, 3.1).

    python -m vlaa_jax.main --config=configs/perplexity.py --workdir=runs/perplexity \
        --config.data.records=VLAA-Thinking-SFT-126K.json --config.data.image_root=images

Writes perplexity.jsonl (all records, ranked), top-25000.json and so on in the released form, and
distribution.png. The same command goes on after a stop. Variants, after a colon:

    paper  mean over Qwen2-VL-2B and Qwen2.5-VL-3B; 25,000, 10,000 and 5,000 records; the default
    tiny   embedded checkpoint and data; a laptop CPU, half a minute

Values marked (inferred) are not published.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import grpo, sft


def get_config(variant: str = "") -> ConfigDict:
    """The paper's choice, or the tiny one.

    Raises:
        ValueError: a variant that does not exist.
    """
    return grpo.with_variants("configs/perplexity.py", _paper(), variant, VARIANTS, EXCLUSIVE)


def _paper() -> ConfigDict:
    base = sft.get_config().to_dict()
    return ConfigDict(
        {
            "task": "perplexity",
            "models": ("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"),
            "logprob_chunk": 0,
            "model": {**base["model"], "freeze": ()},
            "data": {**base["data"], "bad_records": "skip"},
            "mesh": base["mesh"],
            "run": {
                "top": (25_000, 10_000, 5_000),
                "compilation_cache": base["run"]["compilation_cache"],
            },
        }
    )


def _all(config: ConfigDict) -> None:
    """The default, named."""


def _tiny(config: ConfigDict) -> None:
    """The same code on drawn images and a 1.2-million-parameter model."""
    tiny = sft.get_config("tiny").to_dict()
    config.models = ("embedded",)
    config.model.update({**tiny["model"], "checkpoint": "", "freeze": ()})
    config.data.update(tiny["data"])
    config.run.top = (200, 50)


VARIANTS: dict[str, Callable[[ConfigDict], None]] = {"paper": _all, "tiny": _tiny}
EXCLUSIVE = ({"paper", "tiny"},)
