"""The command line as users meet it, and what an interrupt leaves behind."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from converters import hf_to_jax, jax_to_hf, output
from converters.cli import main
from vlaa_jax import digests
from vlaa_jax.models.qwen_vl import weights
from vlaa_jax.models.qwen_vl.config import QwenVLConfig, TextConfig, VisionConfig
from vlaa_jax.models.qwen_vl.hf_config import to_hf
from vlaa_jax.models.qwen_vl.hf_keys import hf_shapes
from vlaa_jax.models.qwen_vl.safetensors_io import SafetensorsReader, SafetensorsWriter
from vlaa_jax.schema import UserError

BF16 = np.dtype(ml_dtypes.bfloat16)
CONFIG = QwenVLConfig(
    "qwen2_5_vl",
    TextConfig(96, 32, 40, 2, 4, 2, 8, mrope_section=(1, 1, 2)),
    VisionConfig(2, 16, 2, 20, 32, full_blocks=(1,)),
    tie_word_embeddings=True,
)
ROOT = Path(__file__).parents[2]


def write_hf(directory, config=CONFIG):
    rng = np.random.default_rng(0)
    specs = {name: (BF16, shape) for name, shape in hf_shapes(config).items()}
    with SafetensorsWriter(directory, specs) as writer:
        for name, (_, shape) in specs.items():
            writer.write(name, rng.normal(size=shape).astype(BF16))
    (directory / "config.json").write_text(json.dumps(to_hf(config)))
    return directory


@pytest.fixture
def source(tmp_path):
    return write_hf(tmp_path / "hf")


def test_there_and_back(source, tmp_path, capsys):
    assert main(["hf-to-jax", str(source), str(tmp_path / "jax"), "--quiet"]) == 0
    arguments = ["--layout", "new", "--max-shard-size", "20KB", "--dtype", "float32"]
    out = tmp_path / "back"
    assert main(["jax-to-hf", str(tmp_path / "jax"), str(out), *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.out.split() == [str(tmp_path / "jax"), str(out)]
    assert "jax-to-hf" in captured.err  # the progress bar
    assert "kB" in captured.err
    assert re.search(r"\d:\d\d:\d\d", captured.err)  # the time left
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        4 * int(np.prod(shape)) for shape in hf_shapes(CONFIG).values()
    )
    assert "model.language_model.norm.weight" in index["weight_map"]
    assert sorted(set(index["weight_map"].values())) == sorted(
        p.name for p in out.glob("*.safetensors")
    )


def test_an_existing_target_is_kept_unless_told(source, tmp_path, capsys):
    target = tmp_path / "jax"
    target.mkdir()
    (target / "thesis.tex").write_text("precious")
    assert main(["hf-to-jax", str(source), str(target), "--quiet"]) == 1
    assert "exists; choose another name or pass --overwrite" in capsys.readouterr().err
    assert (target / "thesis.tex").read_text() == "precious"
    assert main(["hf-to-jax", str(source), str(target), "--quiet", "--overwrite"]) == 0
    assert not (target / "thesis.tex").exists()
    assert weights.load_config(target) == CONFIG


def test_a_file_is_never_replaced_by_a_directory(source, tmp_path, capsys):
    target = tmp_path / "thesis.tex"
    target.write_text("precious")
    assert main(["hf-to-jax", str(source), str(target), "--quiet", "--overwrite"]) == 1
    assert "is a file; choose another name" in capsys.readouterr().err
    assert target.read_text() == "precious"


def test_a_source_is_never_its_own_target(source, tmp_path, capsys):
    for target in (source, source / "inside", tmp_path):
        assert main(["hf-to-jax", str(source), str(target), "--overwrite"]) == 1
        assert "overlaps with the source" in capsys.readouterr().err
    assert main(["hf-to-jax", str(source), str(tmp_path / "jax"), "--quiet"]) == 0
    jax_dir = str(tmp_path / "jax")
    assert main(["jax-to-hf", jax_dir, jax_dir, "--overwrite"]) == 1
    assert SafetensorsReader(source).tensors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hf-to-jax", "{}/none", "{}/out"], "none a Hugging Face directory"),
        (["hf-to-jax", "nobody/nothing", "{}/out"], "could not be fetched from the hub"),
        (["jax-to-hf", "{}/hf", "{}/out"], "is a Hugging Face directory already"),
        (["jax-to-hf", "{}/some.incomplete", "{}/out"], "an unfinished conversion left"),
        (["hf-to-jax", "../no/such", "{}/out"], "../no/such/config.json does not exist"),
        (["hf-to-jax", "../nowhere", "{}/out"], "../nowhere/config.json does not exist"),
        (["jax-to-hf", "{}/none", "{}/out"], "is not a directory"),
        (["hf-to-jax", "{}/hf", "/dev/null/out"], "cannot be made"),
        (["verify", "{}/hf", "--scratch", "{}/none"], "none is no directory"),
    ],
)
def test_errors_are_one_line_on_stderr(source, tmp_path, capsys, arguments, message):
    filled = [argument.format(tmp_path) for argument in arguments]
    assert main(filled) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["", "5", "12 kb", "1GiB", "3gb"])
def test_sizes(size, source, tmp_path):
    hf_to_jax.convert(source, tmp_path / "jax")
    arguments = ["jax-to-hf", str(tmp_path / "jax"), str(tmp_path / "out"), "--quiet"]
    if not size:
        with pytest.raises(SystemExit):
            main([*arguments, "--max-shard-size", "lots"])
    else:
        assert main([*arguments, "--max-shard-size", size]) == 0


def test_misfits_leave_no_output_and_are_all_listed(source, tmp_path, capsys):
    raw = json.loads((source / "config.json").read_text())
    raw["intermediate_size"] += 8
    (source / "config.json").write_text(json.dumps(raw))
    assert main(["hf-to-jax", str(source), str(tmp_path / "jax")]) == 1
    error = capsys.readouterr().err
    for layer in range(2):
        for name in ("gate", "up", "down"):
            assert f"wrong shape: model.layers.{layer}.mlp.{name}_proj.weight is" in error
    assert "6 tensors do not fit" in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_a_full_disk_is_told_before_the_first_byte(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"only 0\.0 GB are free"):
        hf_to_jax.convert(source, tmp_path / "jax")
    assert not (tmp_path / "jax").exists()


def test_two_writers_do_not_meet(source, tmp_path):
    scratch = tmp_path / "jax.incomplete"
    scratch.mkdir()
    with (scratch / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another conversion is writing"):
            hf_to_jax.convert(source, tmp_path / "jax")
    hf_to_jax.convert(source, tmp_path / "jax")


@pytest.mark.parametrize(("command", "files"), [("hf-to-jax", 12), ("jax-to-hf", 2)])
def test_a_killed_run_leaves_no_result_and_a_rerun_finishes(source, tmp_path, command, files):
    """A real process is killed in the middle of writing."""
    if command == "jax-to-hf":
        source = hf_to_jax.convert(source, tmp_path / "converted")
    target, scratch = tmp_path / "out", tmp_path / "out.incomplete"
    # Slow jobs: the kill arrives while some arrays are written and others are not.
    code = (
        "import sys, time; from converters import cli, hf_to_jax, jax_to_hf\n"
        "def slow(jobs, advance, threads):\n"
        "    for job in jobs: advance(job()); time.sleep(0.2)\n"
        "hf_to_jax.run_jobs = jax_to_hf.run_jobs = slow\n"
        "cli.main(sys.argv[1:])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, command, str(source), str(target), "--quiet"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    deadline = time.monotonic() + 60
    while sum(p.is_file() for p in scratch.rglob("*")) < files and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    with pytest.raises(UserError):
        weights.open_params(scratch)
    assert main([command, str(source), str(target), "--quiet"]) == 0
    assert not scratch.exists()
    finished = jax_to_hf.export(target, tmp_path / "back") if command == "hf-to-jax" else target
    reader, original = SafetensorsReader(finished), SafetensorsReader(tmp_path / "hf")
    for name in original.tensors:
        assert reader.view(name).tobytes() == original.view(name).tobytes()


def test_an_interrupt_is_told(source, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(hf_to_jax, "run_jobs", interrupt)
    assert main(["hf-to-jax", str(source), str(tmp_path / "jax")]) == 130
    assert "run the command again" in capsys.readouterr().err
    assert not (tmp_path / "jax").exists()


@pytest.mark.parametrize("revision", [None, "other"])
def test_a_hub_id_is_read_from_the_cache_at_its_revision(tmp_path, revision):
    cache = tmp_path / "hub" / "models--nobody--tiny"
    for name, commit in (("main", "a" * 40), ("other", "b" * 40)):
        (cache / "refs").mkdir(parents=True, exist_ok=True)
        (cache / "refs" / name).write_text(commit)
        snapshot = cache / "snapshots" / commit
        snapshot.mkdir(parents=True)
        write_hf(snapshot)
        (snapshot / "merges.txt").write_text(name)
    out = tmp_path / "jax"
    command = [sys.executable, "-m", "converters", "hf-to-jax", "nobody/tiny", str(out), "--quiet"]
    command += ["--revision", revision] if revision else []
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / "hf" / "merges.txt").read_text() == (revision or "main")
    assert weights.load_config(out) == CONFIG


def test_help_starts_without_jax():
    code = (
        "import sys\n"
        "from converters.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print('jax' in sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "verify" in run.stdout
    assert run.stdout.strip().endswith("False")


def test_a_damaged_checkpoint_is_named_and_not_exported(tmp_path, capsys):
    run = tmp_path / "run"
    for step in ("3", "4"):
        params = run / "checkpoints" / step / "params"
        params.mkdir(parents=True)
        (params / "data").write_bytes(b"weights" * 100)
        digests.write(params)
    (run / "checkpoints" / "4" / "params" / "data").write_bytes(b"Weights" * 100)
    assert main(["jax-to-hf", str(run), str(tmp_path / "out")]) != 0
    told = capsys.readouterr().err
    assert "taking checkpoint 4" in told
    assert "4: damaged, params/data is not as it was written; an older one is" in told
    assert main(["verify", str(run)]) == 1
    told = capsys.readouterr().out
    assert "checkpoint 4: damaged" in told
