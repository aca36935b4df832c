"""Writes the records of any source in the released form, and the images that it brings."""

import json
from pathlib import Path
from typing import NamedTuple

from vlaa_jax import disk
from vlaa_jax.data.judging.judge import Findings, Judge, examine
from vlaa_jax.data.progress import progress
from vlaa_jax.data.records.parse import as_released
from vlaa_jax.data.sources.source import Source
from vlaa_jax.schema import UserError


class Converted(NamedTuple):
    """Attributes: records written, images written, and what was left out."""

    records: int
    images: int
    left_out: Findings


def convert(source: Source, out: Path, images: Path, *, show_progress: bool = False) -> Converted:
    """Writes JSON Lines; images that lie below an image root already stay there.

    Args:
        source: of any form.
        out: file to write; it may not exist.
        images: image root, below which images of the source are written.
        show_progress: show progress on stderr.

    Raises:
        UserError: ``out`` exists, or something cannot be written.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; choose another --out or delete it")
    left_out, lines, written = Findings(), [], 0
    found = examine(source, Judge(kind=source.kind), whole=False, keep=not source.needs_root)
    try:
        for one in progress(found, len(source), f"convert {source.path}", show_progress):
            if one.rejects or one.record is None:
                left_out.add(one.rejects[0])
                continue
            lines.append(json.dumps(as_released(one.record), ensure_ascii=False) + "\n")
            for name, fact in zip(one.record.images, one.facts, strict=True):
                if fact.data:
                    (images / name).parent.mkdir(parents=True, exist_ok=True)
                    (images / name).write_bytes(fact.data)
                    written += 1
        out.parent.mkdir(parents=True, exist_ok=True)
        disk.write_text(out, "".join(lines))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        source.close()
    return Converted(len(lines), written, left_out)
