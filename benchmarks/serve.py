"""The server beside the engine called directly, and its memory over many requests.

    python benchmarks/serve.py --json serve.json

The same questions on images go to `python -m vlaa_jax.serve` over HTTP, many at once, to the
evaluator's engine in this process, which has them all beforehand and sorts them by length, and to
the server's decoder without a server, which shows what of the difference is HTTP. All
begin at encoded images and end at text. They take turns, so that whatever else the machine does
falls on all; the first round of each compiles. Every answer must be the same in all (exit code 1
where one is lost, or is another's). Client and server share the cores.
"""

import argparse
import asyncio
import io
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from vlaa_jax.data.images.files import decode_image
from vlaa_jax.evaluate.generate import Done, Generated, Generator, Job, seed_of
from vlaa_jax.evaluate.own_engine import OwnEngine
from vlaa_jax.evaluate.served import Served
from vlaa_jax.policy.prompts import Encoder, Prompt
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.rollout.stream import Wanted
from vlaa_jax.schema import Record
from vlaa_jax.serve.opened import keep_compiled, open_checkpoint, open_model
from vlaa_jax.serve.worker import Job as Request
from vlaa_jax.serve.worker import Worker
from vlaa_jax.settings.build import build
from vlaa_jax.settings.evaluate import (
    EvaluatedModelSettings,
    EvaluateSettings,
    GenerationSettings,
)
from vlaa_jax.settings.serve import ServerSettings, ServeSettings

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


class Inside:
    """The server's decoder in this process, asked by as many at once as the server is."""

    def __init__(self, options: argparse.Namespace, model: dict) -> None:
        self.clients, self.tokens = options.clients, options.tokens
        server = ServerSettings(
            slots=options.clients, burst=options.burst, max_new_tokens=options.tokens
        )
        settings = ServeSettings(model=EvaluatedModelSettings(**model), server=server)
        opened = open_checkpoint(settings)
        self.pretrained, self.stream, self.collator = open_model(opened, server)
        self.encode = Encoder(self.pretrained, opened.data, options.tokens)

    def prompt(self, job: Job) -> Prompt:
        images = tuple(decode_image(data) for data in job.images())
        return self.encode(Record(job.name, job.prompt, ("image",) * len(images)), images)

    async def generate(self, wanted: list[Job], done: Done) -> None:
        loop, queue = asyncio.get_running_loop(), iter(wanted)
        worker = Worker(self.stream, self.collator, loop, print)
        stops = self.pretrained.chat.stop_ids

        async def client() -> None:
            for job in queue:
                prompt = await loop.run_in_executor(pool, self.prompt, job)
                rule = Wanted(Sampling(), self.tokens, stops, seed_of(job, 1))
                worker.submit(found := Request(prompt, rule))
                tokens: list[int] = []
                while True:
                    news = await found.news.get()
                    tokens += news.tokens_T.tolist()
                    if news.ended:
                        break
                text = self.pretrained.chat.decode_batch([tokens])[0]
                done(job, Generated(text, news.ended, len(tokens)))

        with ThreadPoolExecutor(2) as pool:
            await asyncio.gather(*(client() for _ in range(self.clients)))
        await asyncio.to_thread(worker.close)


def ask(generator: Generator, wanted: list[Job]) -> tuple[float, dict[str, Any]]:
    """Seconds for all answers, and the answers."""
    found: dict[str, tuple] = {}

    def done(job: Job, out: object) -> None:
        assert job.index not in found, "answered twice"
        found[job.index] = out

    began = time.perf_counter()
    asyncio.run(generator.generate(wanted, done))
    return time.perf_counter() - began, found


def start(options: argparse.Namespace) -> tuple[subprocess.Popen, str, str]:
    command = [sys.executable, "-m", "vlaa_jax.serve", options.model, "--port=0"]
    command += [f"--slots={options.clients}", f"--burst={options.burst}", "--model.dtype=float32"]
    command += ["--model.unroll=0", f"--max_new_tokens={options.tokens}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "VLAA_API_KEY": ""}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    name, url, *_ = process.stdout.readline().split()
    return process, name, url


def rss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare(
    options: argparse.Namespace, own: OwnEngine, inside: Inside, served: Served, pid: int
) -> dict:
    wanted, rounds, wrong = jobs(options.requests), [], 0
    for number in range(options.rounds + 1):
        began = time.process_time()
        direct_s, direct = ask(own, wanted)
        direct_cpu_s, began = time.process_time() - began, time.process_time()
        inside_s, found = ask(inside, wanted)
        inside_cpu_s = time.process_time() - began
        wrong += sum(direct[job.index] != found[job.index] for job in wanted)
        before = cpu_s(pid), resource.getrusage(resource.RUSAGE_SELF).ru_utime
        served_s, answers = ask(served, wanted)
        wrong += sum(direct[job.index] != answers.get(job.index) for job in wanted)
        tokens = sum(out.tokens for out in direct.values())
        row = {
            "direct_s": direct_s,
            "inside_s": inside_s,
            "served_s": served_s,
            "tokens": tokens,
            "direct_tokens_per_s": tokens / direct_s,
            "served_tokens_per_s": tokens / served_s,
            "share": direct_s / served_s,
            "inside_share": direct_s / inside_s,
            "direct_cpu_s": direct_cpu_s,
            "inside_cpu_s": inside_cpu_s,
            "server_cpu_s": cpu_s(pid) - before[0],
            "client_cpu_s": resource.getrusage(resource.RUSAGE_SELF).ru_utime - before[1],
            "load": os.getloadavg()[0],
        }
        print({name: round(value, 2) for name, value in row.items()}, flush=True)
        if number:
            rounds.append(row)
    share = statistics.median(row["share"] for row in rounds)
    return {"rounds": rounds, "median_share": share, "wrong": wrong}


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
    parser.add_argument("--tokens", type=int, default=128, help="token limit of an answer")
    parser.add_argument("--burst", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--memory", type=int, default=2000, help="requests that RSS is watched over"
    )
    parser.add_argument("--beside", default="", help="what else ran on the machine, for the record")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the server is ended then, too
    sampled = {"temperature": 1.0, "new_tokens": options.tokens, "seed": 1}
    model = {"checkpoint": options.model, "dtype": "float32", "unroll": 0}
    direct = {"model": model, "generation": {"batch": options.clients, **sampled}}
    own = OwnEngine(build(EvaluateSettings, direct))
    keep_compiled(ServerSettings().compilation_cache)
    inside = Inside(options, model)
    process, name, url = start(options)
    try:
        there = {"source": "server", "url": url, "model": name, "concurrency": options.clients}
        served = Served(GenerationSettings(**there, **sampled))
        result: dict = {
            "settings": {k: str(v) for k, v in vars(options).items() if k != "json"},
            "cores": os.cpu_count(),
            **compare(options, own, inside, served, process.pid),
            "memory": [],
        }
        for row in memory(options, served, process.pid):
            result["memory"].append(row)
            if options.json:
                options.json.write_text(json.dumps(result, indent=1) + "\n")
    finally:
        process.terminate()
        process.wait(60)
    print(f"served / direct: {result['median_share']:.2f}; wrong answers: {result['wrong']}")
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
