"""Shows one record as a person wants to see it: texts, images, lengths, planner rows."""

import os
import re
from collections.abc import Sequence

from vlaa_jax.data.images.inspect import inspect_image
from vlaa_jax.data.images.planner import plan_vision
from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.records.reject import Refusal
from vlaa_jax.data.samples.measure import measure
from vlaa_jax.data.sources.record_file import RecordFile
from vlaa_jax.data.text.chat import Chat
from vlaa_jax.schema import Record, UserError

_MAX_TEXT = 4000


def find_record(file: RecordFile, which: str) -> Record:
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


def _index_of(file: RecordFile, record_id: str) -> int | None:
    """Where the first usable record with an id is, or else the first that names it."""
    number = re.fullmatch(r"-?[0-9]+", record_id)  # looked for in the text before parsing any
    field = re.compile(rb'"id"\s*:\s*"?' + record_id.encode() + rb'"?\s*[,}]') if number else None
    unusable = None
    for index in range(len(file)):
        if field is not None and not _holds(file, index, field):
            continue
        result = file.read(index)
        if result.id != record_id:
            continue
        if isinstance(result, Record):
            return index
        unusable = index if unusable is None else unusable
    return unusable


def _holds(file: RecordFile, index: int, pattern: re.Pattern[bytes]) -> bool:
    try:
        return pattern.search(file.encoded(index)) is not None
    except Refusal:
        return False


def describe(
    record: Record,
    image_root: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    window_units: int = 4,
    system_prompt: str = "",
) -> str:
    """The record as text.

    Args:
      record: what to show.
      image_root: where its images lie; None leaves them unopened.
      checkpoint: HF directory for the token and patch counts; None leaves them out.
      min_pixels: instead of the checkpoint's limit.
      max_pixels: instead of the checkpoint's limit.
      window_units: 4 for Qwen2.5-VL, 0 for Qwen2-VL.
      system_prompt: empty for the template's own.
    """
    lines = [f"id        {record.id}", f"source    {record.source}"]
    if record.verifier_type is not None:
        space = f" ({record.box_space})" if record.box_space else ""
        lines.append(f"verifier  {record.verifier_type}{space}")
    if record.gt is not None:
        lines.append(f"gold      {_clip(record.gt)}")
    sizes = []
    for path in record.images:
        facts = inspect_image(image_root, path) if image_root is not None else None
        state = "" if facts is None else f"  {facts.size[0]}x{facts.size[1]}"
        if facts is not None and facts.status == "found":
            sizes.append(facts.size)
        elif facts is not None:
            state = f"  {facts.status}: {facts.reason}"
        lines.append(f"image     {path}{state}")
    if checkpoint is not None and len(sizes) == len(record.images):
        chat = Chat.from_dir(checkpoint)
        processor = ImageProcessor.from_dir(checkpoint, min_pixels, max_pixels)
        lines += _lengths(record, sizes, chat, processor, window_units, system_prompt)
    for name in ("question", "caption", "answer"):
        text = getattr(record, name)
        if text:
            lines += ["", f"[{name}]", _clip(text)]
    for key, value in record.meta.items():
        lines += ["", f"[meta.{key}]", _clip(str(value))]
    return "\n".join(lines)


def _lengths(
    record: Record,
    sizes: Sequence[tuple[int, int]],
    chat: Chat,
    processor: ImageProcessor,
    window_units: int,
    system_prompt: str,
) -> list[str]:
    prompt = measure(record, sizes, chat, processor, system_prompt=system_prompt)
    lines = [
        f"tokens    {prompt.tokens:,} in the prompt, {prompt.image_tokens:,} of them for images"
    ]
    if record.answer is not None:
        full = measure(
            record, sizes, chat, processor, system_prompt=system_prompt, with_answer=True
        )
        lines.append(f"          {full.tokens - prompt.tokens:,} in the answer")
    for size, grid in zip(sizes, prompt.grids, strict=True):
        width, height = processor.resized(*size)
        lines.append(f"resized   {size[0]}x{size[1]} -> {width}x{height}, grid {grid}")
    plan = plan_vision([list(prompt.grids)], window_units)
    bins, rows = plan.src_SR64.shape[:2]
    used = int((plan.src_SR64 >= 0).sum())
    lines.append(
        f"planner   {bins} bin(s) of {rows} rows: {used:,} patches in {bins * rows * 64:,} places"
    )
    return lines


def _clip(text: str) -> str:
    if len(text) <= _MAX_TEXT:
        return text
    return f"{text[:_MAX_TEXT]} ... ({len(text):,} characters)"
