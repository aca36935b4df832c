"""Files and records of other forms: what they look like, and how they are turned into ours.

A guess only ever explains a refusal: nothing is read by it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from vlaa_jax.schema import Record

_MAGIC = {
    b"PAR1": "a Parquet table",
    b"ARROW1": "an Arrow file",
    b"\xff\xff\xff\xff": "an Arrow stream",
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"BZh": "compressed by bzip2; unpack it",
    b"\xfd7zXZ": "compressed by xz; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"SQLite": "an SQLite data base",
    b"\x80\x04": "a pickle, which is never read",
    b"<!DOCTYPE": "a web page; was the download refused?",
    b"<html": "a web page; was the download refused?",
}
_SEE = 'see "Records of other forms" in docs/data.md'
_TALK = "this looks like a conversation; a file that holds nothing else is read as it is"
_FORMS = {
    ("conversations",): _TALK,
    ("messages",): _TALK,
    ("row_idx", "row"): "this looks like rows of the Hugging Face viewer: the record is in 'row'",
    ("problem", "solution"): "this looks like records of R1-V: question=problem, and gt is what "
    "stands inside the <answer> of 'solution'",
}
_QUESTIONS = ("problem", "query", "prompt", "instruction", "text")
"""Names that others give the question."""
PLACEHOLDER = re.compile(r"<(?:image|img|imagehere)(?:[ _]?\d+)?>", re.IGNORECASE)
"""A mark that stands for an image in other forms."""
_CHAT_TOKEN = re.compile(r"<\|\w+\|>|\[/?INST\]")
_EMPTY_ANSWER = re.compile(r"<answer>\s*</answer>")


def guess_file(start: bytes) -> str | None:
    """What a file that begins like this is, where it is none of JSON."""
    found = next((what for magic, what in _MAGIC.items() if start.startswith(magic)), None)
    if found is None and b"," in start.partition(b"\n")[0] and start[:200].isascii():
        found = "a table as text (CSV)"
    return f"this looks like {found}; {_SEE}" if found else None


def guess_record(raw: Mapping[str, Any]) -> str | None:
    """What form a record without a question has, and where its parts would go."""
    keys = {key.lower(): key for key in raw if isinstance(key, str)}
    found = next((what for needed, what in _FORMS.items() if keys.keys() >= set(needed)), None)
    if found is None and (name := next((keys[n] for n in _QUESTIONS if n in keys), None)):
        found = f"it seems to be in {name!r}: say so with columns, question={name}"
    return f"{found}; {_SEE}" if found else None


def without_placeholders(text: str) -> str:
    """The text without marks that stand for an image in other forms."""
    return PLACEHOLDER.sub("", text).strip()


def remarks(record: Record) -> Iterator[tuple[str, str]]:
    """(field, what and what to do) of all that can be trained on and is hardly meant."""
    marks = len(PLACEHOLDER.findall(record.question))
    if marks and marks != len(record.images):
        yield "question", f"has {marks} marks like <image> for {len(record.images)} images"
    elif marks > 1 and not marks_lead(record.question):
        yield (
            "question",
            f"puts its {marks} images between its words; they are shown before the text, in the "
            "order of the record: name them there (the first image)",
        )
    elif marks:
        yield "question", f"holds <image>, which is read as text: take it out; {_SEE}"
    if record.answer is not None and PLACEHOLDER.search(record.answer):
        yield "answer", "holds <image>, which would be learnt as text: take it out"
    if record.answer is not None and _EMPTY_ANSWER.search(record.answer):
        yield "answer", "has an empty <answer> block"
    for field in ("question", "answer"):
        if found := _CHAT_TOKEN.search(getattr(record, field) or ""):
            yield (
                field,
                f"holds {found.group()!r}, a token of a chat format: where the tokenizer has it, a "
                "build leaves the record out",
            )


def marks_lead(text: str) -> bool:
    """Whether all marks stand before the first word."""
    marks = list(PLACEHOLDER.finditer(text))
    return not PLACEHOLDER.sub("", text[: marks[-1].end()]).strip()
