"""SFT or RL? The grid of VLAA-Thinker (arXiv 2504.11468), arms in order, each evaluated alike.

    python -m vlaa_jax.main --config=configs/study.py:3b --workdir=runs/study --config.data=/vlaa
    python -m vlaa_jax.main --config=configs/study.py:3b --config.run.dry_run=True \
        --config.run.topology=v5p:2x2x2

Benchmarks ask a judge, and large models need a mesh; options of all commands of a kind:

    --config.evaluate_options="('judge.url=https://api.openai.com/v1',)"
    --config.train_options="('mesh.fsdp=8',)"

The folder holds the two released files, images/, LMUData/ (the tables of the benchmarks),
top-5000.json, top-10000.json and top-25000.json (configs/perplexity.py writes them) and
aha_sft.jsonl (the pipeline's split writes it). An arm is "base" or stages joined by "+", each
starting from the one before; arms that begin alike share those runs. The same command goes on after
a stop. The report is WORKDIR/report.html.

Variants, after a colon; several with commas:

    3b 7b 2vl-2b 2vl-7b   the models; the default is 3b
    core        base, SFT on 25K, GRPO, and GRPO after SFT; the default
    subsets     SFT on 5K, 10K, 25K, 126K and the aha subset, and GRPO after each
    rewards     GRPO without one verifier each, rule-only, and mixed (the paper's Table 5)
    rates       GRPO with the paper's rates and KL (Table 6): Basic, LR1, LR2, KL1, KL2
    seeds3      three seeds in place of one
    tiny        embedded checkpoint and data, three seeds, with a positive control; 2 cores, planned
                to take half an hour
    tiny,quick  fewer arms and steps and one evaluation: a look, on a machine that is busy
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import grpo

MODELS = {
    "3b": "Qwen/Qwen2.5-VL-3B-Instruct",
    "7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "2vl-2b": "Qwen/Qwen2-VL-2B-Instruct",
    "2vl-7b": "Qwen/Qwen2-VL-7B-Instruct",
}
CORE = ("base", "sft-25k", "grpo", "sft-25k+grpo")
SFT_FILES = {
    "sft-5k": "top-5000.json",
    "sft-10k": "top-10000.json",
    "sft-25k": "top-25000.json",
    "sft-126k": "VLAA-Thinking-SFT-126K.json",
    "sft-aha": "aha_sft.jsonl",
}
RULES = ("digit", "mcq", "math", "iou")


def get_config(variant: str = "") -> ConfigDict:
    """The paper's core grid on the 3B model, or variants of it.

    Raises:
        ValueError: a variant that does not exist, or two that exclude each other.
    """
    config = grpo.with_variants("configs/study.py", _paper(), variant, VARIANTS, EXCLUSIVE)
    if not config.models:
        config.models = ConfigDict({"3b": MODELS["3b"]})
    return config


def _paper() -> ConfigDict:
    sft = {name: _sft(file) for name, file in SFT_FILES.items()}
    without = {f"grpo-no-{kind}": _rules(kind) for kind in RULES}
    return ConfigDict(
        {
            "task": "study",
            "models": {},
            "seeds": (0,),
            "arms": CORE,
            "reference": "base",
            "data": "",
            "stages": {
                **sft,
                "grpo": _grpo(),
                "grpo-rule-only": {**_grpo(), "variants": "rule-only"},
                **without,
                "grpo-basic": _grpo("optimizer.min_lr=0", "optimizer.warmup_frac=0", *_NO_KL),
                "grpo-lr1": _grpo("optimizer.min_lr=8e-7", "optimizer.warmup_frac=0.1", *_NO_KL),
                "grpo-lr2": _grpo(*_NO_KL),
                "grpo-kl1": _grpo("algo.kl_coef=0.01", "algo.kl_target=0.005"),
                "grpo-kl2": _grpo(),
            },
            "evaluations": {
                "benchmarks": _benchmarks(800),
                "longer": _benchmarks(2048),
            },
            "train_options": (),
            "evaluate_options": (),
            "run": {"dry_run": False, "topology": "", "hour_usd": 0.0, "threads": 0},
        }
    )


_NO_KL = ("algo.kl_coef=0.0", "algo.kl_target=0.0")


def _sft(file: str) -> dict:
    options = (f"data.records={{data}}/{file}", "data.image_root={data}/images", "seed={seed}")
    return {"config": "configs/sft.py", "variants": "", "options": options}


def _grpo(*options: str) -> dict:
    files = ("data.records={data}/VLAA-Thinking-GRPO-25K.json", "data.image_root={data}/images")
    return {
        "config": "configs/grpo.py",
        "variants": "",
        "options": (*files, "seed={seed}", *options),
    }


def _rules(kind: str) -> dict:
    kept = tuple(rule for rule in RULES if rule != kind)
    return {**_grpo(f"data.verifier_types={kept}"), "variants": "rule-only"}


def _benchmarks(new_tokens: int) -> dict:
    options = (
        *("data.root={data}/LMUData", f"generation.new_tokens={new_tokens}"),
        "generation.seed={seed}",
    )
    return {"config": "configs/evaluate.py", "variants": "paper", "options": options}


def _model(name: str) -> Callable[[ConfigDict], None]:
    def add(config: ConfigDict) -> None:
        config.models[name] = MODELS[name]

    return add


def _arms(*arms: str) -> Callable[[ConfigDict], None]:
    def add(config: ConfigDict) -> None:
        kept = () if config.arms == CORE else config.arms
        config.arms = tuple(dict.fromkeys((*kept, *arms)))

    return add


def _seeds3(config: ConfigDict) -> None:
    config.seeds = (0, 1, 2)


def _tiny(config: ConfigDict) -> None:
    """Traces that differ from what made the base: longer, hesitant, one in five wrong."""
    limit = 112  # tokens; no trace takes more

    def drawn(task: str, *options: str) -> dict:
        options = ("data.image_root={data}/images", "seed={seed}", *options)
        return {"config": f"configs/{task}.py", "variants": "tiny", "options": options}

    def sft(file: str) -> dict:
        return drawn("sft", f"data.records={{data}}/{file}", "run.steps=50")

    def heldout(new_tokens: int) -> dict:
        held = ("data.records=", "data.heldout={data}/VLAA-Thinking-GRPO-heldout.json")
        return drawn("heldout", *held, f"rollout.max_new_tokens={new_tokens}")

    records = "data.records={data}/VLAA-Thinking-GRPO-25K.json"
    explore = drawn("grpo", records, "run.steps=40", f"rollout.max_new_tokens={limit}")
    config.models = ConfigDict({"tiny": "embedded"})
    config.seeds = (0, 1, 2)
    config.data = "embedded"
    config.arms = ("base", "sft", "grpo", "sft+grpo", "sft-aha", "sft-clean")
    config.stages = ConfigDict(
        {
            "sft": sft("hesitant.json"),
            "sft-aha": sft("aha.json"),
            "sft-clean": sft("clean.json"),  # the positive control
            "grpo": explore,
        }
    )
    config.evaluations = ConfigDict({"heldout": heldout(limit), "short": heldout(48)})


def _quick(config: ConfigDict) -> None:
    """Too short to settle anything: fewer arms and steps, one evaluation."""
    del config.evaluations["short"]
    config.arms = tuple(arm for arm in config.arms if arm != "sft-aha")
    for stage in config.stages.values():
        swaps = {"run.steps=50": "run.steps=30", "run.steps=40": "run.steps=12"}
        stage.options = tuple(swaps.get(option, option) for option in stage.options)


VARIANTS: dict[str, Callable[[ConfigDict], None]] = {
    **{name: _model(name) for name in MODELS},
    "core": lambda config: None,
    "subsets": _arms("base", "grpo", *SFT_FILES, *(f"{name}+grpo" for name in SFT_FILES)),
    "rewards": _arms("base", *(f"grpo-no-{kind}" for kind in RULES), "grpo-rule-only", "grpo"),
    "rates": _arms("base", "grpo-basic", "grpo-lr1", "grpo-lr2", "grpo-kl1", "grpo-kl2"),
    "seeds3": _seeds3,
    "tiny": _tiny,
    "quick": _quick,
}
EXCLUSIVE: tuple[set[str], ...] = tuple({"tiny", name} for name in (*MODELS, "core", "subsets"))
