"""Shows one record as a person wants to see it: texts, images, lengths, planner rows."""

import re
from collections.abc import Sequence

from vlaa_jax.data.images.files import ImageFacts
from vlaa_jax.data.images.planner import PATCHES_PER_ROW, vision_shape
from vlaa_jax.data.samples.preprocessor import Preprocessor
from vlaa_jax.data.sources.source import Source
from vlaa_jax.schema import Record, UserError

_MAX_TEXT = 4000


def find_record(file: Source, which: str) -> Record:
    """A record by its id, or else by its position; ``#3`` is position 3 whatever the ids.

    Args:
      file: where to look.
      which: an id, a position from 0 (negative: from the end), or ``#`` and a position.

    Raises:
      UserError: there is none such, or it cannot be used.
    """
    position = re.fullmatch(r"(#?)(-?[0-9]{1,18})", which)
    index = None if position is None or position[1] else _index_of(file, which)
    if position is None:
        index = _index_of(file, which)
    elif index is None and -len(file) <= int(position[2]) < len(file):
        index = int(position[2])
    if index is None:
        raise UserError(
            f"{file.path}: no record at position or with id {which!r} ({len(file)} records)"
        )
    return file[index]


def _index_of(file: Source, record_id: str) -> int | None:
    """Where the first usable record with an id is, or else the first that names it."""
    number = re.fullmatch(r"-?[0-9]+", record_id)  # looked for in the text before parsing any
    field = re.compile(rb'"id"\s*:\s*"?' + record_id.encode() + rb'"?\s*[,}]') if number else None
    unusable = None
    for index in range(len(file)):
        if field is not None and not file.mentions(index, field):
            continue
        result = file.read(index)
        if result.id != record_id:
            continue
        if isinstance(result, Record):
            return index
        unusable = index if unusable is None else unusable
    return unusable


def describe(
    record: Record,
    facts: Sequence[ImageFacts] | None = None,
    preprocessor: Preprocessor | None = None,
    window_units: int = 4,
) -> str:
    """The record as text.

    Args:
      record: what to show.
      facts: of its images; None where they were not opened.
      preprocessor: for the token and patch counts; None leaves them out.
      window_units: 4 for Qwen2.5-VL, 0 for Qwen2-VL.
    """
    lines = [f"id        {record.id}", f"source    {record.source}"]
    if record.verifier_type is not None:
        space = f" ({record.box_space})" if record.box_space else ""
        lines.append(f"verifier  {record.verifier_type}{space}")
    if record.gt is not None:
        lines.append(f"gold      {_clip(record.gt)}")
    states = [""] * len(record.images) if facts is None else [_state(fact) for fact in facts]
    lines += [f"image     {path}{s}" for path, s in zip(record.images, states, strict=True)]
    known = not record.images if facts is None else all(f.status == "found" for f in facts)
    if preprocessor is not None and known:
        sizes = [fact.size for fact in facts or ()]
        lines += _lengths(record, sizes, preprocessor, window_units)
    for name in ("question", "caption", "answer"):
        if text := getattr(record, name):
            lines += ["", f"[{name}]", _clip(text)]
    for key, value in record.meta.items():
        lines += ["", f"[meta.{key}]", _clip(str(value))]
    return "\n".join(lines)


def _state(fact: ImageFacts) -> str:
    found = fact.status == "found"
    return f"  {fact.size[0]}x{fact.size[1]}" if found else f"  {fact.status}: {fact.reason}"


def _lengths(
    record: Record, sizes: Sequence[tuple[int, int]], preprocessor: Preprocessor, window_units: int
) -> list[str]:
    prompt = preprocessor.measure(record, sizes)
    lines = [
        f"tokens    {prompt.tokens:,} in the prompt, {prompt.image_tokens:,} of them for images"
    ]
    if record.answer is not None:
        full = preprocessor.measure(record, sizes, with_answer=True)
        lines.append(f"          {full.tokens - prompt.tokens:,} in the answer")
    for size, grid in zip(sizes, prompt.grids, strict=True):
        width, height = preprocessor.processor.resized(*size)
        lines.append(f"resized   {size[0]}x{size[1]} -> {width}x{height}, grid {grid}")
    rows, bins = vision_shape([prompt.grids], window_units)
    filled = f"{prompt.patches:,} patches in {bins * rows * PATCHES_PER_ROW:,} places"
    return [*lines, f"planner   {bins} bin(s) of {rows} rows: {filled}"]


def _clip(text: str) -> str:
    if len(text) <= _MAX_TEXT:
        return text
    return f"{text[:_MAX_TEXT]} ... ({len(text):,} characters)"
