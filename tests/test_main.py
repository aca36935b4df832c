"""The real command: one line for bad input, and an interrupted run ends like an undisturbed one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from full_disks import mounted, resize
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.report.record import RunRecord

ROOT = Path(__file__).parent.parent
FAST_TO_COMPILE = "--xla_backend_optimization_level=0"
SMALL = [
    "--config.rollout.prompts=4",
    "--config.rollout.completions=2",
    "--config.rollout.max_new_tokens=16",
    "--config.data.vision_bins_per_shard=4",
    "--config.data.embedded_train=20",
    "--config.data.embedded_heldout=5",
    "--config.run.eval_completions=1",
    "--config.run.save_every=1",
    "--config.run.steps=4",
    # Every part of the engine: refill, smaller buffers, groups drawn anew.
    "--config.rollout.batch_prompts=2",
    "--config.rollout.prefill_prompts=1",
    "--config.rollout.burst=8",
    "--config.algo.dynamic_sampling=1",
    # A kill may fall between two updates, and the KL controller has a state to bring back.
    "--config.algo.updates_per_rollout=2",
    "--config.algo.kl_target=0.0005",
]


def environment(**extra):
    flags = {"XLA_FLAGS": FAST_TO_COMPILE}
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **flags, **extra}


def command(workdir, cache, *options, variant="tiny"):
    return [
        *(sys.executable, "-m", "vlaa_jax.main", f"--config=configs/grpo.py:{variant}", *SMALL),
        *(f"--config.run.compilation_cache={cache}", f"--workdir={workdir}", *options),
    ]


def run(args, **extra):
    return subprocess.run(
        args, cwd=ROOT, env=environment(**extra), capture_output=True, text=True, timeout=600
    )


def started(args, words, stderr=False, **extra):
    """The running command, once it has printed a line that begins with `words`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE if stderr else None}
    process = subprocess.Popen(args, cwd=ROOT, env=environment(**extra), text=True, **pipes)
    for line in process.stdout:
        if line.startswith(words):
            break
    return process


def until(fact, longest_s=120):
    """Waits until something is the case."""
    end = time.monotonic() + longest_s
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.02)


