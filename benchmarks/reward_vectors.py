"""Scores a file of reward vectors and lists every row where our verdict is not the file's.

    python -m benchmarks.reward_vectors FILE.jsonl

A line of the file is an object with

    type          what the row is about: digit, mcq, math, iou, yes_no, open_ended, format,
                  overlong, repetition; other types have no counterpart here and are counted
    prediction    text of the model (overlong: a length, repetition: token ids)
    ground_truth  the gold, where there is one
    expected      the value wanted; a row without it is shown, not judged
    level         "response" (whole output) or "answer" (already extracted)
    protocol      how the answer is marked: "answer_tag" and "bare" rows are scored as they are, and
                  other marks ("boxed", "bracket", ...) at level "answer" too; a whole output with
                  another mark belongs to another protocol and is counted apart
    note          free text

An answer is put into a well-formed output first. Exit code 1 when a deviation has no reason among
REASONS (docs/rewards.md says more about each).
"""

import argparse
import json
import math
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from vlaa_jax.rewards.extract import extract_answer
from vlaa_jax.rewards.mixed import MixedReward, RewardSettings
from vlaa_jax.rewards.shaping import overlong_penalty, repetition_penalty
from vlaa_jax.schema import Score, ScoreRequest

VERIFIERS = {
    "digit": "digit", "mcq": "mcq", "math": "math", "math_timeout": "math", "yes_no": "math",
    "iou": "iou", "open_ended": "open_ended",
}  # fmt: skip
REASONS = {
    "tags": "an output without exactly one answer block earns 0 (implicit format)",
    "empty": "an empty answer or an open thought is no answer",
    "thought": "a closing think tag is enough; the opening one may be part of the prompt",
    "structure": "the format value is 0 or 1; parts of it are not paid for",
    "continuous": "boxes are continuous areas; no pixel is added to or taken from a side",
    "several boxes": "several boxes earn 0 unless the gold has several",
    "similarity": "the offline text similarity is not an edit ratio",
    "hang": "a comparison that hangs is a failure (NaN), neither right nor wrong",
    "gold": "a gold without mathematics is a failure (NaN): the record belongs dropped",
    "several numbers": "several numbers in prose are a hedge",
    "percent": "a percentage equals its value and, written as a whole number, its figure",
    "rounding": "a decimal with six decimals right counts, as in Math-Verify",
    "approximation": "a shorter decimal is not an exact value",
}


def applies(row: dict[str, Any]) -> bool:
    """Whether a row of these tables can be put to our protocol."""
    if row["type"] in ("overlong", "repetition"):
        return True
    if row["type"] not in VERIFIERS and row["type"] != "format":
        return False
    return row.get("level") == "answer" or row.get("protocol") in ("answer_tag", "bare")


def as_request(row: dict[str, Any]) -> ScoreRequest:
    """The row as our verifier would get it."""
    said = str(row["prediction"])
    response = said if row["level"] == "response" else f"<think>t</think><answer>{said}</answer>"
    name = VERIFIERS[row["type"]]
    size = re.search(r"image (\d+)\s*x\s*(\d+)", row.get("note", ""))
    return ScoreRequest(
        name, str(row.get("ground_truth", "")), response,
        image_size=(int(size[1]), int(size[2])) if size else None,
    )  # fmt: skip


def value_of(row: dict[str, Any], score: Score | None) -> float:
    """Our value for a row; ``score`` is that of its request, where it has one."""
    numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", row.get("note", ""))]
    if row["type"] == "overlong":
        named = re.search(r"max (\d+), buffer (\d+)", row.get("note", ""))
        assert named, "an overlong row names max and buffer in its note"
        return overlong_penalty(int(row["prediction"]), int(named[1]), int(named[2]))
    if row["type"] == "repetition":
        ngram = re.search(r"ngram (\d+)", row.get("note", ""))
        assert ngram, "a repetition row names its ngram in its note"
        return repetition_penalty(row["prediction"], int(ngram[1])) * abs(numbers[-1])
    if row["type"] == "format":
        return float(extract_answer(row["prediction"]).answer is not None)
    assert score is not None
    return score.reward


def reason_for(row: dict[str, Any], value: float, score: Score | None) -> str | None:
    """Key of REASONS for a deviation; None when nothing explains it."""
    said, kind, error = str(row["prediction"]), row["type"], score.error if score else None
    if error is not None:
        return "gold" if "gold" in error else "hang" if "timed out" in error else None
    if row.get("level") == "response" and extract_answer(said).answer is None:
        return "tags" if "<answer>" not in said else "empty"
    if kind == "format":
        return "thought" if "<think>" not in said or said.count("<think>") > 1 else "structure"
    if kind == "iou":
        return "several boxes" if said.count("[") > 1 else "continuous"
    if kind == "open_ended":
        return "similarity"
    if kind == "math" and "%" in said + str(row.get("ground_truth")):
        return "percent"
    if kind == "math" and value == 1.0 and re.search(r"\d\.\d{6}", said):
        return "rounding"
    if kind in ("math", "digit") and value == 0.0:
        if len(re.findall(r"(?<![\w.])\d[\d,.]*", said)) > 1:
            return "several numbers"
        if re.search(r"\d\.\d", said):
            return "approximation"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--timeout-s", type=float, default=5.0, help="per maths comparison")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.file.read_text().splitlines() if line.strip()]
    ours = [row for row in rows if applies(row)]
    scored = [row for row in ours if row["type"] in VERIFIERS]
    with MixedReward(RewardSettings(math_timeout_s=options.timeout_s)) as mixed:
        scores = iter(mixed.score([as_request(row) for row in scored]))
    counts: Counter[str] = Counter()
    unexplained = 0
    for row in ours:
        score = next(scores) if row["type"] in VERIFIERS else None
        value = value_of(row, score)
        if "expected" not in row:
            counts["shown, nothing expected"] += 1
            continue
        if math.isclose(value, float(row["expected"]), abs_tol=5e-4):
            counts["agree"] += 1
            continue
        reason = reason_for(row, value, score)
        unexplained += reason is None
        counts[f"deviate: {reason or 'NO REASON'}"] += 1
        print(
            f"{row['type']}: said {str(row['prediction'])[:70]!r}, gold "
            f"{str(row.get('ground_truth'))[:40]!r}: expected {row['expected']:g}, ours {value:g}"
            f"\n    {REASONS[reason] if reason else 'NO REASON'}"
        )
    print(f"\n{len(rows)} rows, {len(rows) - len(ours)} of other protocols or types")
    for name, count in counts.most_common():
        print(f"{count:5}  {name}")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
