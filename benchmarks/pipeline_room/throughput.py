"""20,000 records through all steps: throughput, memory, and what five kills cost."""

import json
import os
import random
import signal
import sqlite3
import statistics
import struct
import subprocess
import sys
import time
import urllib.request
import zlib
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from vlaa_jax.settings.pipeline import CollectSettings, PipelineSettings

OUTPUTS = ("sft.jsonl", "aha_sft.jsonl", "grpo.jsonl", "rejects.jsonl", "failed.jsonl")


def add_arguments(parser) -> None:
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the stub's latencies")
    parser.add_argument("--seed", type=int, default=0)


def write_source(folder: Path, count: int) -> None:
    """ArxivQA with small pictures that all differ."""
    (folder / "images").mkdir(parents=True)
    with (folder / "arxivqa.jsonl").open("w") as file:
        for index in range(count):
            name = f"images/{index}.png"
            (folder / name).write_bytes(_png(index))
            row = {"id": str(index), "image": name, "question": f"What is picture {index}?"}
            row |= {"options": ["A) this", "B) that", "C) other"], "label": "B", "rationale": ""}
            file.write(json.dumps(row) + "\n")


def _png(number: int) -> bytes:
    """8 x 8 grey pixels."""
    rows = b"".join(
        b"\0" + sha256(bytes([y]) + number.to_bytes(4, "big")).digest()[:8] for y in range(8)
    )
    parts = (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows))
    chunks = (
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d))
        for n, d in (*parts, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def settings_of(url: str, source: Path, concurrency: int) -> PipelineSettings:
    settings = PipelineSettings(collect=CollectSettings(sources=f"arxivqa={source}"))
    asked = {"url": url, "model": "stub", "concurrency": concurrency, "backoff_s": 0.05}
    for name in ("caption", "distil", "rewrite", "verify"):
        group = getattr(settings, name)
        model = replace(group.model, **asked, price_prompt=1.0)
        settings = replace(settings, **{name: replace(group, model=model)})
    return settings


CHILD = """
import json, resource, sys, threading, time
from pathlib import Path
from rich.console import Console
from pipeline_room.throughput import settings_of
from vlaa_jax.pipeline.run import run
url, source, workdir, concurrency = sys.argv[1:]
rss = []
def watch():
    while True:
        pages = int(open("/proc/self/statm").read().split()[1])
        rss.append((time.monotonic(), pages * 4096 / 2**20))
        time.sleep(1.0)
threading.Thread(target=watch, daemon=True).start()
began = time.monotonic()
summary = run(settings_of(url, Path(source), int(concurrency)), Path(workdir), Console(quiet=True))
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"stopped": summary.stopped, "pending": summary.pending,
    "cpu_s": used.ru_utime + used.ru_stime, "rss": [round(x, 1) for _, x in rss],
    "tally": sum(summary.tally.kept.values())}))
"""


class Stub:
    """The provider in a process of its own."""

    def __init__(self, **options: object) -> None:
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        command = [sys.executable, "benchmarks/pipeline.py", "stub", *flags]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = json.loads(self._process.stdout.readline())["url"]

    def stats(self) -> dict:
        with urllib.request.urlopen(f"{self.url}/stats") as reply:
            return json.load(reply)

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> "Stub":
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()


def start(url: str, source: Path, workdir: Path, concurrency: int) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD, url, str(source), str(workdir), str(concurrency)]
    environment = {**os.environ, "PYTHONPATH": f"{os.getcwd()}:{os.getcwd()}/benchmarks"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def run(args) -> dict:
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_source(root / "source", args.records)
        found = {"records": args.records, "concurrency": args.concurrency, "cpus": os.cpu_count()}
        found["undisturbed"], outputs = _undisturbed(args, root)
        if args.kills:
            found["killed"] = _killed(args, root, outputs, found["undisturbed"]["wall_s"])
        return found


def _undisturbed(args, root: Path) -> tuple[dict, dict]:
    with Stub(scale=args.scale) as stub:
        workdir = root / "calm"
        _collect(stub.url, root, workdir, args.concurrency)
        load = os.getloadavg()[0]
        began = time.monotonic()
        child = start(stub.url, root / "source", workdir, args.concurrency)
        in_flight = []
        while child.poll() is None:
            in_flight.append(stub.stats()["in_flight"])
            time.sleep(0.5)
        printed = child.stdout.read()
        wall = time.monotonic() - began
        steady = in_flight[len(in_flight) // 10 : len(in_flight) * 7 // 10]
        told = json.loads(printed.splitlines()[-1])
        stats = stub.stats()
        ideal = stats["busy_s"] / args.concurrency
        rss = told.pop("rss")
        tenth = max(1, len(rss) // 10)
        return {
            "wall_s": round(wall, 1),
            "ideal_s": round(ideal, 1),
            "share_of_ideal": round(ideal / wall, 3),
            "mean_in_flight_between_10_and_70_percent": round(statistics.mean(steady), 1),
            "calls_per_s": round(stats["answered"] / wall, 1),
            "rss_mib_after_each_tenth": rss[tenth::tenth],  # the last ones are those of the split
            "rss_mib_peak": max(rss),
            "stub_cpu_s": round(stub.cpu_s(), 1),
            "load_average_before_and_after": [round(load, 1), round(os.getloadavg()[0], 1)],
            **told,
            "stub": stats,
        }, file_digests(workdir)


def _collect(url: str, root: Path, workdir: Path, concurrency: int) -> None:
    """Step 1 alone, which asks nobody."""
    from vlaa_jax.pipeline.collect import collect

    workdir.mkdir()
    settings = settings_of(url, root / "source", concurrency)
    collect(settings.collect, workdir, workdir / "images")


def _killed(args, root: Path, outputs: dict, wall_s: float) -> dict:
    """Run, kill, run again; what was answered and not recorded is what a kill may cost."""
    draw = random.Random(args.seed)
    with Stub(scale=args.scale) as stub:
        workdir, runs, seen = root / "killed", [], (0, 0)
        _collect(stub.url, root, workdir, args.concurrency)
        for number in range(args.kills + 1):
            child = start(stub.url, root / "source", workdir, args.concurrency)
            if number < args.kills:
                time.sleep(draw.uniform(0.3, 1.0) * wall_s / (args.kills + 1))
                child.send_signal(signal.SIGKILL)
            child.communicate()
            time.sleep(6.0 * args.scale)  # until the stub is through with what was in flight
            now = stub.stats()["answered"], _recorded(workdir)
            runs.append({"answered": now[0] - seen[0], "recorded": now[1] - seen[1]})
            seen = now
        lost = [run["answered"] - run["recorded"] for run in runs]
        return {
            "runs": runs,
            "answered_but_not_recorded": lost,
            "at_most_what_was_in_flight": max(lost) <= args.concurrency and lost[-1] == 0,
            "asked_again": stub.stats()["asked_again"],
            "identical_output": file_digests(workdir) == outputs,
        }


def _recorded(workdir: Path) -> int:
    with closing(sqlite3.connect(workdir / "ledger.sqlite")) as ledger:
        return ledger.execute("SELECT COUNT(*) FROM calls WHERE state='done'").fetchone()[0]


def file_digests(workdir: Path) -> dict[str, str]:
    return {name: sha256((workdir / name).read_bytes()).hexdigest() for name in OUTPUTS}
