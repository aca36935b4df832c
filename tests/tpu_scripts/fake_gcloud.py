#!/usr/bin/env python3
"""Stands in for gcloud: refuses what the recorded reference does not know, remembers what is there.

State is a folder named by FAKE_CLOUD: a file per resource with its state, and a list of calls. What
``--command`` says runs in sh with a home folder of the machine, and with harmless stand-ins.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
REFERENCE = json.loads((Path(__file__).parent / "gcloud_reference.json").read_text())
MADE = {"instances": "RUNNING", "managed": "True", "queued-resources": "ACTIVE"}


def main(words):
    name = command_of(words)
    known = REFERENCE["commands"][name]
    rest = words[len(name.split()) :]
    flags = dict(w.partition("=")[::2] for w in rest if w.startswith("--"))
    targets = [w for w in rest if not w.startswith("--")]
    check(known, rest, flags, targets)
    with open(CLOUD / "calls", "a") as calls:
        calls.write(json.dumps(words) + "\n")
    if (CLOUD / "refuses").exists():
        sys.exit("ERROR: Reauthentication failed, run gcloud auth login")
    act(name.split(), flags, targets)


def command_of(words):
    fitting = [n for n in REFERENCE["commands"] if words[: len(n.split())] == n.split()]
    if not fitting:
        sys.exit(f"ERROR: no such command: {' '.join(words)}")
    return max(fitting, key=len)


def check(known, rest, flags, targets):
    allowed = [*known["flags"], *REFERENCE["wide"]]
    for word in rest:
        flag = word.partition("=")[0] + ("=" if "=" in word else "")
        if word.startswith("--") and flag not in allowed:
            sys.exit(f"ERROR: unrecognized argument {word}")
    missing = [f for f in known.get("needs", []) if f.rstrip("=") not in flags]
    named = "--project" in flags or rest[:1] == ["--recursive"]
    if missing or len(targets) != known["takes"] or not named:
        sys.exit(f"ERROR: missing {missing or 'arguments'} in {rest}")


def act(name, flags, targets):
    verb, kind = (name[-2], name[-1]) if name[-1] == "workload-policy" else (name[-1], name[-2])
    kind = {"workload-policy": "resource-policies"}.get(kind, kind)
    file = CLOUD / f"{kind}.{targets[0].replace('/', '_')}"
    if verb in ("ssh", "scp", "rsync", "add-metadata"):
        transfer(verb, flags, targets)
    elif verb == "create":
        if file.exists():
            sys.exit(f"ERROR: {file.name} already exists")
        file.write_text(MADE.get(kind, "made"))
    elif not file.exists():
        sys.exit(f"ERROR: The resource 'projects/p/{kind}/{targets[0]}' was not found")
    elif verb == "delete":
        file.unlink()
    elif verb == "list-instances":
        print("\n".join(f"{targets[0]}-{k}" for k in range(2)))
    elif "Time" in flags.get("--format", ""):
        print("2026-01-01T00:00:00Z")
    else:
        print(file.read_text())


def transfer(verb, flags, targets):
    home = CLOUD / "home" / targets[-1].partition(":")[0].replace("/", "_")
    home.mkdir(parents=True, exist_ok=True)
    if verb == "scp":
        (home / targets[1].partition(":")[2]).write_bytes(Path(targets[0]).read_bytes())
    if verb == "ssh" and (CLOUD / "booting").exists():
        (CLOUD / "booting").unlink()
        sys.exit("ERROR: port 22: Connection refused")
    if verb == "ssh":
        env = {**os.environ, "HOME": str(home)}
        sys.exit(subprocess.run(["sh", "-c", flags["--command"]], env=env, cwd=home).returncode)


main(sys.argv[1:])
