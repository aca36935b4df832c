"""The data pipeline of VLAA-Thinking (arXiv 2504.11468): six steps from sources to files.

    python -m vlaa_jax.main --config=configs/pipeline.py --workdir=runs/data \
        --config.collect.sources=clevr_math=/data/clevr_math,arxivqa=/data/arxivqa

Variants, after a colon:

    tiny    embedded drawings and scripted models over real HTTP; seconds, nothing is spent
    served  one's own Qwen2.5-VL behind an OpenAI-compatible server (this project's or vLLM) as
            captioner and judge: set ``caption.model.url`` and ``verify.model.url``

Paper: captions by GPT-4o, traces by DeepSeek-R1, rewriting and verification by GPT-3.5-turbo;
203,182 samples in, 144,895 through, 126,413 for SFT and 25,195 for RL. Prices are those of the
providers' lists when this was written; look them up before a run, and see ``run.dry_run``.

Values marked (inferred) are not published.
"""

from functools import partial

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(variant: str = "") -> ConfigDict:
    """The paper's pipeline, or a variant.

    Raises:
        ValueError: a variant that does not exist.
    """
    config = _paper()
    for name in (part.strip() for part in variant.split(",") if part.strip()):
        if name not in VARIANTS:
            known = ", ".join(sorted(VARIANTS))
            raise ValueError(f"configs/pipeline.py has no variant {name!r}; known: {known}")
        VARIANTS[name](config)
    return config


def _model(url: str, model: str, key_env: str, **options: object) -> dict[str, object]:
    return {
        "url": url,
        "model": model,
        "key_env": key_env,
        "tag": "",
        "temperature": placeholder(float),  # None: the server's
        "top_p": placeholder(float),
        "max_tokens": 1024,
        "concurrency": 32,
        "start_concurrency": 8,
        "requests_per_minute": 0.0,
        "tokens_per_minute": 0.0,
        "timeout_s": 120.0,
        "deadline_s": 1800.0,
        "retries": 5,
        "backoff_s": 0.5,
        "price_prompt": 0.0,
        "price_completion": 0.0,
        "image_tokens": 1000,
        "expected_tokens": 0,
        "transport": "live",
        "batch_requests": 1000,
        "batch_poll_s": 30.0,
        **options,
    }


def _openai(model: str, **options: object) -> dict[str, object]:
    return _model("https://api.openai.com/v1", model, "OPENAI_API_KEY", **options)


_COLLECT = {
    "sources": "",
    # coco and vg: (inferred) what becomes SFT and the 3,000 with boxes
    "limits": "clevr_math=35000,geoqa170k=6499,math_puma=30000,arxivqa=54399,"
    "docvqa=10194,vizwiz=20523,allava_laion=47066,coco=11727,vg=41242",
    "unique_images": True,
    "embedded": 60,
    "seed": 0,
}

_CAPTIONER = {
    "max_tokens": 1024,  # (inferred)
    "temperature": 0.0,  # (inferred)
    "concurrency": 64,
    "price_prompt": 2.5,
    "price_completion": 10.0,
    "expected_tokens": 300,
}

_REASONER = {
    "max_tokens": 8192,  # (inferred)
    "concurrency": 128,
    "timeout_s": 900.0,
    "deadline_s": 3600.0,
    "price_prompt": 0.55,
    "price_completion": 2.19,
    "expected_tokens": 1200,
}

_CHEAP = {  # (inferred)
    "price_prompt": 0.5,
    "price_completion": 1.5,
    "temperature": 0.0,
    "concurrency": 64,
}

_SPLIT = {
    "rule": "aha",
    "low": 0.0,
    "high": 1.0,
    "rl_caps": "clevr_math=2000,geoqa170k=6499,math_puma=6696,arxivqa=1000,docvqa=1000,"
    "vizwiz=1000,allava_laion=3000,coco=2000,vg=2000",
    "aha_cap": 55_000,
    "seed": 0,
    "samples": 8,
    "prompt": "",
}

_RUN = {
    "runner": "asyncio",
    "beam_options": "",
    "in_flight": 0,
    "max_cost": 0.0,
    "dry_run": False,
    "preview": 0,
    "max_failed": 20,
    "rest_s": 5.0,
}


def _paper() -> ConfigDict:
    reasoner = ("https://api.deepseek.com/v1", "deepseek-reasoner", "DEEPSEEK_API_KEY")
    cheap = partial(_openai, "gpt-3.5-turbo", **_CHEAP)
    return ConfigDict(
        {
            "task": "pipeline",
            "collect": _COLLECT,
            "caption": {"model": _openai("gpt-4o-2024-08-06", **_CAPTIONER), "prompt": ""},
            "distil": {"model": _model(*reasoner, **_REASONER), "prompt": ""},
            "rewrite": {
                "model": cheap(max_tokens=4096, expected_tokens=1000),  # (inferred)
                "prompt": "",
                "gap": "length",  # (inferred) "more than 15 words difference"
                "max_gap": 15,
            },
            "verify": {
                "model": cheap(max_tokens=8, expected_tokens=1),
                "prompt": "",
                "how": "judge",
            },
            "split": {**_SPLIT, "model": _model("", "", "", max_tokens=1024, temperature=0.8)},
            "run": _RUN,
        }
    )


def _tiny(config: ConfigDict) -> None:
    """The same code on drawn images and scripted models."""
    config.collect.update(sources="embedded", limits="")
    names = {
        "caption": "scripted-captioner",
        "distil": "scripted-reasoner",
        "rewrite": "scripted-rewriter",
        "verify": "scripted-judge",
        "split": "scripted-student",
    }
    for group, name in names.items():
        config[group].model.update(url="embedded", model=name, key_env="")
    config.split.update(rl_caps="", aha_cap=0)


def _served(config: ConfigDict) -> None:
    """Captions and verdicts by one's own server, at no price per token."""
    for group in ("caption", "verify"):
        config[group].model.update(
            url="http://127.0.0.1:8000/v1",
            model="Qwen/Qwen2.5-VL-7B-Instruct",
            key_env="",
            price_prompt=0.0,
            price_completion=0.0,
            image_tokens=1280,
        )


VARIANTS = {"tiny": _tiny, "served": _served}
