"""Speed of the rewards, beside Math-Verify called naively and TRL's accuracy reward, in one run.

    python benchmarks/rewards.py --json rewards.json

Rules are timed on one core by process time; maths by wall time with worker processes. Contenders of
a table take turns within each round, so that a busy machine slows all of them. TRL's own function
is used where trl can be imported; elsewhere its calls of Math-Verify (trl 1.16) are made directly,
and the table says which. Each line gives the median of the rounds and the slowest round. Exit code
1 when hostile maths takes longer than allowed, spoils another verdict, or leaves a process.
"""

import argparse
import contextlib
import importlib
import json
import logging
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vlaa_jax.rewards.math import prepare_case
from vlaa_jax.rewards.mixed import MixedReward, RewardSettings
from vlaa_jax.schema import ScoreRequest

THOUGHT = "We look at the picture, count what is there one by one, and then check again. " * 20
OPTIONS = "What is the angle?\nChoices:\nA: {}°\nB: {}°\nC: {}°\nD: {}°"


def output(answer: str) -> str:
    return f"<think>{THOUGHT}</think>\n\n<answer>{answer}</answer>"


def digit_requests(count: int, rng: random.Random) -> list[ScoreRequest]:
    spellings = ["{}", "{}.", "There are {} cubes.", "$\\boxed{{{}}}$", "-{}", "{} or 7"]
    rows = []
    for _ in range(count // 4):
        gold = rng.randrange(0, 20)
        for _ in range(4):  # a group shares its gold
            said = rng.choice(spellings).format(rng.choice([gold, gold, gold + 1]))
            rows.append(ScoreRequest("digit", str(gold), output(said)))
    return rows


def mcq_requests(count: int, rng: random.Random) -> list[ScoreRequest]:
    rows = []
    for _ in range(count // 4):
        angles = rng.sample(range(10, 170), 4)
        question, gold = OPTIONS.format(*angles), rng.choice("ABCD")
        for _ in range(4):
            letter = rng.choice("ABCD")
            own = angles["ABCD".index(letter)]
            said = rng.choice(
                [letter, f"({letter})", f"{letter}: {own}°", f"{own}°", "A or B",
                 f"The answer is {letter}."]
            )  # fmt: skip
            rows.append(ScoreRequest("mcq", gold, output(said), question=question))
    return rows


def iou_requests(count: int, rng: random.Random) -> list[ScoreRequest]:
    rows = []
    for _ in range(count // 4):
        x, y = rng.uniform(0, 0.5), rng.uniform(0, 0.5)
        gold = [round(v, 2) for v in (x, y, x + 0.3, y + 0.4)]
        for _ in range(4):
            box = [round(v + rng.uniform(-0.1, 0.1), 2) for v in gold]
            said = rng.choice(
                [str(box), json.dumps({"bbox_2d": box, "label": "cup"}), f"It is at {box}."]
            )
            rows.append(
                ScoreRequest("iou", str(gold), output(said), box_space="normalized",
                             image_size=(640, 480))
            )  # fmt: skip
    return rows


def open_requests(count: int, rng: random.Random) -> list[ScoreRequest]:
    sentence = "a red car beside an old wooden fence in front of two tall trees under grey sky"
    words = sentence.split()
    rows = []
    for _ in range(count):
        gold, said = (" ".join(rng.choices(words, k=40)) for _ in range(2))
        rows.append(ScoreRequest("open_ended", gold, output(said)))
    return rows


KINDS = [
    ("{a}\\sqrt{{{b}}}", "\\sqrt{{{aab}}}"),
    ("y={a}x+{b}", "y={b}+{a}x"),
    ("\\frac{{{a}\\pi}}{{{b}}}", "\\frac{{{a}}}{{{b}}}\\pi"),
    ("x^2+{s}x+{p}", "(x+{a})(x+{b})"),
    ("y={a}\\sin({b}x)+1", "y=1+{a}\\sin({b}x)"),
    ("|x-{a}|+{b}", "{b}+|x-{a}|"),
    ("({a},{b})", "\\left({a},{b}\\right)"),
    ("{a}x^{{2}}+{b}", "{b}+{a}x^2"),
    ("\\frac{{{a}}}{{{b}}}", "\\frac{{{a}}}{{{b}}}+0"),
    ("{a}x+{b}y=1", "{b}y=1-{a}x"),
    ("[{a},{bb})", "[{a}, {bb})"),
    ("x>{a}", "{a}<x"),
    ("\\{{{a},{bb}\\}}", "\\{{{bb},{a}\\}}"),
    ("\\begin{{pmatrix}}{a}&1\\\\{b}&0\\end{{pmatrix}}",
     "\\begin{{bmatrix}}{a}&1\\\\{b}&0\\end{{bmatrix}}"),
    ("{a}\\log_2(x)-{b}", "-{b}+{a}\\log_{{2}}x"),
    ("{a}e^{{{b}x}}", "e^{{{b}x}}\\cdot {a}"),
    ("\\frac{{x+{a}}}{{x-{b}}}", "1+\\frac{{{s}}}{{x-{b}}}"),
    ("f(x)={a}\\cos(x)-{b}", "y={a}\\cos x-{b}"),
    ("{a}-\\sin^2({b}x)", "{am}+\\cos^2({b}x)"),
    ("{a}\\pm\\sqrt{{{b}}}", "{a}\\pm {b}^{{\\frac{{1}}{{2}}}}"),
    ("(x-{a})^2+y^2={b}", "y^2={b}-(x-{a})^2"),
    ("{a}\\sin(2x)+{b}", "{b}+{aa}\\sin(x)\\cos(x)"),
    ("{a}^{{x}}\\text{{ or }}{b}", "{b}\\text{{ or }}{a}^{{x}}"),
    ("f({a})={b}", "f({a})={b}.0"),
]  # fmt: skip
"""(gold, answer) of the kinds that occur; all are read by our own reader."""


def expressions(count: int, rng: random.Random) -> list[tuple[str, str, float]]:
    """(gold, answer, right) of every kind in turn; all distinct, none a plain number."""
    rows, seen = [], set()
    while len(rows) < count:
        a, b = rng.randrange(2, 400), rng.randrange(2, 400)
        gold, answer = KINDS[len(rows) % len(KINDS)]
        names = {"a": a, "b": b, "s": a + b, "p": a * b, "aab": a * a * b, "bb": a + b, "am": a - 1}
        names["aa"] = 2 * a
        right = rng.random() < 0.5
        wrong = {
            **names,
            "a": a + 1,
            "aab": a * a * b + 1,
            "s": a + b + 1,
            "am": a,
            "aa": 2 * a + 1,
        }
        row = (gold.format(**names), answer.format(**(names if right else wrong)), float(right))
        if row[:2] not in seen:
            seen.add(row[:2])
            rows.append(row)
    return rows


HANGS = [
    "9^{{9^{{9}}}}+{}",
    "7^{{7^{{7^{{{}}}}}}}",
    "(123456789+{})!",
    "\\binom{{10^{{9}}}}{{4\\cdot10^{{8}}+{}}}",
    "(" * 60 + "{}" + ")" * 60,
    "\\sum_{{k=1}}^{{10^{{9}}}} \\frac{{{}}}{{k^{{2}}}}",
    "\\prod_{{k=1}}^{{10^{{8}}}} (k+{})",
    "3^{{10^{{11}}+{}}}",
    "\\int_0^{{9^{{9^9}}}} x^{{9^{{{}}}}} dx",
    "\\sum_{{i=1}}^{{99999999}} \\sin({}i)",
]


def bench_rules(rounds: int, count: int) -> dict[str, list[float]]:
    rng = random.Random(1)
    makers = {
        "digit": digit_requests,
        "mcq": mcq_requests,
        "iou": iou_requests,
        "open_ended (text similarity)": open_requests,
    }
    requests = {name: make(count, rng) for name, make in makers.items()}
    rates: dict[str, list[float]] = {name: [] for name in makers}
    with MixedReward(RewardSettings(open_ended="text_similarity")) as mixed:
        for _ in range(rounds):
            for name, rows in requests.items():
                start = time.process_time()
                mixed.score(rows)
                rates[name].append(len(rows) / (time.process_time() - start))
    return rates


def bench_maths(
    rounds: int, count: int, peer_count: int, workers: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    logging.disable(logging.WARNING)
    trl_name, trl = trl_contender()
    contenders: dict[str, Callable[[Sequence[tuple[str, str, float]]], list[float]]] = {}
    with MixedReward(RewardSettings(math_workers=workers, math_timeout_s=30.0)) as mixed:

        def ours(rows: Sequence[tuple[str, str, float]]) -> list[float]:
            requests = [ScoreRequest("math", g, output(a)) for g, a, _ in rows]
            return [score.reward for score in mixed.score(requests)]

        contenders[f"ours, {workers} workers"] = ours
        contenders["Math-Verify called naively"] = naive
        contenders[trl_name] = trl
        start_pool(mixed)
        for contend in contenders.values():  # imports and tables of all
            contend(expressions(8, random.Random(2)))
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        right: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(rounds):
            rows = expressions(count, random.Random(10 + turn))
            for name, contend in contenders.items():
                # The peers search the whole output for an answer, which takes them seconds.
                share = rows if contend is ours else rows[:peer_count]
                start = time.perf_counter()
                verdicts = contend(share)
                rates[name].append(len(share) / (time.perf_counter() - start))
                right[name] += [float(v == row[2]) for v, row in zip(verdicts, share, strict=True)]
    return rates, {name: statistics.mean(values) for name, values in right.items()}


def bench_paths(rounds: int, count: int, workers: int) -> dict[str, list[float]]:
    """The same mix, split into what the host does and what the workers do."""
    paths: dict[str, list[float]] = {"host": [], "worker": [], "host_share": []}
    settings = RewardSettings(math_workers=workers, math_timeout_s=30.0)
    with MixedReward(settings) as mixed:
        start_pool(mixed)
        for turn in range(rounds):
            rows = expressions(count, random.Random(50 + turn))
            start = time.process_time()
            cases = [prepare_case(answer, gold) for gold, answer, _ in rows]
            spent = time.process_time() - start
            left = [row for row, case in zip(rows, cases, strict=True) if case.verdict is None]
            paths["host"].append(len(rows) / spent)
            paths["host_share"].append(1 - len(left) / len(rows))
            start = time.perf_counter()
            mixed.score([ScoreRequest("math", g, output(a)) for g, a, _ in left])
            paths["worker"].append(len(left) / (time.perf_counter() - start))
    return paths


def bench_step(rounds: int, workers: int) -> dict[str, float]:
    """CPU seconds of a step with the data's own shares of the verifiers, workers included."""
    rng = random.Random(7)
    makers = {"digit": digit_requests, "mcq": mcq_requests, "iou": iou_requests}
    rows = [row for name, n in STEP.items() if name in makers for row in makers[name](n, rng)]
    rows += open_requests(STEP["open_ended"], rng)
    for gold, answer, _ in expressions(STEP["math"] // 4, rng):
        rows += [ScoreRequest("math", gold, output(said)) for said in (answer, gold, "0", answer)]
    spent = []
    for _ in range(rounds):
        before = [resource.getrusage(who) for who in WHO]
        settings = RewardSettings(open_ended="text_similarity", math_workers=workers)
        with MixedReward(settings) as mixed:
            mixed.score(rows)
        after = [resource.getrusage(who) for who in WHO]
        pairs = zip(before, after, strict=True)
        spent.append([b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in pairs])
    host, below = (statistics.median(values) for values in zip(*spent, strict=True))
    return {"host": host, "workers and their start": below}


STEP = {"digit": 164, "mcq": 608, "math": 544, "iou": 324, "open_ended": 408}
"""Of 2,048, as in the 25,195 records."""
WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def start_pool(mixed: MixedReward) -> None:
    """Wait until the workers have imported the parser; their start is not what is measured."""
    mixed.score([ScoreRequest("math", "\\sin(2x)", output("2\\sin(x)\\cos(x)"))])


def naive(rows: Sequence[tuple[str, str, float]]) -> list[float]:
    """Math-Verify as its first example: parse both texts, verify, defaults throughout."""
    from math_verify import parse, verify

    return [float(verify(parse(gold), parse(output(answer)))) for gold, answer, _ in rows]


def trl_contender() -> tuple[str, Callable[[Sequence[tuple[str, str, float]]], list[float]]]:
    """TRL's accuracy reward on answers in a box, which is the form it asks for."""
    try:
        module = importlib.import_module("trl.rewards.accuracy_rewards")
    except Exception:
        return "TRL accuracy reward (its calls, re-made)", trl_calls

    def accuracy(rows: Sequence[tuple[str, str, float]]) -> list[float]:
        completions = [[{"role": "assistant", "content": boxed(a)}] for _, a, _ in rows]
        golds = [f"${gold}$" for gold, _, _ in rows]
        return [v if v is not None else -1.0 for v in module.accuracy_reward(completions, golds)]

    version = importlib.import_module("trl").__version__
    return f"TRL {version} accuracy reward", accuracy


def trl_calls(rows: Sequence[tuple[str, str, float]]) -> list[float]:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    boxed_first = LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True),
        boxed_match_priority=0,
        try_extract_without_anchor=False,
    )
    verdicts = []
    for gold, answer, _ in rows:
        said = parse(
            boxed(answer),
            extraction_config=[boxed_first],
            extraction_mode="first_match",
            parsing_timeout=10,
        )
        verdicts.append(float(verify(parse(f"${gold}$", parsing_timeout=10), said)))
    return verdicts


def boxed(answer: str) -> str:
    return f"<think>{THOUGHT}</think>\n\nThe answer is $\\boxed{{{answer}}}$."


def bench_hostile(workers: int, timeout_s: float) -> dict[str, float]:
    rng = random.Random(3)
    rows: list[tuple[str, str, float | None]] = [*expressions(150, rng)]
    rows += [("x+1", "$" + HANGS[i % len(HANGS)].format(i + 2) + "$", None) for i in range(50)]
    rng.shuffle(rows)
    requests = [ScoreRequest("math", g, output(a)) for g, a, _ in rows]
    settings = RewardSettings(math_workers=workers, math_timeout_s=timeout_s)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with MixedReward(settings) as mixed:
        start_pool(mixed)
        start = time.perf_counter()
        scores = mixed.score(requests)
        wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    pairs = list(zip(rows, scores, strict=True))
    for (gold, answer, right), score in pairs:
        if right is not None and score.reward != right:
            print(f"  not as it should be: {gold}, {answer}: {score.reward} {score.error or ''}")
    return {
        "workers": workers,
        "timeout_s": timeout_s,
        "wall_s": wall,
        "cpu_s": spent,
        "allowed_cpu_s": 1.2 * 50 * timeout_s,
        "hangs_failed": sum(s.failed for (_, _, right), s in pairs if right is None),
        "hangs_bounded": sum(s.reward == 0.0 for (_, _, right), s in pairs if right is None),
        "others_right": sum(s.reward == right for (_, _, right), s in pairs if right is not None),
        "processes_left": worker_processes(),
    }


def hostile_problems(figures: dict[str, float]) -> list[str]:
    """What is not as promised: the time, the verdicts on the others, the processes."""
    problems = []
    if figures["cpu_s"] > figures["allowed_cpu_s"]:
        spent, allowed = figures["cpu_s"], figures["allowed_cpu_s"]
        problems.append(f"took {spent:.1f} CPU s of {allowed:.1f} allowed")
    if figures["hangs_failed"] + figures["hangs_bounded"] < 50:
        problems.append("a hostile answer is paid")
    if figures["others_right"] < 150:
        problems.append(f"only {figures['others_right']:g} of the other 150 are right")
    if figures["processes_left"]:
        problems.append(f"{figures['processes_left']:g} processes are left")
    return problems


def worker_processes() -> int:
    """Processes of this one that are workers of a pool."""
    count = 0
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().split(b"\0")
            count += b"vlaa_jax.rewards.worker" in command and str(os.getpid()).encode() in command
    return count


def bench_start(rounds: int) -> list[float]:
    """Seconds from starting the command to its end, for one line that needs no maths."""
    line = json.dumps({"verifier_type": "digit", "gt": "4", "response": "<answer>4</answer>"})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "vlaa_jax.rewards", "-"],
            input=line.encode(), capture_output=True, check=True, env=environment,
        )  # fmt: skip
        times.append(time.perf_counter() - start)
    return times


def show(title: str, rates: dict[str, list[float]], notes: dict[str, float] | None = None) -> None:
    print(f"\n{title:44} {'median/s':>10} {'slowest/s':>10}" + (f" {'right':>7}" if notes else ""))
    for name, values in rates.items():
        tail = f" {notes[name]:7.3f}" if notes else ""
        print(f"  {name:42} {statistics.median(values):10,.0f} {min(values):10,.0f}{tail}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=4000, help="rule scorings per round")
    parser.add_argument("--maths", type=int, default=200, help="comparisons per round")
    parser.add_argument("--peer-maths", type=int, default=24, help="of these, for the peers")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--hostile-timeout-s", type=float, default=2.0, help="0 leaves it out")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()

    rules = bench_rules(options.rounds, options.count)
    show("rules, one core (process time)", rules)
    maths, right = bench_maths(options.rounds, options.maths, options.peer_maths, options.workers)
    show("maths, distinct symbolic pairs (wall time)", maths, right)
    paths = bench_paths(options.rounds, options.maths, options.workers)
    share = statistics.mean(paths.pop("host_share"))
    show(f"of that mix, {share:.0%} decided on the host", paths)
    step = bench_step(options.rounds, options.workers)
    print(
        "\na step of 2,048 completions, CPU s: "
        + ", ".join(f"{k} {v:.2f}" for k, v in step.items())
    )
    start = bench_start(options.rounds)
    middle, slowest = statistics.median(start), max(start)
    print(f"\nstart of the command: median {middle:.2f} s, slowest {slowest:.2f} s")
    hostile: dict[str, float] = {}
    problems: list[str] = []
    if options.hostile_timeout_s:
        hostile = bench_hostile(options.workers, options.hostile_timeout_s)
        print(
            "\n200 answers, 50 of them hangs: "
            + ", ".join(f"{k} {v:g}" for k, v in hostile.items())
        )
        problems = hostile_problems(hostile)
        for problem in problems:
            print(f"  FAILED: {problem}")
    if options.json:
        figures = {
            "rules_per_s": rules,
            "maths_per_s": maths,
            "maths_right": right,
            "maths_paths_per_s": paths,
            "maths_host_share": share,
            "start_s": start,
            "step_cpu_s": step,
            "hostile": hostile,
        }
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
