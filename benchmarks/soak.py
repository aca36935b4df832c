"""Fifty kills and other mishaps over one `:tiny` run: does it end like an undisturbed one?

    python benchmarks/soak.py --dir=/tmp/soak [--kills=50] [--steps=60] [--stretch_s=500]
                              [--out=benchmarks/results/soak_2cpu.json]

The run lies on a disk of its own (a tmpfs, so this wants a user who may mount one). Between its
starts, and during them, happens by turns, at random times:

    kill      SIGKILL                      term     SIGTERM
    full      the disk has next to no room until the run has stopped
    damage    a bit of the newest checkpoint is turned: refused, then run.damaged=older
    lock      a second process of the same command
    cache     the compile cache's entries are cut to 50 bytes

Whatever ends by itself must have said one true line. The last start is left alone, and its metrics,
recorded rollouts and weights are held against those of the undisturbed run. What was done is kept
in DIR, so that the same command goes on after --stretch_s.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
ROOM_KIB, DISK_KIB = 400_000, 600_000
FAULTS = (
    *("kill", "kill", "full", "kill", "kill", "term", "kill", "kill", "damage"),
    *("kill", "kill", "lock", "kill", "full", "cache"),
)
SMALL = (
    "--config.rollout.prompts=4",
    "--config.rollout.completions=2",
    "--config.rollout.max_new_tokens=16",
    "--config.data.vision_bins_per_shard=4",
    "--config.data.embedded_train=40",
    "--config.data.embedded_heldout=5",
    "--config.run.eval_completions=1",
    "--config.run.save_every=2",
    "--config.run.eval_every=20",
    "--config.rollout.batch_prompts=2",
    "--config.rollout.prefill_prompts=1",
    "--config.rollout.burst=8",
    "--config.algo.updates_per_rollout=2",
    "--config.algo.kl_target=0.0005",
)


class Soak:
    """One run that is disturbed, and what has happened to it."""

    def __init__(self, args):
        self.args, self.dir = args, args.dir
        self.disk, self.cache = self.dir / "disk", self.dir / "cache"
        self.workdir = self.disk / "run"
        self.told = self.dir / "rounds.jsonl"
        self.began = time.monotonic()

    # -- the command

    def words(self, workdir, *options):
        config = [f"--config.run.steps={self.args.steps}", *SMALL, *options]
        return [
            *(sys.executable, "-m", "vlaa_jax.main", "--config=configs/grpo.py:tiny", *config),
            *(f"--config.run.compilation_cache={self.cache}", f"--workdir={workdir}"),
        ]

    def start(self, *options):
        flags = "--xla_backend_optimization_level=0"
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
        with open(self.dir / "stdout", "w") as out, open(self.dir / "stderr", "w") as err:
            return subprocess.Popen(
                self.words(self.workdir, *options), cwd=ROOT, env=env, stdout=out, stderr=err
            )

    def ended(self, process):
        """Exit status and last words; anything but one line of ours is a failure of the soak."""
        status = process.wait(timeout=500)
        said = (self.dir / "stderr").read_text().strip().splitlines()
        own = [line for line in said if not line.startswith("warning: run.compilation_cache")]
        if status == 0:
            assert not own, said
        elif status != -signal.SIGKILL:
            assert len(own) == 1 and own[0].startswith("vlaa_jax: "), (status, said)
        assert status in (0, 1, 130, -signal.SIGKILL), (status, said)
        return status, own[-1] if own else ""

    def saved(self):
        """The newest checkpoint that has its final name."""
        folder = self.workdir / "checkpoints"
        names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        return max((int(name) for name in names if name.isdigit()), default=0)

    def resize(self, kib):
        options = f"remount,size={kib}k"
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.disk)]
        subprocess.run(words, check=True)

    # -- mishaps: each starts the run, and returns what became of it

    def wait(self, process, rng):
        """Until a random time: one of three after the run has begun its steps."""
        if rng.random() < 0.67:
            time.sleep(rng.uniform(0, 4 * self.args.alive_s))
            return
        limit = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < limit:
            if "ready" in (self.dir / "stdout").read_text():
                break
            time.sleep(0.1)
        time.sleep(rng.uniform(0, self.args.alive_s))

    def kill(self, rng, number=signal.SIGKILL):
        process = self.start()
        self.wait(process, rng)
        process.send_signal(number)
        return self.ended(process)

    def term(self, rng):
        return self.kill(rng, signal.SIGTERM)

    def full(self, rng):
        used = shutil.disk_usage(self.disk).used // 1024
        self.resize(used + rng.choice([8, 100, 1000, 5000, 10_000]))
        process = self.start()
        status, line = self.ended(process)
        self.resize(DISK_KIB)
        if status == 1:
            assert "No space left on device" in line and "; free some space; " in line, line
            if found := re.search(r"steps up to (\d+) are saved", line):
                assert int(found[1]) == self.saved(), (line, self.saved())
        return status, line

    def damage(self, rng):
        step = self.saved()
        if not step:
            return self.kill(rng)
        folder = self.workdir / "checkpoints" / str(step)
        items = ("params", "optimizer", "progress")
        files = [p for item in items for p in sorted((folder / item).rglob("*")) if p.is_file()]
        # Orbax's mark that it has ended says nothing, and is in no listing.
        chosen = rng.choice([p for p in files if p.stat().st_size and p.suffix != ".txt"])
        content = bytearray(chosen.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        chosen.write_bytes(content)
        status, line = self.ended(self.start())
        inside = chosen.relative_to(folder)
        assert status == 1 and f"checkpoints/{step}: damaged, {inside}" in line, line
        process = self.start("--config.run.damaged=older")
        self.wait(process, rng)
        process.kill()
        self.ended(process)
        return status, line

    def lock(self, rng):
        process = self.start()
        limit = time.monotonic() + 100
        while "model " not in (self.dir / "stdout").read_text() and time.monotonic() < limit:
            time.sleep(0.1)
        second = subprocess.run(
            self.words(self.workdir), cwd=ROOT, capture_output=True, text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        if process.poll() is None:
            assert second.returncode == 1
            assert f"is going on in it by process {process.pid}" in second.stderr, second.stderr
        process.kill()
        self.ended(process)
        return second.returncode, second.stderr.strip()

    def cut_cache(self, rng):
        for entry in self.cache.glob("*-cache"):
            entry.write_bytes(entry.read_bytes()[:50])
        status, _ = self.kill(rng)
        said = (self.dir / "stderr").read_text()
        return status, said.strip()

    # -- the whole

    def rounds(self):
        return [json.loads(line) for line in self.told.read_text().splitlines()]

    def disturb(self):
        """Mishaps until there were enough kills; False where the stretch ended before."""
        while True:
            done = self.rounds()
            kills = sum(one["fault"] in ("kill", "cache", "lock", "damage") for one in done)
            if kills >= self.args.kills:
                return True
            if time.monotonic() - self.began > self.args.stretch_s:
                return False
            fault = FAULTS[len(done) % len(FAULTS)]
            rng = random.Random(f"{self.args.seed} {len(done)}")
            clock, before = time.monotonic(), self.saved()
            act = self.cut_cache if fault == "cache" else getattr(self, fault)
            status, line = act(rng)
            one = {
                **{"fault": fault, "seconds": round(time.monotonic() - clock, 1)},
                **{"status": status, "saved_before": before, "saved": self.saved()},
                "said": line.replace(str(self.dir), "DIR")[:300],
            }
            with open(self.told, "a") as file:
                file.write(json.dumps(one) + "\n")
            print(json.dumps(one), flush=True)

    def compare(self):
        """The last start, left alone, and what differs from the undisturbed run."""
        whole = self.dir / "undisturbed"
        status, line = self.ended(self.start("--config.run.damaged=older"))
        assert status == 0, line
        found = {
            "metrics_equal": metrics(whole) == metrics(self.workdir),
            "heldout_equal": kept(whole) == kept(self.workdir),
            "rollouts_equal": recorded(whole) == recorded(self.workdir),
            "weights_equal": weights_equal(whole, self.workdir),
            "partial_files": sorted(
                p.name for p in self.workdir.rglob("*") if "partial" in p.name or "-tmp" in p.name
            ),
        }
        return found

    def run(self):
        self.dir.mkdir(parents=True, exist_ok=True)
        self.disk.mkdir(exist_ok=True)
        whole = self.dir / "undisturbed"
        if not (whole / "report.html").exists():
            env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
            env["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
            subprocess.run(self.words(whole), cwd=ROOT, env=env, check=True)
        if not os.path.ismount(self.disk):
            words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k", "tmpfs", str(self.disk)]
            subprocess.run(words, check=True)
        self.resize(DISK_KIB)
        self.told.touch()
        if not self.disturb():
            print(f"{len(self.rounds())} rounds so far; the same command goes on")
            return
        result = {
            **{"kills_asked": self.args.kills, "steps": self.args.steps, "seed": self.args.seed},
            "rounds": self.rounds(),
            "end": self.compare(),
        }
        print(json.dumps(result["end"]))
        if self.args.out:
            self.args.out.write_text(json.dumps(result, indent=1) + "\n")
        subprocess.run(["umount", "-l", str(self.disk)], check=True)


def metrics(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    drop = ("time/", "compile/", "train/mfu")
    return [
        {k: v for k, v in line.items() if not k.startswith(drop) and not k.endswith("_per_s")}
        for line in lines
    ]


def kept(workdir):
    return json.loads((workdir / "heldout.json").read_text())


def recorded(workdir):
    files = [file for name in ("rollouts", "heldout") for file in (workdir / name).glob("0*")]
    return {str(file.relative_to(workdir)): file.read_bytes() for file in files}


def weights_equal(a, b):
    import jax
    import numpy as np

    from vlaa_jax.models.qwen_vl.weights import load_params

    one, other = (jax.tree.leaves(load_params(run)) for run in (a, b))
    return all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alive_s", type=float, default=3.0, help="longest time among the steps")
    parser.add_argument("--stretch_s", type=float, default=1e9)
    parser.add_argument("--out", type=Path)
    Soak(parser.parse_args()).run()


if __name__ == "__main__":
    main()
