"""The recipes for GKE and Slurm against programs that know the recorded options."""

import shlex
import subprocess

import pytest
import yaml
from clouds import SCRIPTS, call, calls, environment, executable, pod_env
from jax._src.clusters.cloud_tpu_cluster import GkeTpuCluster
from jax._src.clusters.slurm_cluster import SlurmCluster

from vlaa_jax.parallel.start import several

OPTIONS = """--config.data.records='/data/it'"'"'s mine.json' --config.mesh.fsdp=8"""
WORDS = ["--config.data.records=/data/it's mine.json", "--config.mesh.fsdp=8"]
TRAIN = [
    *("python", "-m", "vlaa_jax.main", "--config=configs/grpo.py:3b,rule-only"),
    "--workdir=/gcs/runs/grpo-3b",
    "--config.model.checkpoint=/gcs/checkpoints/Qwen2.5-VL-3B-Instruct",
    *WORDS,
]


@pytest.fixture
def gke(pod):
    pod_env(pod, "gke", SHARED="/gcs", OPTIONS=OPTIONS, IMAGE="eu.pkg.dev/p/vlaa:1")
    return pod


def manifest(pod):
    """What ``kubectl`` was given."""
    assert call(pod, "gke/launch").returncode == 0
    return yaml.safe_load((pod / "cloud" / "jobset.vlaa").read_text())


def test_the_jobset_starts_python_on_every_host_of_the_slice(gke):
    jobset = manifest(gke)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["name"] == "vlaa"
    (slice_,) = jobset["spec"]["replicatedJobs"]
    job = slice_["template"]["spec"]
    assert (slice_["replicas"], job["parallelism"], job["completions"]) == (1, 4, 4)
    assert job["completionMode"] == "Indexed"  # the number is the host's TPU_WORKER_ID
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (train,) = pod["containers"]
    assert train["image"] == "eu.pkg.dev/p/vlaa:1"
    # Chips are asked for, so GKE names the hosts; hosts x chips are those of the topology.
    assert train["resources"]["requests"] == train["resources"]["limits"] == {"google.com/tpu": 4}
    # The first process of the pod, without a shell before it, gets the pod's SIGTERM.
    assert train["command"] == TRAIN


