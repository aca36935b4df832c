"""The scripts against a gcloud that knows the recorded reference; nothing reaches a cloud."""

import os
import shutil
import subprocess
import time

import pytest
from clouds import ROUTES, SCRIPTS, call, calls, environment, executable, pod_env

WAY = (
    *("create", "wait", "setup", "sync", "convert", "launch", "logs", "check"),
    *("rehearse", "resume", "fetch", "cost", "delete"),
)


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
    done = subprocess.run(
        ["sh", "-e", "-c", told], env=environment(pod), capture_output=True, text=True
    )
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
    """It outlives the ssh that started it, and options reach it as they were written."""
    written = (
        """--config.data.records='my data/it is.json' --config.rewards.judge="a 'b' $((1+1))\""""
    )
    pod_env(pod, "group", OPTIONS=written)
    assert call(pod, "create").returncode == 0
    python = 'echo "$JUDGE_KEY" > $HOME/key; printf "%s\\n" "$@" > $HOME/argv; sleep 30'
    for host in ("vlaa-0", "vlaa-1"):
        home = pod / "cloud" / "home" / host
        (home / "vlaa/venv/bin").mkdir(parents=True)
        (home / "vlaa/logs").mkdir()
        (home / "vlaa/code").mkdir()
        executable(home / "vlaa/venv/bin/python", f"#!/bin/sh\n{python}\n")
        (home / "vlaa/pid").write_text(str(os.getpid()))  # of something else, since a restart
        (home / "vlaa.env").write_text("JUDGE_KEY='se cret'\n")
    first = call(pod, "launch")
    assert first.returncode == 0, first.stderr
    assert call(pod, "launch").stdout.count("runs already") == 2
    time.sleep(1)
    pids = []
    for number, host in enumerate(("vlaa-0", "vlaa-1")):
        home = pod / "cloud" / "home" / host
        pids.append(int((home / "vlaa/pid").read_text()))
        argv = (home / "argv").read_text().splitlines()
        assert argv[-3:] == [
            "--coordinator=vlaa-0:8476",
            "--process_count=2",
            f"--process_id={number}",
        ]
        assert "--config=configs/grpo.py:3b,rule-only" in argv
        assert "--config.data.records=my data/it is.json" in argv
        assert "--config.rewards.judge=a 'b' 2" in argv
        assert (home / "key").read_text() == "se cret\n"
        assert os.getsid(pids[-1]) == pids[-1]  # no terminal's end ends it
    assert call(pod, "sync").stdout.count("its code stays") == 2
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
        ({"ROUTE": "instances"}, "is not instance, group, queued or gke"),
        ({"PROJECT": ""}, "PROJECT is not set"),
        ({"RUN": "my run"}, "RUN=my run in"),
        ({"NAME": "it's"}, "NAME=it's in"),
        ({"RUN": "../other"}, "no .."),
        ({"CONFIG": "x;reboot"}, "CONFIG=x;reboot in"),
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


@pytest.mark.parametrize("verb", ["create", "wait", "delete", "check", "resume"])
def test_a_login_that_is_over_says_nothing_of_the_pod(pod, verb):
    pod_env(pod, "instance")
    call(pod, "create")
    before = len(calls(pod))
    (pod / "cloud" / "refuses").touch()
    done = call(pod, verb)
    assert done.returncode == 2 and "Reauthentication failed" in done.stderr
    assert "is not there" not in done.stdout
    assert len(calls(pod)) == before + 1  # it asked, and did nothing after that


def test_hosts_that_cannot_be_listed_or_are_too_few_stop_a_script(pod):
    pod_env(pod, "group", HOSTS="3")
    call(pod, "create")
    done = call(pod, "setup")
    assert done.returncode == 2 and "2 hosts are there, HOSTS=3" in done.stderr
    (pod / "cloud" / "refuses").touch()
    done = call(pod, "setup")
    assert done.returncode == 2 and "Reauthentication failed" in done.stderr


def test_wait_stands_a_host_that_is_still_booting(pod):
    pod_env(pod, "group")
    call(pod, "create")
    (pod / "cloud" / "booting").touch()
    done = call(pod, "wait", "1")
    assert done.returncode == 0, done.stderr
    assert "does not answer yet" in done.stdout and "is ready" in done.stdout


@pytest.mark.parametrize(
    ("route", "state", "anew"),
    [
        ("instance", "TERMINATED", True),
        ("instance", "PROVISIONING", False),
        ("group", "False", False),
        ("queued", "SUSPENDED", True),
        ("queued", "WAITING_FOR_RESOURCES", False),
    ],
)
def test_resume_gives_up_only_what_is_over(pod, route, state, anew):
    pod_env(pod, route)
    call(pod, "create")
    kinds = {"instance": "instances", "group": "managed", "queued": "queued-resources"}
    (pod / "cloud" / f"{kinds[route]}.vlaa").write_text(state)
    before = len(calls(pod))
    # All that is asked here is what comes first: waiting ends at once, and so does setup.
    executable(pod / "bin" / "sleep", "#!/bin/sh\nkill $PPID\n")
    executable(pod / "bin" / "sudo", "#!/bin/sh\nexit 1\n")
    assert call(pod, "resume").returncode != 0
    assert any("delete" in words for words in calls(pod)[before:]) == anew


def test_setup_brings_a_python_that_is_new_enough_once(pod):
    pod_env(pod, "instance")
    call(pod, "create")
    uv = pod / "cloud/home/vlaa/vlaa/uv/bin/uv"
    uv.parent.mkdir(parents=True)
    made = 'for last; do :; done; mkdir -p "$last/bin"; echo "$@" >> ~/uv_calls'
    pip = 'printf "#!/bin/sh\\n" > "$last/bin/pip"; chmod +x "$last/bin/pip"'
    executable(uv, f"#!/bin/sh\n{made}; {pip}\n")
    for _ in range(2):
        done = call(pod, "setup")
        assert done.returncode == 0, done.stderr
    assert (pod / "shared/runs").is_dir()
    told = (pod / "cloud/home/vlaa/uv_calls").read_text().splitlines()
    assert len(told) == 1 and "--seed --python 3.12" in told[0]


def test_keys_reach_the_hosts_in_a_file_that_only_their_user_reads(pod):
    pod_env(pod, "instance", KEY_FILE=str(pod / "my keys"))
    (pod / "my keys").write_text("HF_TOKEN=hf_secret\n")
    home = pod / "cloud/home/vlaa"
    (home / "vlaa/venv/bin").mkdir(parents=True)
    executable(home / "vlaa/venv/bin/pip", "#!/bin/sh\nexit 0\n")
    done = call(pod, "sync")
    assert done.returncode == 0, done.stderr
    assert (home / "vlaa.env").read_text() == "HF_TOKEN=hf_secret\n"
    assert (home / "vlaa.env").stat().st_mode & 0o77 == 0
    said = done.stdout + done.stderr + str(calls(pod)) + call(pod, "sync", "--dry-run").stdout
    assert "hf_secret" not in said


@pytest.mark.parametrize(("kind", "chips"), [("v5litepod-16", 16), ("v5p-16", 8), ("v6e-8", 8)])
def test_cost_knows_which_names_count_cores(pod, kind, chips):
    pod_env(pod, "queued", ACCELERATOR=kind)
    call(pod, "create")
    assert call(pod, "cost").stdout.startswith(f"{chips} chips")


def test_logs_of_hosts_that_have_none_yet(pod):
    pod_env(pod, "group")
    call(pod, "create")
    done = call(pod, "logs")
    assert done.returncode == 0 and done.stdout.count("no log yet") == 2
