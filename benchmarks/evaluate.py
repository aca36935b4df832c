"""Scoring 12,025 stored predictions, and the LaTeX comparison by itself, without a judge.

    python benchmarks/evaluate.py --json benchmarks/results/evaluate_2cpu.json

Writes a prediction file of each benchmark in its full size, like a run of VLAA-Thinker (think text
of about 1,500 characters, then an answer pair; one in ten has none), and times the command
`python -m vlaa_jax.evaluate score` on each, the start of Python and reading the file included.
MathVerse and LogicVista need a judge for every output: their replies are recorded beforehand by a
scripted judge, so that what is timed is a replay.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vlaa_jax.evaluate.benchmarks import LEADERBOARD
from vlaa_jax.evaluate.miniature.judge_server import answer
from vlaa_jax.evaluate.scoring.equality import answers_equal
from vlaa_jax.pipeline.local_server import LocalServer

THINK = "We look at the figure and compare its parts one after the other. " * 23
PAIRS = [
    *(("5/2", "2.5"), (r"\frac{1}{2}", "0.5"), (r"2\sqrt{2}", r"\sqrt{8}"), ("x=5", "5")),
    *((r"1\frac{1}{2}", "1.5"), ("12 cm", "12"), (r"\boxed{7}", "7"), ("3:4", "6:8")),
]


def output(rng: random.Random, said: str) -> str:
    return (
        f"{THINK} {said}"
        if rng.random() < 0.1
        else f"<think>{THINK}</think><answer>{said}</answer>"
    )


def row(name: str, place: int, rng: random.Random) -> dict[str, Any]:
    letter, number = rng.choice("ABCD"), str(rng.randint(1, 40))
    texts = [f"{rng.randint(1, 99)} cm" for _ in range(4)]
    base = {"index": place, "question": f"How long is side {place}?", "answer": letter}
    match name:
        case "mathvista":
            kind = "multi_choice" if place % 2 else "free_form"
            base |= {"question_type": kind, "answer_type": "integer", "choices": repr(texts)}
            base |= {"answer_option": letter, "task": f"task {place % 5}", "skills": "['a', 'b']"}
            base |= {} if place % 2 else {"answer": number}
        case "mathvision":
            base |= {"choices": repr(texts if place % 2 else []), "category": f"c{place % 16}"}
            base |= {} if place % 2 else {"answer": rng.choice(PAIRS)[1]}
        case "mathverse":
            base |= {"question_for_eval": "q", "problem_version": "Vision Only"}
            base |= {"metadata": "{'subject': 's', 'subfield': 'f'}"}
        case "dynamath":
            base |= {"qid": place % 501, "varid": place // 501 + 1, "subject": "s"}
            base |= {"knowledge_level": "l", "answer_type": ["float", "multiple choice"][place % 2]}
            base |= {} if place % 2 else {"answer": f"{number}.000"}
        case "wemath":
            base |= dict(zip("ABCD", texts, strict=True)) | wemath_key(place)
        case "logicvista":
            base |= {"skill": "inductive"}
    said = rng.choice([base["answer"], letter, number, rng.choice(PAIRS)[0]])
    if name == "dynamath" and rng.random() < 0.7:
        said = json.dumps({"solution": "s", "short answer": said})
    return base | {"prediction": output(rng, said)}


def wemath_key(place: int) -> dict[str, Any]:
    """360 problems of three rows, then 165 of four."""
    if place < 1080:
        problem, part = divmod(place, 3)
        return {"ID": f"a{problem}", "key": f"2steps_{['1', '2', 'multi'][part]}"}
    problem, part = divmod(place - 1080, 4)
    return {"ID": f"b{problem}", "key": f"3steps_{['1', '2', '3', 'multi'][part]}"}


def score(file: Path, name: str, options: list[str]) -> tuple[float, dict[str, Any]]:
    command = [sys.executable, "-m", "vlaa_jax.evaluate", "score", str(file), f"--benchmark={name}"]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "--json", *options], capture_output=True, text=True, check=True
    )
    return time.perf_counter() - began, json.loads(done.stdout)


def stored_predictions(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for benchmark in LEADERBOARD:
        rng = random.Random(benchmark.name)
        file = folder / f"{benchmark.name}.jsonl"
        rows = [row(benchmark.name, place, rng) for place in range(benchmark.size)]
        file.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
        options = ["--rules-only"]
        if benchmark.judge == "always":
            options = [f"--judge-replies={folder / 'replies'}", "--judge-model=scripted"]
            with LocalServer(answer) as server:
                score(file, benchmark.name, [*options, f"--judge-url={server.url}"])
        seconds, summary = score(file, benchmark.name, options)
        found[benchmark.name] = {"rows": benchmark.size, "seconds": round(seconds, 2)}
        found[benchmark.name]["outputs"] = summary["outputs"]["paths"]
    return found


def comparisons(number: int = 20_000) -> float:
    """Microseconds of a free-form comparison."""
    began = time.perf_counter()
    for place in range(number):
        answers_equal(*PAIRS[place % len(PAIRS)], "2026-08")
    return (time.perf_counter() - began) / number * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stored = stored_predictions(Path(folder))
    total = {key: sum(one[key] for one in stored.values()) for key in ("rows", "seconds")}
    result = {
        "stored predictions": stored,
        "total": {"rows": total["rows"], "seconds": round(total["seconds"], 2)},
        "microseconds per comparison": round(comparisons(), 1),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
