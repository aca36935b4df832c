"""Keeps what the policy said, off the training path.

Of a step there is STEP.jsonl with one line per completion, for programs and people to read,
STEP.npz with the numbers of every token (`report.shards`), and, once both are whole, a line in
index.jsonl. `report.record` reads them. What was sampled for training is kept in rollouts/, what
was sampled on held-out records in heldout/.
"""

import json
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vlaa_jax import disk
from vlaa_jax.parallel import hosts
from vlaa_jax.parallel.local import fetch
from vlaa_jax.policy.groups import Groups
from vlaa_jax.report.record import HELDOUT, INDEX, ROLLOUTS
from vlaa_jax.report.shards import make_shard, write_shard
from vlaa_jax.rewards.extract import extract_answer

MAX_WAITING = 2
"""Steps that may wait to be written; a slower disk then holds up the training, not the memory."""


class TokenFigures(NamedTuple):
    """What the trainer knows of every token of a step; all of it was computed anyway.

    Attributes:
        order: the step's groups in the order of all that follows.
        mask_PGT: True on tokens that take part in the loss.
        logprobs: [p, G, T] each, on the devices: under the policy that the token's own update
            (the first one, with several passes over a rollout) started from.
        entropy: the same for the entropy of the distribution.
        old_PGT: under the policy that sampled, as the trainer computes it; None where one update
            uses all prompts, since that is `logprobs`.
        ref_PGT: under the reference; None without one.
    """

    order: np.ndarray
    mask_PGT: np.ndarray
    logprobs: Sequence[jax.Array | np.ndarray]
    entropy: Sequence[jax.Array | np.ndarray]
    old_PGT: np.ndarray | None
    ref_PGT: np.ndarray | None


class RolloutLog:
    """Writes the completions of steps in a thread.

    A failure to write is told and does not end the run, unless it is the disk's: then a resumed run
    does the step again. Of several hosts one writes.

    Args:
        workdir: run directory.
        say: told of failures, in one line.
    """

    def __init__(self, workdir: Path, say: Callable[[str], None]) -> None:
        self._workdir, self._say = workdir, say
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollout-log")
        self._waiting: deque[Future[None]] = deque()

    def write(
        self, step: int, groups: Groups, advantages_PG: np.ndarray, figures: TokenFigures
    ) -> None:
        """Has WORKDIR/rollouts/STEP.* written; all hosts come here."""
        if hosts.count() > 1:  # what is spread over them is brought together by all
            figures = figures._replace(
                logprobs=[fetch(part) for part in figures.logprobs],
                entropy=[fetch(part) for part in figures.entropy],
            )
        self._submit(ROLLOUTS, step, groups, advantages_PG, figures)

    def write_heldout(self, step: int, groups: Groups) -> None:
        """Has WORKDIR/heldout/STEP.* written: what the weights after `step` steps answer."""
        self._submit(HELDOUT, step, groups, None, None)

    def flush(self, left: int = 0) -> None:
        """Waits until no more than `left` steps are still to be written."""
        while len(self._waiting) > left:
            try:
                self._waiting.popleft().result()
            except Exception as error:  # whatever it is, training is worth more than its record
                refused = disk.refusal(error)
                if refused and refused.advice:
                    raise  # a full disk ends the run anyway, and here nothing is lost yet
                self._say(f"completions of a step could not be written: {error}")

    def close(self) -> None:
        """Writes what is waiting."""
        try:
            self.flush()
        finally:
            self._thread.shutdown()

    def _submit(self, *what: Any) -> None:
        if not hosts.is_writer():
            return
        self.flush(left=MAX_WAITING - 1)
        self._waiting.append(self._thread.submit(_write, self._workdir, *what))


def _write(
    workdir: Path,
    name: str,
    step: int,
    groups: Groups,
    advantages_PG: np.ndarray | None,
    figures: TokenFigures | None,
) -> None:
    folder = workdir / name
    folder.mkdir(exist_ok=True)
    shape = groups.rollout.length_PG.shape
    lines = [_line(groups, p, g) for p, g in np.ndindex(shape)]
    if advantages_PG is not None:
        for line, advantage in zip(lines, advantages_PG.reshape(-1), strict=True):
            line["advantage"] = float(advantage)
    text = "".join(json.dumps({"step": step, **line}, ensure_ascii=False) + "\n" for line in lines)
    # A lone surrogate of a record's field is no UTF-8, but has an escape in JSON.
    disk.write_bytes(folder / f"{step:06d}.jsonl", text.encode("utf-8", "backslashreplace"))
    size = write_shard(folder / f"{step:06d}.npz", _shard(groups, figures))
    tokens = int(groups.rollout.length_PG.sum())
    entry = {"step": step, "completions": len(lines), "tokens": tokens, "bytes": size}
    _append(folder / INDEX, json.dumps(entry))


def _append(path: Path, line: str) -> None:
    """Adds a line; one that an interruption has cut off is ended first."""
    with path.open("a+b", buffering=0) as file:
        if file.tell():
            file.seek(-1, 2)
            line = line if file.read(1) == b"\n" else f"\n{line}"
        disk.append(file, line.encode() + b"\n")


def _joined(parts: Sequence[Any], length: int) -> np.ndarray:
    """Micro-batches one after the other, each cut or filled up to so many positions."""
    arrays = [np.asarray(part)[:, :, :length] for part in parts]
    gaps = [((0, 0), (0, 0), (0, length - array.shape[2])) for array in arrays]
    return np.concatenate([np.pad(array, gap) for array, gap in zip(arrays, gaps, strict=True)])


def _shard(groups: Groups, figures: TokenFigures | None) -> Any:
    rollout = groups.rollout
    columns = {"tokens": rollout.tokens_PGT, "mask": rollout.mask_PGT}
    columns["sampler"] = rollout.logprobs_PGT
    if figures is not None:
        known = {
            "mask": figures.mask_PGT,
            "trainer": _joined(figures.logprobs, rollout.mask_PGT.shape[2]),
            "entropy": _joined(figures.entropy, rollout.mask_PGT.shape[2]),
            "old": figures.old_PGT,
            "reference": figures.ref_PGT,
        }
        back = np.argsort(figures.order)
        columns |= {name: array[back] for name, array in known.items() if array is not None}
    return make_shard(
        rollout.length_PG.reshape(-1),
        rollout.mask_PGT.reshape(-1, rollout.mask_PGT.shape[-1]),
        {k: v.reshape(-1, v.shape[-1]) for k, v in columns.items()},
    )


def _line(groups: Groups, p: int, g: int) -> dict[str, Any]:
    rollout, record = groups.rollout, groups.prompts[p].record
    score = groups.scores[p * rollout.length_PG.shape[1] + g]
    found = extract_answer(groups.texts[p][g])
    return {
        "group": p,
        "id": record.id,
        "images": list(record.images),
        "question": record.question,
        "verifier_type": score.verifier_type,
        "gt": record.gt,
        "box_space": record.box_space,
        "completion": groups.texts[p][g],
        "extracted": score.extracted,
        "span": found.span,
        "reason": found.reason,
        "reward": None if score.failed else score.reward,
        "parts": {k: v for k, v in score.parts.items() if v == v},
        "error": score.error,
        "length": int(rollout.length_PG[p, g]),
        "truncated": bool(rollout.truncated_PG[p, g]),
    }
