"""Checks record files against their images and golds before anything is trained on them.

One table per file, a row per source, with the published counts beside (arXiv 2504.11468, Table 1).
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from vlaa_jax.data.images.files import DEEP_MODES
from vlaa_jax.data.judging.judge import Examined, Findings, Judge, Needs, examine
from vlaa_jax.data.progress import progress
from vlaa_jax.data.records.foreign_forms import remarks
from vlaa_jax.data.sources.source import Reject, Source

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
_COLUMNS = (
    *("records", "published", "refused"),
    *("images", "found", "missing", "corrupt", "bad golds"),
)
"""Of a row: records of a source, different images that they name, and golds."""
UNREADABLE = "(unreadable)"
"""Row of records that were refused before their source was known."""


@dataclass
class CheckReport:
    """What was found in one file."""

    file: str
    kind: str | None
    rows: dict[str, Counter[str]] = field(default_factory=dict)
    """Counts of each source, by column of the table."""
    modes: Counter[str] = field(default_factory=Counter)
    """Different images by the form of their pixels, where they were decoded."""
    findings: Findings = field(default_factory=Findings)
    """All problems by kind."""
    remarks: Findings = field(default_factory=Findings)
    """What can be trained on and is hardly meant, by kind."""
    needs: Needs = field(default_factory=Needs)
    """What a run has to have room for, where lengths were measured."""

    @property
    def clean(self) -> bool:
        """True when every record, image and gold can be used."""
        return not self.problems

    @property
    def problems(self) -> int:
        """How many there are."""
        return self.findings.total()

    def add(self, one: Examined, seen: set[str], source: Source) -> None:
        """Count a record; ``seen`` holds the images that were counted."""
        if one.record is None:
            self._row(UNREADABLE)["refused"] += 1
            return
        row = self._row(one.record.source)
        row["records"] += 1
        row["bad golds"] += any(problem.field == "gt" for problem in one.verdict.problems)
        for path, fact in zip(one.record.images, one.facts, strict=True):
            if path not in seen:
                seen.add(path)
                self.modes.update([fact.mode] if fact.mode else [])
                folder = path.split("/", 1)[0] if "/" in path else ""
                self._row(folder).update(["images", fact.status])
        for name, remark in remarks(one.record):
            self.remarks.add(source.reject(one.place, name, remark, one.record.id))
        if one.verdict.measure is not None:
            self.needs.add(one.verdict.measure)

    def _row(self, source: str) -> Counter[str]:
        """The row of a source, made when first asked for."""
        return self.rows.setdefault(source or "(no folder)", Counter())

    def table(self) -> str:
        """The report as text."""
        published = self._published()
        names = sorted({*self.rows, *published}, key=lambda n: (n == UNREADABLE, n))
        rows = {name: Counter(self.rows.get(name, {})) for name in names}
        for name, count in published.items():
            rows[name]["published"] = count
        rows["total"] = sum(rows.values(), Counter())
        if published != PUBLISHED.get(self.kind or ""):
            del rows["total"]["published"]
        lines = [("source", *_COLUMNS), *((name, *_cells(row)) for name, row in rows.items())]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
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


def _cells(row: Counter[str]) -> Iterator[str]:
    for name in _COLUMNS:
        yield "-" if name == "published" and name not in row else f"{row[name]:,}"


def check(
    source: Source,
    judge: Judge,
    *,
    whole: bool = True,
    workers: int = 2,
    on_reject: Callable[[Reject], object] = lambda reject: None,
    show_progress: bool = False,
) -> CheckReport:
    """Check all records of a source.

    Args:
      source: the source.
      judge: who decides; training asks the same one.
      whole: decode every image once; otherwise look at headers, as training does.
      workers: threads that look at images.
      on_reject: gets every problem as it is found.
      show_progress: show progress on stderr.
    """
    needs = Needs(judge.preprocessor, judge.limits.window_units)
    report = CheckReport(str(source.path), judge.kind, needs=needs)
    found = examine(source, judge, whole=whole, workers=workers)
    seen: set[str] = set()
    for one in progress(found, len(source), f"check {source.path}", show_progress):
        report.add(one, seen, source)
        for reject in one.rejects:
            report.findings.add(reject)
            on_reject(reject)
    source.close()
    return report
