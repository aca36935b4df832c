"""Drawn data of the tiny study: records to explore, and SFT traces unlike what made the base.

The base learnt short direct reasoning, mostly without the answer format. The traces that the arms
imitate say everything twice and hesitate in between, some with the paper's aha cues; of those that
conclude, some are wrong. ``clean.json`` is the positive control: the base's own short reasoning,
always right and always in the format, whose effect is known beforehand.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from vlaa_jax import disk
from vlaa_jax.data.sources.record_file import load_records
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.pipeline.split import has_aha
from vlaa_jax.schema import Record

TRAIN, HELDOUT, SFT = 1000, 100, 600
WRONG = 0.2
"""Share of hesitant traces that end with another record's answer."""
PLAIN, AHA, CLEAN = "hesitant.json", "aha.json", "clean.json"

_PAUSES = ("So then.", "That is it, I find.", "One line at a time.", "The bar and the angle.")
_CUES = ("Wait.", "Hmm.", "Let me check again.", "Alternatively,")


def write_drawn(root: Path) -> None:
    """Writes the records and the three files of traces; nothing where they are there."""
    paths = write_dataset(root, n_train=TRAIN, n_heldout=HELDOUT, n_sft=SFT)
    if (root / AHA).exists():
        return
    records = load_records(paths.sft, kind="sft")
    _write(root / CLEAN, records, lambda record, other, rng: record.answer or "")
    _write(root / PLAIN, records, lambda record, other, rng: hesitant(record, other, rng, _PAUSES))
    _write(root / AHA, records, lambda record, other, rng: hesitant(record, other, rng, _CUES))


def hesitant(
    record: Record, other: Record, rng: np.random.Generator, pauses: tuple[str, ...]
) -> str:
    """A trace that says its reasoning twice with pauses, and answers wrongly now and then.

    Args:
        record: with the base's own trace as its answer.
        other: of the same task, whose answer stands in for a wrong one.
        rng: of the pauses and the mistakes.
        pauses: what is said in between.
    """
    thought, answer = _parts(record)
    if rng.random() < WRONG:
        answer = _parts(other)[1]
    first, second = (pauses[int(i)] for i in rng.choice(len(pauses), 2, replace=False))
    text = f"<think> {thought} {first} {thought} {second} </think> <answer> {answer} </answer>"
    if has_aha(text) != has_aha(" ".join(pauses)):
        raise AssertionError(f"the cue of {text!r} is not that of its file")
    return text


def _parts(record: Record) -> tuple[str, str]:
    think, _, answer = (record.answer or "").partition("</think>")
    return (
        think.replace("<think>", "").strip(),
        answer.replace("<answer>", "").replace("</answer>", "").strip(),
    )


Trace = Callable[[Record, Record, np.random.Generator], str]


def _write(path: Path, records: list[Record], trace: Trace) -> None:
    disk.write_text(path, "".join(_lines(records, trace)))


def _lines(records: list[Record], trace: Trace) -> Iterator[str]:
    rng = np.random.default_rng(20250411)
    for index, record in enumerate(records):
        other = records[(index + 5 * int(rng.integers(1, len(records) // 5))) % len(records)]
        line = {
            "id": record.id,
            "image": record.images[0],
            "question": record.question,
            "answer": trace(record, other, rng),
        }
        yield json.dumps(line, ensure_ascii=False) + "\n"