def test_the_jobset_goes_on_after_an_eviction_from_a_directory_of_all(gke):
    jobset = manifest(gke)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    # One pod that ends ends the job, and the JobSet starts all pods anew: never one alone.
    assert (pod["restartPolicy"], job["backoffLimit"]) == ("Never", 0)
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] >= 1
    assert pod["terminationGracePeriodSeconds"] >= 60
    (mount,) = pod["containers"][0]["volumeMounts"]
    (volume,) = pod["volumes"]
    assert (mount["name"], mount["mountPath"]) == (volume["name"], "/gcs")
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "my-bucket"
    assert job["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}


def test_jax_finds_the_hosts_by_what_gke_sets(monkeypatch):
    names = {
        "TPU_WORKER_ID": "1",
        "TPU_WORKER_HOSTNAMES": "vlaa-slice-0-0.vlaa,vlaa-slice-0-1.vlaa",
    }
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert several(names)
    assert not several({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_SKIP_MDS_QUERY": "1"})
    assert GkeTpuCluster._get_process_id_in_slice() == 1
    assert len(GkeTpuCluster._get_worker_list_in_slice()) == 2


def test_gke_verbs_can_be_repeated_and_a_dry_run_asks_nobody(gke):
    for verb in ("launch", "xpk", "check", "logs", "delete"):
        done = call(gke, f"gke/{verb}", "--dry-run")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(("kubectl ", "xpk ")), verb
    assert calls(gke, "cluster_calls") == []
    told = call(gke, "gke/launch", "--dry-run").stdout  # as a shell takes it
    subprocess.run(["sh", "-e", "-c", told], env=environment(gke), check=True)
    assert "unchanged" in call(gke, "gke/launch").stdout
    for words in (("check",), ("logs",), ("logs", "follow"), ("delete",), ("delete",)):
        done = call(gke, f"gke/{words[0]}", *words[1:])
        assert done.returncode == 0, done.stderr
    assert not (gke / "cloud" / "jobset.vlaa").exists()


def test_xpk_gets_the_same_run(gke):
    done = call(gke, "gke/xpk")
    assert done.returncode == 0, done.stderr
    ((_, given, _, _),) = calls(gke, "cluster_calls")
    assert shlex.split(given["--command"]) == ["exec", *TRAIN]  # no shell between it and SIGTERM
    assert given["--workload"] == "vlaa" and given["--tpu-type"] == "v6e-16"
    assert (given["--project"], given["--zone"]) == ("my-project", "us-east5-b")
    # xpk itself starts again after 42 and 127-255, as 130 of those that left; a lost host makes 1.
    assert given["--restart-on-exit-codes"] == "1" and int(given["--max-restarts"]) >= 1
    assert int(given["--termination-grace-period-seconds"]) >= 60


@pytest.mark.parametrize(
    ("verb", "route", "words"),
    [("create", "gke", "is for tpu_scripts/gke"), ("gke/launch", "instance", "is for ROUTE=gke")],
)
def test_verbs_of_another_route_say_so(pod, verb, route, words):
    pod_env(pod, route)
    done = call(pod, verb)
    assert done.returncode == 2 and words in done.stderr
    assert calls(pod) == calls(pod, "cluster_calls") == []


@pytest.fixture
def slurm(pod):
    """A python that says where it runs, and leaves on SIGTERM as the program does."""
    left = "trap 'kill $!; exit 130' TERM; sleep 20 & "
    told = 'cd $FAKE_CLOUD; env > env.$SLURM_PROCID; printf "%s\\n" "$@" > task.$SLURM_PROCID'
    executable(pod / "bin" / "task", f"#!/bin/sh\n{left}{told}\nwait $!\n")
    executable(pod / "bin" / "done", f"#!/bin/sh\n{told}\n")
    executable(
        pod / "bin" / "lost", f"#!/bin/sh\n{told}\n[ $SLURM_PROCID = 3 ] && exit 1\nexit 0\n"
    )
    return pod


def sbatch(pod, python, *words, **env):
    env = environment(pod, PYTHON=python, RUN="/shared dir/run", **env)
    command = ["sbatch", SCRIPTS / "slurm" / "run.sbatch", *words]
    return subprocess.run(command, env=env, cwd=pod, capture_output=True, text=True, timeout=60)


def test_slurm_starts_a_process_per_gpu_that_jax_places(slurm, monkeypatch):
    done = sbatch(slurm, "done", *WORDS)
    assert done.returncode == 0, done.stderr
    (given,) = [c[1] for c in calls(slurm, "cluster_calls") if c[0] == "srun"]
    assert given == {"--kill-on-bad-exit": "0", "--cpus-per-task": "12"}
    tasks = list((slurm / "cloud").glob("task.*"))
    assert len(tasks) == 16
    for task in tasks:
        assert task.read_text().splitlines() == [
            *("-m", "vlaa_jax.main", "--config=configs/grpo.py:3b,rule-only"),
            *("--workdir=/shared dir/run", *WORDS),
        ]
    lines = (slurm / "cloud" / "env.11").read_text().splitlines()
    names = dict(line.partition("=")[::2] for line in lines if line.startswith("SLURM_"))
    assert several(names)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert SlurmCluster.is_env_present()
    place = SlurmCluster.get_process_count(), SlurmCluster.get_process_id()
    assert (*place, SlurmCluster.get_local_process_id()) == (16, 11, 3)


def test_slurm_puts_a_run_that_was_told_to_go_back_into_the_queue(slurm):
    done = sbatch(slurm, "task", SLURM_SIGNAL="SIGTERM")
    assert done.returncode == 130, done.stderr
    assert ["scontrol requeue", {}, ["7"], ""] in calls(slurm, "cluster_calls")


def test_slurm_does_not_repeat_a_run_that_failed(slurm):
    assert sbatch(slurm, "lost").returncode == 1
    assert not any(c[0].startswith("scontrol") for c in calls(slurm, "cluster_calls"))


def test_slurm_s_script_waits_for_the_hosts_where_it_is_told_to_go_itself(slurm):
    """As at a preemption: SIGTERM comes to the script, too."""
    waits = 'touch "$FAKE_CLOUD/waits"; kill -TERM "$PPID"; sleep 1; exit 130'
    executable(slurm / "bin" / "srun", f"#!/bin/sh\n{waits}\n")
    assert sbatch(slurm, "task").returncode == 130
    assert (slurm / "cloud" / "waits").exists()
    assert ["scontrol requeue", {}, ["7"], ""] in calls(slurm, "cluster_calls")
