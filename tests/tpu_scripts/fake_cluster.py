#!/usr/bin/env python3
"""Stands in for kubectl, xpk, sbatch, srun and scontrol: refuses what the reference does not know.

Calls are kept in FAKE_CLOUD. ``kubectl`` remembers JobSets; ``sbatch`` runs its script with the
directives' options; ``srun`` starts a process per task with the variables that Slurm gives it.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
REFERENCE = json.loads((Path(__file__).parent / "cluster_reference.json").read_text())


def main(program, words):
    name = max((n for n in REFERENCE if fits(n.split(), [program, *words])), key=len, default="")
    if not name:
        sys.exit(f"error: unknown command {program} {words}")
    given, rest = read(REFERENCE[name], words[len(name.split()) - 1 :])
    said = "" if sys.stdin is None or "-f" not in given else sys.stdin.read()
    with open(CLOUD / "cluster_calls", "a") as calls:
        calls.write(json.dumps([name, given, rest, said]) + "\n")
    acts = {"sbatch": sbatch, "srun": srun, "kubectl apply": apply, "kubectl delete": delete}
    if name in acts:
        sys.exit(acts[name](given, rest, said))


def fits(name, words):
    return words[: len(name)] == name


def read(known, words):
    """Options with their values, and the words that are left; stops at what is not an option."""
    given, rest = {}, []
    words = list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            rest.append(word)
            if known["words"] < 0:
                return given, rest + words
            continue
        option, equals, value = word.partition("=")
        if option == "-f":
            option, equals, value = "-f", "=", words.pop(0)
        if option + equals not in known["options"]:
            sys.exit(f"error: unknown flag {word}")
        if value not in known.get("choices", {}).get(option, [value]):
            sys.exit(f"error: invalid choice {word}")
        given[option] = value
    missing = [option for option in known.get("needs", []) if option not in given]
    if missing or len(rest) != known["words"] != -1:
        sys.exit(f"error: missing {missing} or wrong words {rest}")
    return given, rest


def apply(given, rest, said):
    file = CLOUD / f"jobset.{re.search('^  name: (.*)$', said, re.M)[1]}"
    print("unchanged" if file.exists() and file.read_text() == said else "configured")
    file.write_text(said)


def delete(given, rest, said):
    file = CLOUD / f"{rest[0]}.{rest[1]}"
    if not file.exists() and "--ignore-not-found" not in given:
        return 'Error from server (NotFound): jobsets.jobset.x-k8s.io "x" not found'
    file.unlink(missing_ok=True)
    return 0


def sbatch(given, rest, said):
    lines = Path(rest[0]).read_text().splitlines()
    told = [line.split()[1] for line in lines if line.startswith("#SBATCH ")]
    options, _ = read(REFERENCE["sbatch"], told)
    env = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": options["--cpus-per-task"]}
    tasks = int(options["--nodes"]) * int(options["--ntasks-per-node"])
    env |= {"SLURM_NTASKS": str(tasks), "SLURM_NNODES": options["--nodes"]}
    # Not a login shell's directory: Slurm runs a copy of the script from its spool.
    script = CLOUD / "slurm_script"
    script.write_text("\n".join(lines) + "\n")
    return subprocess.run(["bash", script, *rest[1:]], env={**os.environ, **env}).returncode


def srun(given, rest, said):
    each = int(os.environ["SLURM_NTASKS"]) // int(os.environ["SLURM_NNODES"])
    steps = []
    for task in range(int(os.environ["SLURM_NTASKS"])):
        env = {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task % each)}
        env["SLURM_STEP_NODELIST"] = f"n[0-{int(os.environ['SLURM_NNODES']) - 1}]"
        steps.append(subprocess.Popen(rest, env={**os.environ, **env}))
    if "SLURM_SIGNAL" in os.environ:  # as --signal does: to the tasks, once they are there
        while len(list(CLOUD.glob("task.*"))) < len(steps):
            pass
        for step in steps:
            step.send_signal(int(getattr(signal, os.environ["SLURM_SIGNAL"])))
    return max(step.wait() for step in steps)


main(sys.argv[1], sys.argv[2:])
