"""Miniature tables in the format of the public ones: a few dozen questions on coloured squares."""

import base64
import csv
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from vlaa_jax.evaluate.benchmarks import LEADERBOARD

_COLOURS = ("red", "green", "blue", "orange")
_SIDE, _WIDTH, _HEIGHT = 20, 168, 56
VARIANTS = 10


def write_tables(root: Path, seed: int = 0) -> None:
    """Write the six tables below a directory."""
    root.mkdir(parents=True, exist_ok=True)
    for benchmark in LEADERBOARD:
        rng = random.Random(f"{seed} {benchmark.name}")
        rows = [{"index": index, **row} for index, row in enumerate(_ROWS[benchmark.name](rng))]
        header = list(dict.fromkeys(key for row in rows for key in row))
        path = root / f"{benchmark.dataset}.tsv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, header, delimiter="\t", quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)


def picture(count: int, colour: str) -> str:
    """Squares in a row, as a PNG in base64."""
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    for place in range(count):
        left = 8 + place * (_SIDE + 6)
        draw.rectangle((left, 18, left + _SIDE, 18 + _SIDE), fill=colour, outline="black")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _draw(rng: random.Random) -> tuple[int, str, str]:
    count, colour = rng.randint(1, 6), rng.choice(_COLOURS)
    return count, colour, picture(count, colour)


def _mathvista(rng: random.Random) -> Iterator[dict[str, Any]]:
    for place in range(8):
        count, colour, image = _draw(rng)
        common = {"image": image, "task": "counting", "skills": "['arithmetic', 'perception']"}
        if place % 2:
            choices = list(_COLOURS)
            letter = "ABCD"[choices.index(colour)]
            lines = "\n".join(f"({'ABCD'[i]}) {c}" for i, c in enumerate(choices))
            yield common | {
                "question": f"Give the letter.\nWhich colour is it?\nChoices:\n{lines}",
                "question_type": "multi_choice",
                "answer_type": "text",
                "choices": repr(choices),
                "answer": colour,
                "answer_option": letter,
            }
        else:
            yield common | {
                "question": "How many squares are there? Give a whole number.",
                "question_type": "free_form",
                "answer_type": "integer",
                "choices": "",
                "answer": str(count),
                "answer_option": "",
            }


def _mathvision(rng: random.Random) -> Iterator[dict[str, Any]]:
    for place in range(8):
        count, colour, image = _draw(rng)
        choices = list(_COLOURS) if place % 2 else []
        yield {
            "image": image,
            "question": "Which colour: (A) red (B) green (C) blue (D) orange?"
            if choices
            else "What share of six is the number of squares?",
            "choices": repr(choices),
            "answer": "ABCD"[_COLOURS.index(colour)] if choices else f"\\frac{{{count}}}{{6}}",
            "category": "arithmetic" if place < 4 else "counting",
        }


def _mathverse(rng: random.Random) -> Iterator[dict[str, Any]]:
    for place in range(6):
        count, _, image = _draw(rng)
        meta = {"split": "testmini", "subject": "plane", "subfield": f"kind {place % 2}"}
        yield {
            "image": image,
            "question": "Read the question off the image.",
            "question_for_eval": "How many squares are there?",
            "query_cot": "Read the question off the image and think.",
            "answer": str(count),
            "metadata": str(meta),
            "problem_version": "Vision Only",
        }


def _dynamath(rng: random.Random) -> Iterator[dict[str, Any]]:
    kinds = ("float", "multiple choice")
    for variant in range(1, VARIANTS + 1):
        for question, kind in enumerate(kinds):
            count, colour, image = _draw(rng)
            choice = kind != "float"
            asked = "Which colour: A red, B green, C blue, D orange?" if choice else "How many?"
            yield {
                "image": image,
                "qid": question,
                "varid": variant,
                "question": asked,
                "answer": "ABCD"[_COLOURS.index(colour)] if choice else f"{count:.3f}",
                "answer_type": kind,
                "subject": "arithmetic",
                "knowledge_level": "elementary school",
            }


def _wemath(rng: random.Random) -> Iterator[dict[str, Any]]:
    concepts = ["Perimeter of Squares", "Area of Squares", "Translation"]
    for problem, steps in enumerate((2, 3, 2)):
        count, _, image = _draw(rng)
        for key in (*range(1, steps + 1), "multi"):
            options = [count, count + 1, count + 2]
            rng.shuffle(options)
            yield {
                "image": image,
                "ID": f"mini{problem}",
                "key": f"{steps}steps_{key}",
                "question": "How many squares are there?",
                **dict(zip("ABC", options, strict=True)),
                "D": "No correct answer",
                "answer": "ABC"[options.index(count)],
                "knowledge concept": concepts[key - 1] if isinstance(key, int) else "",
            }


def _logicvista(rng: random.Random) -> Iterator[dict[str, Any]]:
    skills = ("inductive", "deductive", "numerical", "spatial", "mechanical")
    for skill in skills:
        _, colour, image = _draw(rng)
        yield {
            "image": image,
            "question": "Which colour is it? A: red, B: green, C: blue, D: orange",
            "answer": "ABCD"[_COLOURS.index(colour)],
            "skill": skill,
        }


_ROWS = {
    "mathvista": _mathvista,
    "mathvision": _mathvision,
    "mathverse": _mathverse,
    "dynamath": _dynamath,
    "wemath": _wemath,
    "logicvista": _logicvista,
}
