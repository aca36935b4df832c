"""The server beside the engine called directly, and its memory over many requests.

    python benchmarks/serve.py --json serve.json

The same questions on images go to `python -m vlaa_jax.serve` over HTTP, many at once; to the
rollout engine in this process, which has them all beforehand and one rule for all; and to the
evaluator, which has them beforehand and decodes as the server does: what is left is HTTP. All begin
at encoded images and end at text. They take turns, so that whatever else the machine does falls on
all; the first round of each compiles. Every answer must be the same in all (exit code 1 where one
is lost, or is another's). Client and server share the cores.
"""

import argparse
import asyncio
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw

from vlaa_jax.data.images.files import decode_image
from vlaa_jax.evaluate.generate import Done, Generated, Generator, Job, seed_of
from vlaa_jax.evaluate.own_engine import OwnEngine
from vlaa_jax.evaluate.served import Served
from vlaa_jax.parallel.mesh import make_mesh
from vlaa_jax.policy.pretrained import open_pretrained
from vlaa_jax.policy.prompts import Collator, Encoder, Prompt
from vlaa_jax.rollout.engine import Decoding, Engine
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.schema import Record
from vlaa_jax.serve.opened import keep_compiled
from vlaa_jax.settings.build import build
from vlaa_jax.settings.evaluate import EvaluateSettings, GenerationSettings
from vlaa_jax.settings.serve import ServerSettings
from vlaa_jax.settings.shared import PromptSettings

ROOT = Path(__file__).parent.parent
SIZES = ((84, 56), (112, 84), (140, 112), (168, 140))
COLOURS = ("red", "green", "blue", "orange")


def picture(place: int) -> bytes:
    """Squares on paper; no two alike."""
    width, height = SIZES[place % len(SIZES)]
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for i in range(2 + place % 5):
        x, y = (place * 31 + i * 23) % (width - 12), (place * 17 + i * 29) % (height - 12)
        draw.rectangle((x, y, x + 10, y + 10), fill=COLOURS[(place + i) % 4])
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def jobs(count: int, first: int = 0) -> list[Job]:
    def job(place: int) -> Job:
        data = picture(place)
        return Job(
            "bench", str(place), 0, f"How many squares are in picture {place}?", lambda: [data]
        )

    return [job(place) for place in range(first, first + count)]


class Direct:
    """The rollout engine, called as a rollout calls it: prompts of one padded length at a time."""

    def __init__(self, options: argparse.Namespace, settings: EvaluateSettings) -> None:
        data = PromptSettings()
        mesh = make_mesh(devices=jax.local_devices())
        self.pretrained = open_pretrained(settings.model.shared(), data, mesh, trains=False)
        self.encode = Encoder(self.pretrained, data, options.tokens)
        self.collator = Collator(self.pretrained, data, mesh)
        self.batch, self.params = options.slots, self.pretrained.load_params()
        self.engine = Engine(
            self.pretrained.graphdef,
            Decoding(1, options.tokens, slots=self.batch, burst=options.burst),
            sampling=Sampling(),
            eos_id=self.pretrained.chat.stop_ids,
            allowed_V=self.pretrained.allowed_V,
            mesh=mesh,
        )

    def prompt(self, job: Job) -> Prompt:
        images = tuple(decode_image(data) for data in job.images())
        return self.encode(Record(job.name, job.prompt, ("image",) * len(images)), images)

    async def generate(self, wanted: list[Job], done: Done) -> None:
        with ThreadPoolExecutor(2) as pool:
            asked = list(zip(wanted, pool.map(self.prompt, wanted), strict=True))
        lengths: dict[int, list[tuple[Job, Prompt]]] = {}
        for one in asked:
            lengths.setdefault(self.collator.prompt_bucket([one[1]]), []).append(one)
        for length, same in lengths.items():
            self.answer(length, same, done)

    def answer(self, length: int, asked: list[tuple[Job, Prompt]], done: Done) -> None:
        prompts = [prompt for _, prompt in asked]
        parts = (prompts[i : i + self.batch] for i in range(0, len(prompts), self.batch))
        out = self.engine.generate(
            self.params,
            (self.collator((part * self.batch)[: self.batch])[0] for part in parts),
            jax.vmap(jax.random.key)(np.array([seed_of(job, 1) for job, _ in asked], np.uint32)),
            prefix_length=length,
        )
        tokens = [out.tokens_PGT[p, 0, : out.length_PG[p, 0]].tolist() for p in range(len(asked))]
        texts = self.pretrained.chat.decode_batch(tokens)
        for p, (job, _) in enumerate(asked):
            reason = "length" if out.truncated_PG[p, 0] else "stop"
            done(job, Generated(texts[p], reason, len(tokens[p])))


