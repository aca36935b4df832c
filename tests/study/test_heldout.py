"""The held-out task: what it writes, that it repeats itself, and what it refuses."""

import json

import pytest
from rich.console import Console

from configs import heldout as config
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.evaluate.report.write import read_units
from vlaa_jax.schema import UserError
from vlaa_jax.settle import settle
from vlaa_jax.study.heldout import run

QUIET = Console(quiet=True)


def settings(data=None, **rollout):
    values = config.get_config("tiny").to_dict()
    values["rollout"] |= {"prompts": 4, "completions": 2, "max_new_tokens": 24, **rollout}
    values["data"] |= data or {}
    values["rewards"]["math_workers"] = 1
    return settle(values)


def test_outputs_are_scored_twice_and_repeat_themselves(tmp_path):
    paths = write_dataset(tmp_path / "data", n_train=1, n_heldout=5, n_sft=1)
    files = {"records": "", "heldout": str(paths.heldout), "image_root": str(paths.images)}
    for name in ("a", "b"):
        run(settings(files), tmp_path / name, QUIET)
    lines = [json.loads(line) for line in (tmp_path / "a/outputs.jsonl").read_text().splitlines()]
    assert (tmp_path / "a/outputs.jsonl").read_text() == (tmp_path / "b/outputs.jsonl").read_text()
    assert len(lines) == 10
    assert {line["sample"] for line in lines} == {0, 1}
    for line in lines:
        assert line["reward"] <= line["free_reward"] <= 1
        assert line["extracted"] is not None or line["reward"] == 0
        assert line["length"] <= 24 and (line["length"] == 24 or not line["truncated"])
    units = read_units(tmp_path / "a/units.json")
    assert set(units) == {"digit", "mcq", "math", "iou", "open_ended"}
    for kind, found in units.items():
        rewards = [line["reward"] for line in lines if line["verifier_type"] == kind]
        assert found[0].value == pytest.approx(sum(rewards) / 2)
    with pytest.raises(UserError, match=r"max_new_tokens: 24 -> 25"):
        run(settings(files, max_new_tokens=25), tmp_path / "a", QUIET)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"records": ""}, "data.heldout: name the records"),
        ({"records": "", "heldout": "no.json", "image_root": "."}, "data.heldout: 'no.json' does"),
        ({"records": "", "heldout": "README.md"}, "data.image_root: '' does not exist"),
    ],
)
def test_missing_records_get_one_line(tmp_path, data, words):
    with pytest.raises(UserError, match=words):
        run(settings(data), tmp_path, QUIET)
