"""Runs the scripts where gcloud, kubectl, xpk and Slurm are stand-ins that know the reference."""

import json
import os
import shlex
import stat
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = HERE.parent.parent / "tpu_scripts"
ROUTES = {
    "instance": {"ROUTE": "instance", "PROVISIONING": "flex"},
    "group": {"ROUTE": "group", "HOSTS": "2", "PROVISIONING": "spot"},
    "queued": {"ROUTE": "queued", "PROVISIONING": "standard"},
}
GKE = {"ROUTE": "gke", "HOSTS": "4", "PROVISIONING": "spot"}


def executable(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def pod_env(pod, route, **more):
    lines = (SCRIPTS / "pod.env.example").read_text().splitlines()
    route = GKE if route == "gke" else ROUTES[route]
    values = {"SHARED": str(pod / "shared"), **route, **more}
    kept = [line for line in lines if line.partition("=")[0] not in values]
    kept += [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    (pod / "pod.env").write_text("\n".join(kept) + "\n")


def environment(pod, **more):
    return {
        **os.environ,
        "PATH": f"{pod / 'bin'}:{os.environ['PATH']}",
        "POD_ENV": str(pod / "pod.env"),
        "FAKE_CLOUD": str(pod / "cloud"),
        "TMPDIR": str(pod),
        "POLL_S": "1",
        **more,
    }


def call(pod, verb, *words, **env):
    return subprocess.run(
        [SCRIPTS / f"{verb}.sh", *words],
        env=environment(pod, **env),
        cwd=pod,
        capture_output=True,
        text=True,
        timeout=60,
    )


def calls(pod, name="calls"):
    file = pod / "cloud" / name
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