def ask(generator: Generator, wanted: list[Job]) -> tuple[float, dict[str, Any]]:
    """Seconds for all answers, and the answers."""
    found: dict[str, tuple] = {}

    def done(job: Job, out: object) -> None:
        assert job.index not in found, "answered twice"
        found[job.index] = out

    began = time.perf_counter()
    asyncio.run(generator.generate(wanted, done))
    return time.perf_counter() - began, found


def start(options: argparse.Namespace) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vlaa_jax.serve", options.model, "--port=0"]
    command += [f"--slots={options.slots}", f"--burst={options.burst}", "--model.dtype=float32"]
    command += ["--model.unroll=0", f"--max_new_tokens={options.tokens}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "VLAA_API_KEY": ""}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def rss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare(
    options: argparse.Namespace, direct: Direct, own: OwnEngine, served: Served, pid: int
) -> dict:
    wanted, rounds, wrong = jobs(options.requests), [], 0
    for number in range(options.rounds + 1):
        began = time.process_time()
        engine_s, answers = ask(direct, wanted)
        engine_cpu_s, began = time.process_time() - began, time.process_time()
        evaluator_s, found = ask(own, wanted)
        evaluator_cpu_s = time.process_time() - began
        wrong += sum(answers[job.index] != found.get(job.index) for job in wanted)
        before = cpu_s(pid), time.process_time()
        served_s, found = ask(served, wanted)
        wrong += sum(answers[job.index] != found.get(job.index) for job in wanted)
        row = {
            "engine_s": engine_s,
            "evaluator_s": evaluator_s,
            "served_s": served_s,
            "share": engine_s / served_s,
            "share_of_evaluator": evaluator_s / served_s,
            "tokens": sum(out.tokens for out in answers.values()),
            "engine_cpu_s": engine_cpu_s,
            "evaluator_cpu_s": evaluator_cpu_s,
            "server_cpu_s": cpu_s(pid) - before[0],
            "client_cpu_s": time.process_time() - before[1],
            "load": os.getloadavg()[0],
        }
        least_s = (row["server_cpu_s"] + row["client_cpu_s"]) / (os.cpu_count() or 1)
        row["share_if_no_core_were_idle"] = engine_s / least_s
        print({name: round(value, 2) for name, value in row.items()}, flush=True)
        if number:
            rounds.append(row)
    medians = {
        name: statistics.median(row[name] for row in rounds)
        for name in ("share", "share_of_evaluator", "share_if_no_core_were_idle")
    }
    return {"rounds": rounds, "medians": medians, "wrong": wrong}


def memory(options: argparse.Namespace, served: Served, pid: int) -> Iterator[dict]:
    """Resident memory of the server as requests come; the first row is before any of them."""
    yield {"requests": 0, "rss_mib": round(rss_mib(pid), 1)}
    for first in range(0, options.memory, options.requests):
        _, answers = ask(served, jobs(options.requests, first))
        assert len(answers) == options.requests
        row = {"requests": first + options.requests, "rss_mib": round(rss_mib(pid), 1)}
        print(row, flush=True)
        yield row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument(
        "--slots", type=int, default=0, help="answers decoded at once by each; 0: one a client"
    )
    parser.add_argument("--tokens", type=int, default=128, help="token limit of an answer")
    parser.add_argument("--burst", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--memory", type=int, default=2000, help="requests that RSS is watched over"
    )
    parser.add_argument("--beside", default="", help="what else ran on the machine, for the record")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.slots = options.slots or options.clients
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the server is ended then, too
    sampled = {"temperature": 1.0, "new_tokens": options.tokens, "seed": 1}
    model = {"checkpoint": options.model, "dtype": "float32", "unroll": 0}
    generation = {"batch": options.slots, **sampled}
    settings = build(EvaluateSettings, {"model": model, "generation": generation})
    keep_compiled(ServerSettings().compilation_cache)
    direct, own = Direct(options, settings), OwnEngine(settings)
    process = start(options)
    try:
        assert process.stdout is not None
        name, url, *_ = process.stdout.readline().split()
        there = {"source": "server", "url": url, "model": name, "concurrency": options.clients}
        served = Served(GenerationSettings(**there, **sampled))
        result: dict = {
            "settings": {k: str(v) for k, v in vars(options).items() if k != "json"},
            "cores": os.cpu_count(),
            **compare(options, direct, own, served, process.pid),
            "memory": [],
        }
        for row in memory(options, served, process.pid):
            result["memory"].append(row)
    finally:
        process.terminate()
        process.wait(60)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    shares = ", ".join(f"{name} {value:.2f}" for name, value in result["medians"].items())
    print(f"throughput served: {shares}; wrong answers: {result['wrong']}")
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
