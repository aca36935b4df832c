"""Every committed spelling of a gold pays, and nothing uncommitted does, for all verifiers.

The table of spellings knows nothing of the parser. VLAA_FUZZ_CASES draws from it (default 100,000).
"""

import os
import random
import subprocess
import sys

import pytest

import spellings
from vlaa_jax.rewards.digit import score_digit
from vlaa_jax.rewards.iou import score_iou
from vlaa_jax.rewards.math import prepare_case
from vlaa_jax.rewards.math_judge import judge
from vlaa_jax.rewards.mcq import score_mcq

CASES = int(os.environ.get("VLAA_FUZZ_CASES", "100000"))

ONES = "zero one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
HAN = "零一二三四五六七八九十"
EXPRESSIONS = [
    ("\\frac{3}{4}", "\\frac{5}{4}"), ("2\\sqrt{5}", "3\\sqrt{5}"), ("x+1", "x+2"),
    ("3\\pi", "4\\pi"), ("\\pi r^2", "2\\pi r"), ("(2, 3)", "(3, 2)"), ("y=2x+1", "y=2x-1"),
]  # fmt: skip
OPTIONS = [
    ["25°", "35°", "55°", "75°"],
    ["A tall man", "An old dog", "A small boat", "A red car"],
    ["8 cm", "9 cm", "0.9 cm", "90 cm"],
    ["$\\frac{1}{2}$", "$\\frac{2}{3}$", "$\\frac{3}{4}$", "$\\frac{4}{5}$"],
    ["acute", "straight", "obtuse", "isosceles"],
]
AROUND = ["{}", "{}", " {}", "{}\n", "\n{}\n"]


def score_math(answer, gold):
    case = prepare_case(answer, gold)
    return float(case.verdict if case.item is None else judge(case.item)["equal"])


def two(rng):
    return rng.sample(range(3, 100), 2)


def tables_of(*kinds):
    """Names of the tables of a verifier, by whether they commit."""
    return {
        which.lower(): [which, *(f"{kind}_{which}" for kind in kinds)]
        for which in ("COMMITTED", "UNCOMMITTED")
    }


def digit(rng):
    v, o = two(rng)
    return str(v), {"v": v, "o": o}, tables_of("NUMBER", "COUNT"), score_digit


def digit_in_words(rng):
    v, o = rng.sample(range(3, 11), 2)
    words = rng.choice([ONES, [word.capitalize() for word in ONES]])
    tables = {"committed": ["LATIN_COMMITTED"], "uncommitted": ["LATIN_UNCOMMITTED"]}
    return str(v), {"v": words[v], "o": words[o]}, tables, score_digit


def digit_in_chinese(rng):
    v, o = rng.sample(range(3, 11), 2)
    tables = {"committed": ["HAN_COMMITTED"], "uncommitted": ["HAN_UNCOMMITTED"]}
    return str(v), {"v": HAN[v], "o": HAN[o]}, tables, score_digit


def number(rng):
    v, o = two(rng)
    return str(v), {"v": v, "o": o}, tables_of("NUMBER", "MATH"), score_math


def expression(rng):
    v, o = rng.choice(EXPRESSIONS)
    return v, {"v": v, "o": o}, tables_of(), score_math


def choice(rng):
    options = rng.choice(OPTIONS)
    question = "Which one?\n" + "\n".join(map("{}. {}".format, "ABCD", options))
    right, other = rng.sample(range(4), 2)
    said = {"v": "ABCD"[right], "o": "ABCD"[other], "t": options[right], "p": options[other]}

    def score(answer, gold):
        return score_mcq(answer, gold, question)

    return "ABCD"[right], said, tables_of("MCQ"), score


def box(rng):
    def one():
        x, y = rng.randrange(0, 300), rng.randrange(0, 300)
        return x, y, x + rng.randrange(20, 200), y + rng.randrange(20, 200)

    v, o = one(), one()
    gold = str(list(v))
    spelled = rng.choice(
        ["[{}, {}, {}, {}]", "({}, {}), ({}, {})", "({},{}),({},{})", "[[{}, {}], [{}, {}]]",
         "<|box_start|>({},{}),({},{})<|box_end|>"]
    )  # fmt: skip
    said = {"v": spelled.format(*v), "o": spelled.format(*o)}
    return gold, said, tables_of("BOX"), score_iou


KINDS = [digit, digit_in_words, digit_in_chinese, number, expression, choice, box]


def rows_of(names):
    """Rows of tables; LATIN_ and HAN_ tables are those of one script."""
    found = []
    for name in names:
        script, _, rest = name.partition("_")
        if script not in ("LATIN", "HAN"):
            found += spellings.lines(getattr(spellings, name, ""))
            continue
        all_rows = spellings.lines(getattr(spellings, rest), getattr(spellings, f"COUNT_{rest}"))
        found += [row for row in all_rows if is_chinese(row) == (script == "HAN")]
    return found


def is_chinese(row):
    return any("\u4e00" <= char <= "\u9fff" for char in row)


ROWS = {
    (kind, which): rows_of(kind(random.Random(0))[2][which])
    for kind in KINDS
    for which in ("committed", "uncommitted")
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("which", "reward"), [("committed", 1.0), ("uncommitted", 0.0)])
def test_every_spelling_of_the_table(kind, which, reward):
    wrong = []
    for index, row in enumerate(ROWS[kind, which]):
        gold, said, _, score = kind(random.Random(index))
        answer = row.format(**said)
        if score(answer, gold) != reward:
            wrong.append((gold, answer))
    assert not wrong


def test_spellings_drawn_at_random():
    rng = random.Random(20_260)
    wrong = []
    for _ in range(CASES):
        kind = rng.choice(KINDS)
        which = rng.choice(["committed", "uncommitted"])
        gold, said, _, score = kind(rng)
        answer = rng.choice(AROUND).format(rng.choice(ROWS[kind, which]).format(**said))
        if score(answer, gold) != (which == "committed"):
            wrong.append((kind.__name__, which, gold, answer))
    assert not wrong, wrong[:20]


PAIRS = [("0", "\\frac{0}{0}"), ("\\sin x", "\\operatorname{sin}(x)"), ("x^2", "|x|^2"),
         ("55", "\\sum_{k=1}^{10} k"), ("\\int_0^1 x dx", "0.5")]  # fmt: skip
PROGRAM = """
from vlaa_jax.rewards.math_judge import judge
print([judge({"gold": gold, "answer": answer}) for gold, answer in PAIRS])
""".replace("PAIRS", repr(PAIRS))


@pytest.mark.parametrize("runs", [4])
def test_verdicts_do_not_depend_on_the_process(runs):
    said = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in range(int(os.environ.get("VLAA_FUZZ_RUNS", runs)))
    }  # fmt: skip
    assert len(said) == 1
    assert said.pop().count("True") == 4
