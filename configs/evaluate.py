"""Evaluation on the six leaderboard benchmarks (VLAA-Thinker, arXiv 2504.11468, appendix B.2).

    python -m vlaa_jax.main --config=configs/evaluate.py:leaderboard --workdir=runs/eval-3b \
        --config.model.checkpoint=runs/grpo-3b --config.data.root=LMUData \
        --config.judge.url=https://api.openai.com/v1

Variants, after a colon; several with commas:

    paper        800 new tokens, at most 256*32*32 pixels (appendix B.2); the default
    leaderboard  2,048 new tokens, 1280*28*28 to 16384*28*28 pixels, nearly greedy: the entry of
                 VLAA-Thinker in VLMEvalKit, by which Table 4 was made
    pass8        eight samples at temperature 0.8, for pass@k and the spread
    paper-rules  scores by VLMEvalKit of April 2025, the paper's time
    tiny         embedded checkpoint, a miniature of the six benchmarks and a scripted judge; a
                 laptop CPU, half a minute

The same directory and command go on after a stop at any point. Scores between the two regimes of
decoding differ by about a point on average in the paper (34.5 and 35.4 for the 3B model).
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs.grpo import JUDGE, SYSTEM_PROMPT, TINY_SYSTEM_PROMPT, with_variants


def get_config(variant: str = "") -> ConfigDict:
    """The paper's regime, or variants.

    Raises:
        ValueError: a variant that does not exist.
    """
    return with_variants("configs/evaluate.py", _base(), variant, VARIANTS, ())


def _base() -> ConfigDict:
    return ConfigDict(
        {
            "task": "evaluate",
            "data": {
                "root": "",
                "benchmarks": (
                    *("mathvista", "mathvision", "mathverse"),
                    *("dynamath", "wemath", "logicvista"),
                ),
                "limit": 0,
                "check_digest": True,
            },
            "model": {
                "checkpoint": "",
                "dtype": "bfloat16",
                "unroll": 1,
            },
            "generation": {
                "source": "engine",
                "files": "",
                "url": "",
                "model": "",
                "key_env": "",
                "concurrency": 16,
                "timeout_s": 600.0,
                "system_prompt": SYSTEM_PROMPT,
                "new_tokens": 800,
                "temperature": 0.0,
                "top_p": 1.0,
                "top_k": 0,
                "min_pixels": 0,
                "max_pixels": 256 * 32 * 32,
                "max_prompt_tokens": 32_768,
                "samples": 1,
                "batch": 16,
                "seed": 0,
            },
            "judge": JUDGE,
            "scoring": {"profile": "2026-08", "both": True, "baseline": ""},
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "slices": 0},
            "run": {
                "name": "",
                "predictions": "tsv",
                "wrong_shown": 40,
                "compilation_cache": "~/.cache/vlaa_jax/xla",
            },
        }
    )


def _paper(config: ConfigDict) -> None:
    """Nothing to change: the base is the paper's appendix."""


def _leaderboard(config: ConfigDict) -> None:
    generation = config.generation
    # Two blanks are missing in that entry, compared with training.
    generation.system_prompt = SYSTEM_PROMPT.replace("and <answer>", "and<answer>").replace(
        "</think> <answer> answer", "</think><answer> answer"
    )
    generation.new_tokens = 2048
    generation.min_pixels = 1280 * 28 * 28
    generation.max_pixels = 16384 * 28 * 28
    generation.temperature = 0.01
    generation.top_p = 0.001
    generation.top_k = 1


def _pass8(config: ConfigDict) -> None:
    config.generation.samples = 8
    config.generation.temperature = 0.8
    config.generation.top_p = 1.0
    config.generation.top_k = 0


def _paper_rules(config: ConfigDict) -> None:
    config.scoring.profile = "2025-04"


def _tiny(config: ConfigDict) -> None:
    config.data.root = "embedded"
    config.model.checkpoint = "embedded"
    config.model.dtype = "float32"
    config.generation.system_prompt = TINY_SYSTEM_PROMPT
    config.generation.new_tokens = 64
    config.generation.min_pixels = 0
    config.generation.max_pixels = 0


VARIANTS: dict[str, Callable[[ConfigDict], None]] = {
    "paper": _paper,
    "leaderboard": _leaderboard,
    "pass8": _pass8,
    "paper-rules": _paper_rules,
    "tiny": _tiny,
}
"""In the order in which they are applied."""
