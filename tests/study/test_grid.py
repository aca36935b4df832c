"""The grid: what runs when, from what, and what a study refuses before anything is started."""

from pathlib import Path

import pytest

from configs import study as config
from vlaa_jax.schema import UserError
from vlaa_jax.settle import settle
from vlaa_jax.study import estimate
from vlaa_jax.study.grid import steps

VARIANTS = [
    "",
    *(name for name in config.VARIANTS if name != "quick"),
    "tiny,quick",
    "7b,rewards,rates",
    "3b,7b,subsets,seeds3",
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_configs_settle_and_make_a_grid(variant):
    settings = settle(config.get_config(variant).to_dict())
    grid = steps(settings, Path("/w"))
    names = [step.name for step in grid]
    assert len(set(names)) == len(names)
    for place, step in enumerate(grid):
        assert not step.needs or step.needs in names[:place]
    evaluated = {step.cell for step in grid if step.evaluation}
    assert len(evaluated) == len(settings.models) * len(settings.seeds) * len(settings.arms)


def test_arms_that_begin_alike_share_a_run():
    settings = settle(config.get_config("tiny").to_dict())
    grid = {step.name: step for step in steps(settings, Path("/w"))}
    runs = [name for name in grid if name.startswith("runs/tiny/seed1/")]
    assert sorted(Path(name).name for name in runs) == [
        *("grpo", "sft", "sft+grpo", "sft-aha", "sft-clean"),
    ]
    after = grid["runs/tiny/seed1/sft+grpo"]
    assert after.needs == "runs/tiny/seed1/sft"
    assert "--config.model.checkpoint=/w/runs/tiny/seed1/sft" in after.words
    assert "--config.seed=1" in after.words
    base = grid["evaluations/tiny/seed1/base/heldout"]
    assert "--config.model.checkpoint=embedded" in base.words and not base.needs
    words = grid["evaluations/tiny/seed1/sft+grpo/short"].words
    assert "--config.model.checkpoint=/w/runs/tiny/seed1/sft+grpo" in words
    assert "--config.data.heldout=/w/data/VLAA-Thinking-GRPO-heldout.json" in words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arms": ("base", "stf")}, "arms: 'stf' has the stage 'stf'; known: grpo, sft, sft-aha"),
        ({"arms": ("sft+",), "reference": "sft+"}, "has the stage ''"),
        ({"arms": ("base", "base")}, "arms: name at least one, and each once"),
        ({"seeds": ()}, "seeds: name at least one"),
        ({"models": {"tiny": ""}}, "models.tiny: '' is no checkpoint"),
        ({"models": {"../x": "embedded"}}, "cannot be the name"),
        ({"reference": "none"}, "reference: 'none' is not one of arms"),
    ],
)
def test_what_makes_no_study_is_refused(change, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(").replace("+", r"\+")):
        settle({**config.get_config("tiny").to_dict(), **change})


@pytest.mark.parametrize("stage", ["configs/sft.py", {"config": "configs/sft.py", "option": ()}])
def test_a_stage_that_is_none_is_refused(stage):
    values = config.get_config("tiny").to_dict()
    values["stages"]["sft"] = stage
    with pytest.raises(UserError, match="sft"):
        steps(settle(values), Path("/w"))


def test_options_of_all_commands_reach_them():
    values = config.get_config("tiny").to_dict()
    values |= {"train_options": ("mesh.fsdp=8",), "evaluate_options": ("rollout.top_k={seed}",)}
    for step in steps(settle(values), Path("/w")):
        options = f"--config.rollout.top_k={step.cell.seed}", "--config.mesh.fsdp=8"
        assert [option in step.words for option in options] == [
            bool(step.evaluation),
            not step.evaluation,
        ]


def test_the_planner_is_asked_once_for_what_is_alike(monkeypatch):
    """Three seeds, GRPO from the base and after SFT: one question."""
    asked = []

    def planned(words):
        asked.append(words)
        return estimate.Hours(36.0, 0.5 if "grpo" in words[3] else 0.0, True)

    monkeypatch.setattr(estimate, "_planned", planned)
    values = config.get_config("tiny").to_dict()
    values["run"] |= {"topology": "v5p:2x2x2", "hour_usd": 2.0}
    settings = settle(values)
    found = estimate.estimates(steps(settings, Path("/w")), settings)
    assert len(found) == 15 and len(asked) == 4
    assert all("--config.model.checkpoint=embedded" in words for words in asked)
    assert not any(word.startswith("--workdir") for words in asked for word in words)
    said = list(estimate.lines(found, settings))
    assert said[-1] == (
        "v5p:2x2x2, by formulas: 3.0 h of training, 6 USD, and 9 commands of unknown length"
    )