def metrics(workdir):
    """Metrics by step, without those that are times or depend on them."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    drop = ("time/", "compile/", "train/mfu")
    return [
        {k: v for k, v in line.items() if not k.startswith(drop) and not k.endswith("_per_s")}
        for line in lines
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    base = tmp_path_factory.mktemp("main")
    start = time.monotonic()
    done = run(command(base / "run", base / "cache"))
    assert done.returncode == 0, done.stderr
    return base, done, time.monotonic() - start


def test_a_run_reports_and_leaves_its_files(undisturbed):
    base, done, _ = undisturbed
    assert done.stdout.count("reward ") >= 4
    assert "held-out reward" in done.stdout
    lines = metrics(base / "run")
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    for name in ("reward/mean", "policy/kl", "rollout/length_mean", "train/grad_norm"):
        assert all(name in line for line in lines)
    assert max(line["policy/logprob_gap_max"] for line in lines) <= 1e-4
    assert lines[0]["policy/kl"] <= 1e-9  # the reference is the starting point
    rollouts = (base / "run" / "rollouts" / "000000.jsonl").read_text().splitlines()
    assert len(rollouts) == 8
    kept = json.loads((base / "run" / "heldout.json").read_text())
    assert set(kept) >= {"before", "after", "constant"}


def test_the_record_of_tokens_agrees_with_the_metrics(undisturbed):
    """Token by token it gives what the trainer has averaged on the device."""
    base, done, _ = undisturbed
    assert f"report  {base / 'run' / 'report.html'}" in done.stdout
    assert (base / "run" / "report.html").stat().st_size > 100_000
    record = RunRecord(base / "run")
    assert record.steps() == [0, 1, 2, 3]
    assert record.steps("heldout") == [0, 4]
    for step, line in enumerate(record.metrics()):
        found = [c.tokens for c in record.read("rollouts", step)]
        every = {k: np.concatenate([t[k][t["mask"]] for t in found]) for k in found[0]}
        lag = every["reference"] - every["trainer"]
        close = partial(pytest.approx, rel=2e-3, abs=1e-8)
        assert every["entropy"].mean() == close(line["policy/entropy"])
        assert np.abs(every["gap"]).mean() == close(line["policy/logprob_gap_mean"])
        assert np.abs(every["gap"]).max() == close(line["policy/logprob_gap_max"])
        assert (np.exp(lag) - lag - 1).mean() == pytest.approx(
            line["policy/kl"], rel=0.02, abs=1e-7
        )
        assert np.mean([len(t["tokens"]) for t in found]) == close(line["rollout/length_mean"])


def recorded(workdir):
    """The files of the record, byte by byte."""
    files = [file for name in ("rollouts", "heldout") for file in (workdir / name).glob("0*")]
    return {str(file.relative_to(workdir)): file.read_bytes() for file in files}


def test_a_run_killed_at_random_times_ends_like_an_undisturbed_one(undisturbed, tmp_path, request):
    """SIGKILL at a random time after each start; together they come to about half of the run."""
    base, _, _ = undisturbed
    workdir = tmp_path / "run"
    args = command(workdir, base / "cache")
    lines = (base / "run" / "metrics.jsonl").read_text().splitlines()
    step_s = min(json.loads(line)["time/step_s"] for line in lines)
    kills = request.config.getoption("--kills")
    delays = np.random.default_rng(0).uniform(0, 4 * step_s / kills, kills)
    steps_done = []
    for delay in delays:
        process = started(args, "ready")
        time.sleep(delay)
        process.kill()
        if process.wait() == 0:  # faster than the undisturbed run: it has come to its end
            break
        assert process.returncode == -signal.SIGKILL
        steps_done.append(len(metrics(workdir)) if (workdir / "metrics.jsonl").exists() else 0)
    assert min(steps_done) < 4, "no kill came before the end"
    resumed = run(args)
    assert resumed.returncode == 0, resumed.stderr
    assert metrics(workdir) == metrics(base / "run"), f"steps before each kill: {steps_done}"
    before, after = (json.loads((d / "heldout.json").read_text()) for d in (base / "run", workdir))
    assert before == after
    assert recorded(workdir) == recorded(base / "run")


def test_a_kill_between_two_steps_is_made_up_for(undisturbed, tmp_path):
    base, _, _ = undisturbed
    workdir = tmp_path / "run"
    args = command(workdir, base / "cache")
    process = started(args, "step    3/")  # so that the save after the first step has ended
    process.kill()
    process.wait()
    resumed = run(args)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming at step" in resumed.stdout
    assert metrics(workdir) == metrics(base / "run")


def test_adapters_train_resume_and_are_exported(tmp_path):
    adapters = ["--config.model.lora.rank=4", "--config.run.steps=2", "--config.run.eval_every=0"]
    adapters += ["--config.optimizer.lr=0.01", "--config.optimizer.min_lr=0.001"]
    # So few short answers are all paid the same; the entropy bonus gives them a gradient.
    adapters += ["--config.algo.entropy_coef=0.01", "--config.algo.updates_per_rollout=1"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = run(command(whole, tmp_path / "cache", *adapters, variant="tiny,lora"))
    assert done.returncode == 0, done.stderr
    args = command(cut, tmp_path / "cache", *adapters, variant="tiny,lora")
    process = started(args, "step    1/")
    process.kill()
    process.wait()
    resumed = run(args)
    assert resumed.returncode == 0, resumed.stderr
    assert metrics(cut) == metrics(whole)
    first, second = metrics(whole)
    assert first["policy/kl"] <= 1e-9  # with b = 0 the adapters change nothing yet
    assert second["policy/kl"] > 0
    export = [sys.executable, "-m", "converters", "jax-to-hf", "--adapter", str(whole)]
    exported = run([*export, str(tmp_path / "adapter")])
    assert exported.returncode == 0, exported.stderr
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (written["r"], written["peft_type"]) == (4, "LORA")


SHARDED = [
    "--config.mesh.data=2",
    "--config.mesh.fsdp=2",
    "--config.rollout.prompts=16",
    "--config.rollout.batch_prompts=8",
    "--config.rollout.prefill_prompts=4",
    "--config.rollout.burst=8",
    "--config.algo.dynamic_sampling=0",
    "--config.algo.updates_per_rollout=2",
    "--config.algo.micro_prompts=4",
    "--config.algo.kl_target=0.0005",
    "--config.model.freeze=('vision',)",
    "--config.run.steps=2",
]


def test_a_sharded_run_with_several_updates_resumes(tmp_path):
    flags = {"XLA_FLAGS": f"{FAST_TO_COMPILE} --xla_force_host_platform_device_count=4"}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = run(command(whole, tmp_path / "cache", *SHARDED), **flags)
    assert done.returncode == 0, done.stderr
    args = command(cut, tmp_path / "cache", *SHARDED)
    process = started(args, "step    1/", **flags)
    until(lambda: list((cut / "checkpoints").glob("1*")))  # it counts, and its save has begun
    process.send_signal(signal.SIGINT)  # Ctrl-C: the finished step is kept
    assert process.wait() == 130
    resumed = run(args, **flags)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming at step 1" in resumed.stdout
    first, second = metrics(whole), metrics(cut)
    assert len(first) == len(second) == 2
    for name, value in first[1].items():
        assert second[1][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_exactly(undisturbed, tmp_path):
    base, _, _ = undisturbed
    files = [path for path in (base / "run").rglob("*") if path.is_file()]
    whole = sum(path.stat().st_size for path in files) // 1024
    with mounted(tmp_path / "disk", 4 * whole) as disk:
        args = command(disk / "run", base / "cache")
        for part in (0.01, 0.4, 0.8):  # in the data, in the first checkpoint, in a later one
            resize(disk, max(int(part * whole), 64))
            done = run(args)
            assert_refused(
                done, "No space left on device", "; free some space; ", "the same command"
            )
            saved = re.search(r"steps up to (\d+) are saved", done.stderr)
            steps = [int(p.name) for p in (disk / "run").glob("checkpoints/*") if p.name.isdigit()]
            assert max(steps, default=0) == (int(saved[1]) if saved else 0), done.stderr
            left = [str(p.relative_to(disk / "run")) for p in (disk / "run").rglob("*")]
            assert not [p for p in left if ("partial" in p or "-tmp" in p) and "data/" not in p]
        resize(disk, 4 * whole)
        resumed = run(args)
        assert resumed.returncode == 0, resumed.stderr
        assert metrics(disk / "run") == metrics(base / "run")
        assert recorded(disk / "run") == recorded(base / "run")


def test_a_signal_and_a_cache_that_cannot_be_used(tmp_path):
    (tmp_path / "cache").write_text("in the way")
    process = started(command(tmp_path / "run", tmp_path / "cache"), "sampling", stderr=True)
    time.sleep(2)  # programs compile
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    lines = said.splitlines()
    assert process.returncode == 130, said
    assert ["cannot be used" in lines[0], "interrupted" in lines[1], len(lines)] == [True, True, 2]


def test_other_settings_do_not_mix_with_a_run(undisturbed):
    base, _, _ = undisturbed
    refused = run(command(base / "run", base / "cache", "--config.optimizer.lr=0.5"))
    assert_refused(refused, "optimizer.lr", "another workdir")


def assert_refused(done, *words):
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert "Traceback" not in done.stderr, done.stderr
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--config.optimizer.lr=fast", ["lr"]),
        ("--config.model.checkpoint=/no/such/model", ["model.checkpoint", "/no/such/model"]),
        ("--config.rollout.completions=1", ["rollout.completions"]),
        ("--config.rollout.batch_prompts=3", ["rollout.batch_prompts"]),
        ("--config.data.records=/no/such.json", ["data.records", "/no/such.json"]),
        ("--config.algo.advantage=best", ["algo.advantage", "leave_one_out"]),
        ("--config.mesh.tensor=3", ["mesh"]),
        ("--config.rewards.beta=-1.0", ["rewards.beta"]),
    ],
)
def test_bad_settings_get_one_line(tmp_path, option, words):
    assert_refused(run(command(tmp_path / "run", tmp_path / "cache", option)), *words)


def test_unknown_keys_get_one_line(tmp_path):
    done = run(command(tmp_path / "run", tmp_path / "cache", "--config.algo.kl_coeff=0.1"))
    assert_refused(done, "config.algo.kl_coeff: unknown config key", "'kl_coef'")


def test_an_unknown_variant_gets_one_line(tmp_path):
    args = [sys.executable, "-m", "vlaa_jax.main", "--config=configs/grpo.py:huge"]
    assert_refused(run(args), "huge", "tiny")


def test_a_missing_config_file_gets_one_line():
    for words in (["--config=configs/nope.py:tiny"], ["--config", "configs/nope.py"]):
        done = run([sys.executable, "-m", "vlaa_jax.main", *words])
        assert_refused(done, "--config: configs/nope.py does not exist")


def test_a_refused_command_does_not_claim_the_directory(tmp_path):
    bad = command(tmp_path / "run", tmp_path / "cache", "--config.model.checkpoint=/no/such/model")
    assert run(bad).returncode != 0
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_over_long_prompt_is_refused_before_the_first_step(tmp_path):
    options = ["--config.data.max_prompt_tokens=60"]
    done = run(command(tmp_path / "run", tmp_path / "cache", *options))
    assert_refused(done, "limit of 60 (data.max_prompt_tokens)", "data.bad_records=skip")


def test_a_missing_image_gets_one_line(tmp_path):
    paths = write_dataset(tmp_path / "data", n_train=10, n_heldout=5, n_sft=1)
    lost = next(paths.images.rglob("*.png"))
    name = lost.name
    lost.unlink()
    options = [
        f"--config.data.records={paths.grpo if 'train' in name else paths.heldout}",
        f"--config.data.image_root={paths.images}",
    ]
    done = run(command(tmp_path / "run", tmp_path / "cache", *options))
    assert_refused(done, name, "data.bad_records=skip")


def test_an_unwritable_workdir_gets_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = run(command(tmp_path / "file" / "run", tmp_path / "cache"))
    assert_refused(done, "--workdir", "file")


def test_an_old_jax_gets_one_line(tmp_path):
    info = tmp_path / "jax-0.4.30.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: jax\nVersion: 0.4.30\n")
    path = f"{tmp_path}:{ROOT}"
    done = run(command(tmp_path / "run", tmp_path / "cache"), PYTHONPATH=path)
    assert_refused(done, "jax 0.4.30", "0.10.2")
