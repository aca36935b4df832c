"""The run directory: one run at a time, the same settings, and what may differ."""

import dataclasses
import subprocess
import sys
import textwrap

import pytest
from rich.console import Console

from vlaa_jax.schema import UserError
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.settings.shared import OptimizerSettings, RunSettings
from vlaa_jax.train.checkpoint import Progress
from vlaa_jax.train.claim import Claim
from vlaa_jax.train.rundir import RunDir
from vlaa_jax.train.validation import Validation

SETTINGS = GrpoSettings()


def opened(path, settings=SETTINGS):
    return RunDir(Claim(path, settings), Console(quiet=True))


def test_a_second_run_in_the_same_directory_is_refused_and_a_dead_one_is_not(tmp_path):
    script = """
        import sys, time
        from pathlib import Path
        from vlaa_jax.settings.grpo import GrpoSettings
        from vlaa_jax.train.claim import Claim
        claim = Claim(Path(sys.argv[1]), GrpoSettings())
        print("open", flush=True)
        time.sleep(120)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(UserError, match=rf"is going on in it by process {other.pid}"):
            opened(tmp_path / "run")
        other.kill()
    opened(tmp_path / "run").__exit__()


@pytest.fixture
def begun(tmp_path):
    """A directory that a run has claimed."""
    (tmp_path / "sidecars").mkdir()
    with opened(tmp_path / "run") as rundir:
        rundir.begin(Progress(0, {}), tmp_path / "sidecars")
    return tmp_path / "run"


def test_what_changes_no_number_may_differ(begun):
    run = RunSettings(save_every=3, damaged="older")
    rewards = dataclasses.replace(SETTINGS.rewards, endpoint_url="http://other:1", math_workers=1)
    opened(begun, dataclasses.replace(SETTINGS, run=run, rewards=rewards)).__exit__()


def test_other_settings_are_refused_by_name(begun):
    other = dataclasses.replace(SETTINGS, optimizer=OptimizerSettings(lr=1e-4))
    with pytest.raises(UserError, match=r"optimizer\.lr: 1e-06 -> 0\.0001"):
        opened(begun, other)


@pytest.mark.parametrize("text", ["[]", "{", "null", "[" * 100_000, "\xff"])
def test_a_config_that_is_none_gets_one_line(begun, text):
    (begun / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        opened(begun)


@pytest.mark.parametrize("line", [b"null", b"\xff\xfe", b"[1]", b'{"step": null}', b'{"step"'])
def test_metrics_with_lines_that_are_none_are_kept_where_they_are_some(begun, line, tmp_path):
    sound = b'{"step": 0, "x": 1}'
    (begun / "metrics.jsonl").write_bytes(line + b"\n" + sound + b"\n")
    with opened(begun) as rundir:
        rundir.begin(Progress(1, {}), tmp_path / "sidecars")
    assert (begun / "metrics.jsonl").read_bytes() == sound + b"\n"


def test_another_spelling_of_a_path_is_the_same_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sidecars").mkdir()

    def settings(root):
        data = dataclasses.replace(SETTINGS.data, records="r.jsonl", image_root=root)
        return dataclasses.replace(SETTINGS, data=data)

    with opened(tmp_path / "run", settings("images")) as rundir:
        rundir.begin(Progress(0, {}), tmp_path / "sidecars")
    for same in ("images/", "./images", str(tmp_path / "images"), "other/../images"):
        opened(tmp_path / "run", settings(same)).__exit__()
    for other in ("image", "Images", ""):
        with pytest.raises(UserError, match=r"data\.image_root: 'images' -> "):
            opened(tmp_path / "run", settings(other))


@pytest.mark.parametrize(
    "text", ["[]", "{", "null", '{"before": 3}', '{"after": {"x": "y"}}', "\xff"]
)
def test_held_out_results_that_are_none_get_one_line(tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "heldout.json").write_bytes(text.encode("latin-1"))
    with opened(tmp_path / "run") as rundir:
        validation = Validation(None, rundir, tmp_path)
        with pytest.raises(UserError, match=r"heldout\.json"):
            validation.summary()
