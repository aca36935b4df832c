"""Scores a file of reward vectors and lists every row where our verdict is not the file's.

    python -m benchmarks.reward_vectors FILE.jsonl

A line of the file is an object with

    type          what the row is about: a verifier (VERIFIERS), or a part of it (PARTS: letters,
                  boxes, format, penalties, advantages); types in OTHERS have no counterpart here
    prediction    text of the model (overlong: a length, repetition: token ids, group: rewards)
    ground_truth  the gold, where there is one
    expected      the value wanted; a row without it is shown, not judged. For an observed fault
                  of another project the note names what was wanted ("desired: B")
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlaa_jax.rewards.boxes import parse_boxes
from vlaa_jax.rewards.extract import extract_answer
from vlaa_jax.rewards.mcq import chosen_letter
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
    "range": "an inequality and the interval it describes are one range",
    "approximation": "a shorter decimal is not an exact value",
}


OTHERS = {
    "combined": "sums of format and accuracy over exact text, GIoU or boxed answers",
    "cosine_length": "a bonus for length by correctness is no option here",
    "detection": "average precision over labelled boxes; here boxes have no labels",
    "exact": "no verifier compares free text letter by letter",
    "extract_boxed": "answers are marked by tags, not by a box",
    "format_bbox": "the format is the same for every verifier",
}


def skipped(row: dict[str, Any]) -> str | None:
    """Why a row of these tables cannot be put to our protocol; None when it can."""
    kind = row["type"]
    if kind in PARTS and kind != "format":
        return None
    if kind not in VERIFIERS and kind != "format":
        return f"{kind}: {OTHERS.get(kind, 'unknown type')}"
    if row.get("level") == "answer" or row.get("protocol") in ("answer_tag", "bare"):
        return None
    return f"{kind}: a whole output whose answer is marked by {row.get('protocol')}"


def wanted(row: dict[str, Any]) -> Any:
    """The value to compare with; None where the row names none."""
    desired = re.search(r"desired: (\w+)", row.get("note", ""))
    if row["type"] == "mcq_extract":
        letter = desired[1] if desired else row.get("expected", "none")
        return letter.replace("none", "-")
    return row.get("expected")


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


def _format(row: dict[str, Any]) -> float:
    return float(extract_answer(row["prediction"]).answer is not None)


def _overlong(row: dict[str, Any]) -> float:
    limit, buffer, _ = _overlong_note(row)
    return overlong_penalty(int(row["prediction"]), limit, buffer)


def _overlong_shaped(row: dict[str, Any]) -> float:
    """Through the whole reward: a box that covers a share of the gold has that IoU."""
    limit, buffer, weight = _overlong_note(row)
    request = ScoreRequest(
        "iou", "[0, 0, 1, 1]", f"<answer>[0, 0, {row['ground_truth']}, 1]</answer>",
        box_space="normalized",
    )  # fmt: skip
    settings = RewardSettings(overlong_weight=weight, overlong_buffer=buffer)
    with MixedReward(settings) as mixed:
        (score,) = mixed.score([request], lengths=[int(row["prediction"])], max_length=limit)
    return score.reward


def _overlong_note(row: dict[str, Any]) -> tuple[int, int, float]:
    note = row.get("note", "")
    named = re.search(r"max (\d+), buffer (\d+)(?:, penalty (\d+(?:\.\d+)?))?", note)
    assert named, "an overlong row names max and buffer in its note"
    return int(named[1]), int(named[2]), float(named[3] or 1.0)


def _repetition(row: dict[str, Any]) -> float:
    numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", row.get("note", ""))]
    ngram = re.search(r"ngram (\d+)", row.get("note", ""))
    assert ngram, "a repetition row names its ngram in its note"
    return repetition_penalty(row["prediction"], int(ngram[1])) * abs(numbers[-1])


def _letter(row: dict[str, Any]) -> str:
    return chosen_letter(row["prediction"].rpartition("</think>")[2]) or "-"


def _boxes(row: dict[str, Any]) -> float:
    return float(len(parse_boxes(row["prediction"]) or ()))


def _advantages(row: dict[str, Any]) -> list[float]:
    import numpy as np

    from vlaa_jax.algos.advantages import grpo_advantages

    rewards_PG = np.array([row["prediction"]], np.float32)
    return [float(value) for value in np.asarray(grpo_advantages(rewards_PG))[0]]


PARTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "format": _format,
    "overlong": _overlong,
    "overlong_shaped": _overlong_shaped,
    "repetition": _repetition,
    "mcq_extract": _letter,
    "bbox_parse": _boxes,
    "group": _advantages,
}


def agree(value: Any, expected: Any) -> bool:
    """Numbers up to the digits that such tables give; anything else exactly."""
    if isinstance(expected, (int, float)):
        return math.isclose(value, float(expected), abs_tol=5e-4)
    return bool(value == expected)


def reason_for(row: dict[str, Any], value: Any, score: Score | None) -> str | None:
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
    if kind == "math" and value == 1.0 and "\\le" in said:
        return "range"
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
    ours = [row for row in rows if skipped(row) is None]
    scored = [row for row in ours if row["type"] in VERIFIERS]
    settings = RewardSettings(open_ended="text_similarity", math_timeout_s=options.timeout_s)
    with MixedReward(settings) as mixed:
        scores = iter(mixed.score([as_request(row) for row in scored]))
    counts: Counter[str] = Counter()
    unexplained = 0
    for row in ours:
        score = next(scores) if row["type"] in VERIFIERS else None
        value = score.reward if score is not None else PARTS[row["type"]](row)
        expected = wanted(row)
        if expected is None:
            counts["shown, nothing expected"] += 1
            print(f"{row['type']}: said {str(row['prediction'])[:70]!r}: ours {value}, none asked")
            continue
        if agree(value, expected):
            counts["agree"] += 1
            continue
        reason = reason_for(row, value, score)
        unexplained += reason is None
        counts[f"deviate: {reason or 'NO REASON'}"] += 1
        print(
            f"{row['type']}: said {str(row['prediction'])[:70]!r}, gold "
            f"{str(row.get('ground_truth'))[:40]!r}: expected {expected}, ours {value}"
            f"\n    {REASONS[reason] if reason else 'NO REASON'}"
        )
    print(f"\n{len(rows)} rows, {len(ours)} put to our protocol")
    for name, count in counts.most_common():
        print(f"{count:5}  {name}")
    print(f"\n{len(rows) - len(ours)} rows without a counterpart here")
    for name, count in Counter(filter(None, map(skipped, rows))).most_common():
        print(f"{count:5}  {name}")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
