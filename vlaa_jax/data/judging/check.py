"""Checks record files against their images and golds before anything is trained on them.

One table per file, a row per source, with the published counts beside (arXiv 2504.11468, Table 1).
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from vlaa_jax.data.images.bit_depth import DEEP_MODES
from vlaa_jax.data.images.inspect import ImageFacts, inspect_image
from vlaa_jax.data.judging.findings import Findings
from vlaa_jax.data.judging.golds import GoldProblems, bad_golds
from vlaa_jax.data.progress import progress
from vlaa_jax.data.records.foreign_forms import remarks
from vlaa_jax.data.records.reject import Reject
from vlaa_jax.data.sources.record_file import RecordFile, iter_indexed
from vlaa_jax.foreign import local_path
from vlaa_jax.schema import Record, UserError

PUBLISHED = {
    "sft": {
        "clevr_math": 5_923,
        "synthesis": 19_258,
        "arxivqa": 34_604,
        "docvqa": 4_897,
        "vizwiz": 4_266,
        "allava_laion": 10_496,
        "coco": 8_727,
        "vg": 38_242,
    },
    "grpo": {
        "clevr_math": 2_000,
        "geoqa170k": 6_499,
        "synthesis": 6_696,
        "arxivqa": 1_000,
        "docvqa": 1_000,
        "vizwiz": 1_000,
        "allava_laion": 3_000,
        "coco": 2_000,
        "vg": 2_000,
    },
}
"""Records per source of the two released files; 126,413 and 25,195 in all."""
_HEAD = (
    *("source", "records", "published", "refused"),
    *("images", "found", "missing", "corrupt", "bad golds"),
)
UNREADABLE = "(unreadable)"
"""Row of records that were refused before their source was known."""
_BATCH = 256


@dataclass
class SourceRow:
    """Counts of one source."""

    records: int = 0
    refused: int = 0
    images: int = 0
    """Different images named by the records."""
    found: int = 0
    missing: int = 0
    corrupt: int = 0
    bad_golds: int = 0


@dataclass
class CheckReport:
    """What was found in one file."""

    file: str
    kind: str | None
    rows: dict[str, SourceRow] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
    """Up to ``max_rejects``; the counts go on."""
    problems: int = 0
    modes: Counter[str] = field(default_factory=Counter)
    """Different images by the form of their pixels, where they were decoded."""
    findings: Findings = field(default_factory=Findings)
    """All problems by kind."""
    remarks: Findings = field(default_factory=Findings)
    """What can be trained on and is hardly meant, by kind."""

    @property
    def clean(self) -> bool:
        """True when every record, image and gold can be used."""
        return self.problems == 0

    def row(self, source: str) -> SourceRow:
        """The row of a source, made when first asked for."""
        return self.rows.setdefault(source or "(no folder)", SourceRow())

    def table(self) -> str:
        """The report as text."""
        published = self._published()
        lines: list[tuple[str, ...]] = [_HEAD]
        total = SourceRow()
        names = sorted(set(self.rows) | set(published), key=lambda n: (n == UNREADABLE, n))
        for name in names:
            row = self.rows.get(name, SourceRow())
            lines.append(_cells(name, row, published.get(name)))
            for attribute, value in vars(row).items():
                setattr(total, attribute, getattr(total, attribute) + value)
        whole = len(published) == len(PUBLISHED.get(self.kind or "", {}))
        lines.append(_cells("total", total, sum(published.values()) if whole else None))
        widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
        text = [self.file]
        for line in lines:
            numbers = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
            text.append("  ".join([line[0].ljust(widths[0]), *numbers]))
        return "\n".join(text)

    def _published(self) -> dict[str, int]:
        """Published counts of the sources in the file; of all where it has most of them."""
        published = PUBLISHED.get(self.kind or "", {})
        here = {name: count for name, count in published.items() if name in self.rows}
        return published if 2 * len(here) > len(published) else here

    def mode_lines(self) -> list[str]:
        """How many images have which form of pixels, and what is done to some; for people."""
        if not self.modes:
            return []
        counts = ", ".join(f"{mode} {count:,}" for mode, count in self.modes.most_common())
        deep = sum(self.modes[mode] for mode in DEEP_MODES)
        note = f"{deep:,} images of more than 8 bits a pixel are scaled to 8 by their range"
        return [f"pixels: {counts}", *([note] if deep else [])]


def _cells(name: str, row: SourceRow, published: int | None) -> tuple[str, ...]:
    counts = (row.refused, row.images, row.found, row.missing, row.corrupt, row.bad_golds)
    beside = "-" if published is None else f"{published:,}"
    return (name, f"{row.records:,}", beside, *(f"{c:,}" for c in counts))


def check_file(
    path: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    *,
    kind: str | None = None,
    gold_problems: GoldProblems | None = None,
    box_space: str | Mapping[str, str] = "normalized",
    decode: bool = True,
    workers: int = 2,
    on_reject: Callable[[Reject], None] | None = None,
    max_rejects: int = 1000,
    show_progress: bool = False,
) -> CheckReport:
    """Check one record file.

    Args:
      path: JSON array or JSON Lines.
      image_root: folder the image paths are relative to.
      kind: "grpo", "sft" or None.
      gold_problems: says what is wrong with golds for their verifiers; None leaves golds unchecked.
      box_space: space of iou boxes that do not name their own; see RecordFile.
      decode: decode every image once; otherwise only look whether it is there.
      workers: threads that look at images.
      on_reject: gets every reject as it is found.
      max_rejects: how many rejects the report keeps.
      show_progress: show progress on stderr.

    Raises:
      UserError: the file or the image root cannot be read at all.
    """
    if not local_path(image_root).is_dir():
        raise UserError(f"{image_root}: no such image folder")
    report = CheckReport(str(path), kind)

    file = RecordFile(path, kind=kind, box_space=box_space)

    def refuse(reject: Reject) -> None:
        report.problems += 1
        report.findings.add(reject)
        if len(report.rejects) < max_rejects:
            report.rejects.append(reject)
        if on_reject is not None:
            on_reject(reject)

    def refuse_unread(reject: Reject) -> None:
        report.row(UNREADABLE).refused += 1
        refuse(reject)

    found = iter_indexed(file, refuse_unread)
    found = progress(found, len(file), f"check {path}", show_progress)
    seen: dict[str, ImageFacts] = {}
    same: dict[ImageFacts, ImageFacts] = {}  # few differ, and 126,413 are many
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for batch in _batches(found):
            new = list(dict.fromkeys(p for _, r in batch for p in r.images if p not in seen))
            facts = pool.map(lambda p: inspect_image(image_root, p, decode=decode), new)
            for image, fact in zip(new, facts, strict=True):
                report.modes.update([fact.mode] if fact.mode else [])
                seen[image] = same.setdefault(fact, fact)
                _count_image(report.row(image.split("/", 1)[0] if "/" in image else ""), fact)
            sizes = [_size(seen[r.images[0]]) if r.images else None for _, r in batch]
            golds = bad_golds([record for _, record in batch], sizes, gold_problems)
            for (index, record), gold in zip(batch, golds, strict=True):
                row = report.row(record.source)
                row.records += 1
                row.bad_golds += gold is not None
                for name, remark in remarks(record):
                    report.remarks.add(file.reject(index, name, remark, record.id))
                for path in record.images:
                    if reason := seen[path].reason:
                        refuse(file.reject(index, "image", reason, record.id))
                if gold is not None:
                    refuse(file.reject(index, "gt", gold, record.id))
    file.close()
    return report


def _size(fact: ImageFacts) -> tuple[int, int] | None:
    return fact.size if fact.size != (0, 0) else None


def _count_image(row: SourceRow, fact: ImageFacts) -> None:
    row.images += 1
    row.found += fact.status == "found"
    row.missing += fact.status == "missing"
    row.corrupt += fact.status == "corrupt"


def _batches(records: Iterable[tuple[int, Record]]) -> Iterator[list[tuple[int, Record]]]:
    iterator = iter(records)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
