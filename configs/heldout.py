"""A checkpoint's rewards on held-out records, scored with and without the answer format.

    python -m vlaa_jax.main --config=configs/heldout.py --workdir=runs/heldout-3b \
        --config.model.checkpoint=runs/grpo-3b --config.data.heldout=heldout.json \
        --config.data.image_root=images

Writes outputs.jsonl (one line per completion), units.json and config.json. A study evaluates by it.
Variants, after a colon:

    tiny   embedded checkpoint and data; a laptop CPU, half a minute
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import grpo


def get_config(variant: str = "") -> ConfigDict:
    """Sampling as in training, or the tiny one.

    Raises:
        ValueError: a variant that does not exist.
    """
    return grpo.with_variants("configs/heldout.py", _from(""), variant, VARIANTS, ())


def _from(variant: str) -> ConfigDict:
    base = grpo.get_config(variant).to_dict()
    values = {name: base[name] for name in ("model", "data", "rollout", "rewards", "mesh")}
    cache = {"compilation_cache": base["run"]["compilation_cache"]}
    return ConfigDict({"task": "heldout", "seed": 0, **values, "run": cache})


def _tiny(config: ConfigDict) -> None:
    """The same code on drawn images and a 1.2-million-parameter model."""
    tiny = _from("tiny")
    tiny.data.update(embedded_train=1)
    tiny.rollout.update(prompts=16, completions=4)
    config.update(tiny)


VARIANTS: dict[str, Callable[[ConfigDict], None]] = {"tiny": _tiny}
