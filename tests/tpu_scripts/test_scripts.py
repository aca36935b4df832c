"""The scripts against a gcloud that knows the recorded reference; nothing reaches a cloud."""

import json
import os
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPTS = HERE.parent.parent / "tpu_scripts"
WAY = (
    *("create", "wait", "setup", "sync", "convert", "launch", "logs", "check"),
    *("rehearse", "resume", "fetch", "cost", "delete"),
)
ROUTES = {
    "instance": {"ROUTE": "instance", "PROVISIONING": "flex"},
    "group": {"ROUTE": "group", "HOSTS": "2", "PROVISIONING": "spot"},
    "queued": {"ROUTE": "queued", "PROVISIONING": "standard"},
}


def executable(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


@pytest.fixture
def pod(tmp_path):
    """A cloud without anything in it, hosts whose python and mounts are stand-ins."""
    bin_, cloud = tmp_path / "bin", tmp_path / "cloud"
    bin_.mkdir()
    cloud.mkdir()
    executable(bin_ / "gcloud", f'#!/bin/sh\nexec python3 "{HERE / "fake_gcloud.py"}" "$@"\n')
    for name in ("gcsfuse", "sudo", "mountpoint"):
        executable(bin_ / name, '#!/bin/sh\n[ "${0##*/}" = sudo ] && exec "$@"\nexit 0\n')
    return tmp_path


def pod_env(pod, route, **more):
    lines = (SCRIPTS / "pod.env.example").read_text().splitlines()
    values = {"SHARED": str(pod / "shared"), **ROUTES[route], **more}
    kept = [line for line in lines if line.partition("=")[0] not in values]
    (pod / "pod.env").write_text("\n".join(kept + [f"{k}={v}" for k, v in values.items()]) + "\n")


def call(pod, verb, *words):
    env = {
        **os.environ,
        "PATH": f"{pod / 'bin'}:{os.environ['PATH']}",
        "POD_ENV": str(pod / "pod.env"),
        "FAKE_CLOUD": str(pod / "cloud"),
        "TMPDIR": str(pod),
        "POLL_S": "1",
    }
    script = SCRIPTS / f"{verb}.sh"
    return subprocess.run(
        [script, *words], env=env, cwd=pod, capture_output=True, text=True, timeout=60
    )


def calls(pod):
    file = pod / "cloud" / "calls"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say():
    files = [*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("gke/*.sh"), *SCRIPTS.glob("slurm/*")]
    done = subprocess.run(["shellcheck", "-x", *files], cwd=SCRIPTS, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("route", ROUTES)
def test_the_dry_way_prints_every_command_and_asks_nobody(pod, route):
    pod_env(pod, route)
    for verb in WAY:
        done = call(pod, verb, "--dry-run")
        assert done.returncode == 0, (verb, done.stderr)
        assert "gcloud " in done.stdout, verb
    assert calls(pod) == []
    assert not (pod / "runs").exists()


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_printed_is_what_gcloud_takes(pod, route):
    """Every command of the dry way, read by a shell, is one that the reference knows."""
    pod_env(pod, route)
    told = "".join(
        line + "\n"
        for verb in ("create", "wait", "rehearse", "fetch", "delete")
        for line in call(pod, verb, "--dry-run").stdout.splitlines()
        if line.startswith("gcloud ") and not (" describe " in line or "kill" in line)
    )
    env = {**os.environ, "PATH": f"{pod / 'bin'}:{os.environ['PATH']}"}
    env["FAKE_CLOUD"] = str(pod / "cloud")
    done = subprocess.run(["sh", "-e", "-c", told], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(calls(pod)) >= 4


@pytest.mark.parametrize("route", ROUTES)
def test_create_wait_and_delete_can_be_repeated(pod, route):
    pod_env(pod, route)
    assert "is not there" in call(pod, "delete").stdout
    for _ in range(2):
        assert call(pod, "create").returncode == 0
        done = call(pod, "wait", "1")
        assert done.returncode == 0 and "ready" in done.stdout, done.stderr
    made = [words for words in calls(pod) if "create" in words]
    assert len(made) == (3 if route == "group" else 1)
    for _ in range(2):
        assert call(pod, "delete").returncode == 0
    left = [f.name for f in (pod / "cloud").iterdir() if f.is_file() and f.name != "calls"]
    assert left == []


def test_a_run_is_started_once_on_every_host_and_watched(pod):
    pod_env(pod, "group")
    assert call(pod, "create").returncode == 0
    python = 'echo "$@" > $HOME/argv; sleep 30'
    for host in ("vlaa-0", "vlaa-1"):
        home = pod / "cloud" / "home" / host
        (home / "vlaa/venv/bin").mkdir(parents=True)
        (home / "vlaa/logs").mkdir()
        (home / "vlaa/code").mkdir()
        executable(home / "vlaa/venv/bin/python", f"#!/bin/sh\n{python}\n")
    first = call(pod, "launch")
    assert first.returncode == 0, first.stderr
    assert call(pod, "launch").stdout.count("runs already") == 2
    time.sleep(1)
    pids = []
    for number, host in enumerate(("vlaa-0", "vlaa-1")):
        home = pod / "cloud" / "home" / host
        pids.append(int((home / "vlaa/pid").read_text()))
        argv = (home / "argv").read_text()
        assert f"--coordinator=vlaa-0:8476 --process_count=2 --process_id={number}" in argv
        assert "--config=configs/grpo.py:3b" in argv
    assert call(pod, "check").stdout.count("running") == 2
    for pid in pids:
        os.killpg(pid, 15)
    shutil.rmtree(pod / "cloud" / "home")


def test_code_reaches_the_hosts(pod):
    pod_env(pod, "instance")
    home = pod / "cloud" / "home" / "vlaa"
    (home / "vlaa/venv/bin").mkdir(parents=True)
    executable(home / "vlaa/venv/bin/pip", "#!/bin/sh\nexit 0\n")
    for _ in range(2):
        done = call(pod, "sync")
        assert done.returncode == 0, done.stderr
    assert (home / "vlaa/code/vlaa_jax/main.py").exists()


def test_cost_is_chips_times_hours(pod):
    pod_env(pod, "group", PRICE_PER_CHIP_HOUR="2")
    call(pod, "create")
    (pod / "cloud" / "instances.vlaa-0").write_text("RUNNING")
    run = pod / "runs" / "grpo-3b"
    run.mkdir(parents=True)
    (run / "config.json").write_text('{\n "run": {\n  "steps": 4\n }\n}\n')
    (run / "metrics.jsonl").write_text('{"step": 0, "time/step_s": 3600.0}\n')
    told = call(pod, "cost").stdout
    assert "8 chips" in told
    assert "1 of 4 steps done; the rest takes about 3.0 h and 48.00" in told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ROUTE": "gke"}, "ROUTE=gke"),
        ({"PROVISIONING": "reserved"}, "PROVISIONING=reserved does not go with ROUTE=instance"),
        ({"PROJECT": ""}, "PROJECT is not set"),
    ],
)
def test_bad_settings_get_one_line(pod, change, words):
    pod_env(pod, "instance", **change)
    done = call(pod, "create")
    assert done.returncode == 2 and words in done.stderr
    assert calls(pod) == []


def test_an_unknown_option_gets_one_line(pod):
    pod_env(pod, "instance")
    done = call(pod, "launch", "--dryrun")
    assert done.returncode == 2 and "unknown option --dryrun" in done.stderr
