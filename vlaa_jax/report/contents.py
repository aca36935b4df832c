"""What goes on the page of one run: all of it where it fits, else samples spread over the run."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from vlaa_jax.foreign import read_object
from vlaa_jax.report.pictures import Pictures
from vlaa_jax.report.pieces import Pieces, covered
from vlaa_jax.report.record import HELDOUT, ROLLOUTS, Completion, RunRecord
from vlaa_jax.schema import UserError

MAX_STEPS = 60
"""Steps on a page, spread evenly over those recorded."""
MAX_POINTS = 1000
"""Points of a curve."""
MAX_FLIPS = 500
RIGHT = 0.5
"""An answer counts as right from this unshaped reward on, the mean over samples of a record."""
_COLUMNS = ("sampler", "trainer", "reference", "entropy", "gap", "ratio", "mask")

Group = list[Completion]
Tree = dict[str, Any]


def dump(tree: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end one or begin a comment."""
    text = json.dumps(tree, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def run_contents(record: RunRecord, budget: int, image_root: Path | None = None) -> Tree:
    """One run as the page's script reads it, in at most about `budget` bytes of JSON.

    Raises:
        UserError: a file of the run is damaged.
    """
    filler = _Filler(Pictures(record, image_root), Pieces(record.path / "hf" / "tokenizer.json"))
    metrics = _curves(record.metrics())
    fixed: Tree = {
        "name": record.name,
        "settings": flat(record.settings),
        "metrics": metrics,
        "summary": _summary(record.path / "heldout.json"),
    }
    left = budget - len(dump(fixed).encode())
    answers, flips = _heldout(record, filler, max(left, 0) * 3 // 10)
    steps = record.steps(ROLLOUTS)
    rollouts = _rollouts(record, steps, filler, max(left - filler.spent, 0))
    counts: Tree = {"steps": len(steps), "rollouts": rollouts, "answers": answers, "flips": flips}
    return {**fixed, **counts, "images": filler.pictures.encoded, "right": RIGHT}


def _rollouts(
    record: RunRecord, steps: Sequence[int], filler: "_Filler", budget: int
) -> list[Tree]:
    """Steps spread over the run, no more than can show two groups each."""
    if not steps:
        return []
    sample = _groups(record.read(ROLLOUTS, steps[0]))
    cost = 2 * filler.size(sample[0]) if sample else 1
    chosen = spread(steps, min(MAX_STEPS, max(budget // cost, 1)))
    end, found = filler.spent + budget, []
    for number, step in enumerate(chosen):
        groups = _groups(record.read(ROLLOUTS, step))
        share = (end - filler.spent) // (len(chosen) - number)
        found.append(
            {"step": step, "total": len(groups), "groups": filler.fill(_by_turns(groups), share)}
        )
    return found


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings by their whole names, as text."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = json.dumps(value, ensure_ascii=False)
    return found


def spread(items: Sequence[int], most: int) -> list[int]:
    """At most `most` of the items, first and last among them, as evenly as may be."""
    if len(items) <= most:
        return list(items)
    places = np.linspace(0, len(items) - 1, most).round().astype(int)
    return [items[place] for place in places]


class _Filler:
    """Puts groups on the page until a sum of bytes is spent."""

    def __init__(self, pictures: Pictures, pieces: Pieces) -> None:
        self.pictures, self._pieces = pictures, pieces
        self.spent = 0

    def fill(self, groups: Iterator[Group], budget: int) -> list[Tree]:
        """Groups, in the order given, as far as the budget goes."""
        shown = []
        end = self.spent + budget
        for group in groups:
            known = len(self.pictures.encoded)
            tree = self._group(group)
            size = self._bytes(tree, known)
            if self.spent + size > end:
                self.pictures.forget(known)
                break
            self.spent += size
            shown.append(tree)
        return shown

    def size(self, group: Group) -> int:
        """Bytes a group would take."""
        known = len(self.pictures.encoded)
        size = self._bytes(self._group(group), known)
        self.pictures.forget(known)
        return size

    def _bytes(self, tree: Tree, known: int) -> int:
        own = len(dump(tree).encode("utf-8", "backslashreplace"))
        return own + 1 + sum(len(image) + 3 for image in self.pictures.encoded[known:])

    def _group(self, group: Group) -> Tree:
        first = group[0]
        images = [self.pictures.place(name) for name in first.images]
        rewards = [c.raw for c in group if c.raw is not None]
        return {
            "group": first.group,
            "id": first.id,
            "question": first.question,
            "gold": first.gt,
            "kind": first.verifier_type,
            "files": list(first.images),
            "images": images,
            "boxes": _rounded_boxes(self.pictures.boxes(first)[1]),
            "flat": len(group) > 1 and len(set(rewards)) < 2,
            "completions": [self._completion(completion) for completion in group],
        }

    def _completion(self, completion: Completion) -> Tree:
        found: Tree = {
            "text": completion.completion,
            "extracted": completion.extracted,
            "why": completion.error or completion.reason,
            "failed": completion.reward is None,
            "reward": completion.reward,
            "parts": dict(completion.parts),
            "advantage": completion.advantage,
            "length": completion.length,
            "truncated": completion.truncated,
            "boxes": _rounded_boxes(self.pictures.boxes(completion)[0]),
        }
        ids = completion.tokens.get("tokens", np.zeros(0, np.int32)).tolist()
        if pieces := self._pieces(ids, completion.completion) if ids else None:
            texts, special = pieces
            found["tokens"] = texts
            found["special"] = [n for n, marker in enumerate(special) if marker]
            found["answer"] = covered(texts, special, completion.span)
            known = {k: v for k, v in completion.tokens.items() if k in _COLUMNS}
            if completion.advantage is None:  # nothing of a held-out answer is in a loss
                known.pop("mask", None)
            found |= {name: column(values) for name, values in known.items()}
        return found


def column(values: np.ndarray) -> Any:
    """Numbers with four digits, None for what is not finite; a single one where all are equal."""
    numbers = [float(f"{v:.4g}") if math.isfinite(v) else None for v in values.tolist()]
    return numbers[0] if len(set(numbers)) == 1 else numbers


def _rounded_boxes(boxes: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[round(value, 4) for value in box] for box in boxes]


def _groups(completions: list[Completion]) -> list[Group]:
    """Completions of the same prompt together; a record from before groups were numbered has the
    same question and images in a row."""
    return [list(group) for _, group in groupby(completions, lambda c: (c.group, c.id, c.question))]


def _by_turns(groups: Sequence[Group]) -> Iterator[Group]:
    """Groups of the verifiers in turn, so that a sample has as many of each."""
    kinds: dict[str, list[Group]] = {}
    for group in groups:
        kinds.setdefault(group[0].verifier_type, []).append(group)
    for row in zip_longest(*kinds.values()):
        yield from (group for group in row if group is not None)


def _heldout(record: RunRecord, filler: _Filler, budget: int) -> tuple[list[Tree], list[Tree]]:
    """Answers before and after, of the same records, and which of them changed sides."""
    steps = record.steps(HELDOUT)
    ends = list(dict.fromkeys(steps[:1] + steps[-1:]))
    sides = [_groups(record.read(HELDOUT, step)) for step in ends]
    if len(sides) == 2:
        flips = _flips(*sides)
        turned = {flip["group"] for flip in flips}
        order = [n for n in range(len(sides[0])) if n in turned]
    else:
        flips, order, turned = [], [], set()
    by_turns = (group[0].group for group in _by_turns(sides[0])) if sides else iter(())
    order += [n for n in by_turns if n not in turned]
    shown = []
    for step, groups in zip(ends, sides, strict=True):
        by_number = {group[0].group: group for group in groups}
        wanted = (by_number[n] for n in order if n in by_number)
        filled = filler.fill(wanted, budget // len(ends))
        shown.append({"step": step, "total": len(groups), "groups": filled})
    return shown, flips[:MAX_FLIPS]


def _flips(before: list[Group], after: list[Group]) -> list[Tree]:
    old = {(group[0].group, group[0].id): mean_raw(group) for group in before}
    found = []
    for group in after:
        now, was = mean_raw(group), old.get((group[0].group, group[0].id))
        if now is not None and was is not None and (now >= RIGHT) != (was >= RIGHT):
            first = group[0]
            about = {"group": first.group, "id": first.id, "kind": first.verifier_type}
            found.append({**about, "before": round(was, 4), "after": round(now, 4)})
    return sorted(found, key=lambda flip: flip["before"] - flip["after"])


def mean_raw(group: Group) -> float | None:
    """Mean unshaped reward of a record's samples; None where all scores failed."""
    rewards = [c.raw for c in group if c.raw is not None]
    return float(np.mean(rewards)) if rewards else None


def _curves(lines: list[dict[str, float]]) -> dict[str, list[float | None]]:
    """Every metric over the steps; of a long run, every n-th step and the last."""
    stride = max(1, -(-len(lines) // MAX_POINTS))
    kept = lines[::stride] + (lines[-1:] if (len(lines) - 1) % stride else [])
    names = sorted({name for line in lines for name in line})
    values = {name: [line.get(name) for line in kept] for name in names}
    return {k: [None if v is None else float(f"{v:.6g}") for v in vs] for k, vs in values.items()}


def _summary(path: Path) -> Tree:
    """Held-out means before and after, beside constant answers."""
    try:
        kept = read_object(path)
    except (FileNotFoundError, UserError):
        return {}
    sides = {k: v for k, v in kept.items() if isinstance(v, dict)}
    return {
        side: {k: v for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
        for side, values in sides.items()
    }
