"""Everything about data is said before weights are read, and before jax is imported."""

import json
import shutil
import subprocess
import sys
import textwrap
from importlib import resources
from pathlib import Path

import pytest
from rich.console import Console

from configs import grpo, sft
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.schema import UserError
from vlaa_jax.settle import settle
from vlaa_jax.train import grpo as grpo_task
from vlaa_jax.train import sft as sft_task
from vlaa_jax.train.opening import opened

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    paths = write_dataset(root, n_train=8, n_heldout=8, n_sft=8)
    checkpoint = root / "checkpoint"
    shutil.copytree(str(resources.files("vlaa_jax") / "assets" / "tiny"), checkpoint)
    for weights in checkpoint.glob("*.safetensors"):
        weights.write_bytes(b"no weights")
    bad = [{**record, "question": ""} for record in json.loads(paths.heldout.read_text())]
    (root / "bad.json").write_text(json.dumps(bad))
    return root, paths, checkpoint


def start_task(task, settings, workdir):
    console = Console(quiet=True)
    with opened(settings, workdir, console) as found:
        task.run(settings, found, console)


def start(place, task, workdir, **data):
    _, paths, checkpoint = place
    config = (grpo if task is grpo_task else sft).get_config("tiny")
    config.model.checkpoint = str(checkpoint)
    records = paths.grpo if task is grpo_task else paths.sft
    config.data.update(records=str(records), image_root=str(paths.images), **data)
    config.run.compilation_cache = ""
    if task is sft_task:
        config.data.rows = 8  # as many as the devices that the tests pretend
    with pytest.raises(UserError) as refused:
        start_task(task, settle(config.to_dict()), workdir)
    return str(refused.value)


@pytest.mark.parametrize("task", [grpo_task, sft_task], ids=["grpo", "sft"])
def test_held_out_records_are_judged_before_weights_are_read(place, task, tmp_path):
    bad = str(place[0] / "bad.json")
    said = start(place, task, tmp_path / "a", heldout=bad)
    assert said.startswith(f"{bad}: record 0") and "8 records cannot be used" in said
    said = start(place, task, tmp_path / "b", heldout=str(place[1].heldout))
    assert "safetensors" in said  # all is well, so the weights come next


def test_validation_records_are_judged_before_weights_are_read(place, tmp_path):
    said = start(place, sft_task, tmp_path / "a", validation=str(place[0] / "bad.json"))
    assert "bad.json: record 0" in said and "field 'question'" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"validation": "nowhere.json"}, "data.validation: nowhere.json: does not exist"),
        ({"heldout": "nowhere.json"}, "data.heldout: nowhere.json: does not exist"),
        ({"records": "nowhere.json"}, "data.records: nowhere.json: does not exist"),
        ({"image_root": "nowhere"}, "data.image_root: nowhere does not exist"),
        ({"image_root": ""}, "data.image_root is not set"),
    ],
)
def test_paths_are_looked_at_first_of_all(place, tmp_path, change, words):
    paths = place[1]
    config = sft.get_config("tiny")
    config.data.update({"records": str(paths.sft), "image_root": str(paths.images), **change})
    with pytest.raises(UserError, match=words):
        start_task(sft_task, settle(config.to_dict()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("config", ["grpo", "sft"])
@pytest.mark.parametrize("records", ["own", "embedded"])
def test_records_are_judged_without_jax(place, config, records, tmp_path):
    """Its import alone takes longer than all checks of a small file."""
    root, _, checkpoint = place
    script = """
        import importlib, sys
        from pathlib import Path
        from rich.console import Console
        from vlaa_jax.schema import UserError
        from vlaa_jax.settle import settle
        from vlaa_jax.train.opening import opened

        name, records, images, checkpoint, workdir = sys.argv[1:]
        config = importlib.import_module(f"configs.{name}").get_config("tiny")
        config.model.checkpoint = checkpoint
        config.data.update(embedded_train=3, embedded_heldout=3)
        if records == "embedded":
            config.data.update({{"grpo": "max_prompt_tokens", "sft": "tokens_per_row"}[name]: 16})
        else:
            config.data.update(records=records, image_root=images)
        try:
            with opened(settle(config.to_dict()), Path(workdir), Console(quiet=True)):
                print("nothing is wrong")
        except UserError as error:
            print(error)
        print({"jax", "flax", "orbax", "optax", "tensorflow"} & set(sys.modules))
    """
    given = "embedded" if records == "embedded" else str(root / "bad.json")
    args = [config, given, str(root / "images"), str(checkpoint), str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *args],
        **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": 100},
    )
    *said, imported = done.stdout.splitlines()
    assert ("limit of 16" if records == "embedded" else "bad.json: record 0") in said[0], done
    assert imported == "set()", done
