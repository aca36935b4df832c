"""The judge of records: what can be trained on, decided in one place.

`check`, `build`, the TFDS builder and training put their records to a ``Judge`` and get a
``Verdict``. They differ in how closely images are looked at (``examine``'s ``whole``) and in what
the judge was given to judge by: verifiers, a checkpoint, limits.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from vlaa_jax.data.images.files import ImageFacts
from vlaa_jax.data.samples.preprocessor import Measure, Preprocessor, Unfit
from vlaa_jax.data.sources.source import Reject, Source, iter_indexed
from vlaa_jax.schema import Lengths, Record, ScoreRequest, UserError

GoldProblems = Callable[[Sequence[ScoreRequest]], Sequence[str | None]]
"""Why the gold of each request cannot be scored, or None: ``MixedReward.gold_problems``. It is
asked for many at once, so that golds which need a parser reach it side by side."""
AT_ONCE = 256
"""Records whose golds are asked about together."""
_TOKENS, _ROWS = 32, 2
"""Budgets are rounded up to multiples of these."""
MAX_KINDS = 200
"""Of findings that are told apart."""
_PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|[-+]?\d[\d,.]*")
_REST = ("", "of further kinds")


class Problem(NamedTuple):
    """What speaks against a record: the field to blame, and why."""

    field: str
    reason: str


@dataclass(frozen=True)
class Limits:
    """What a run has room for; 0 is no limit.

    Attributes:
        tokens: of a sample.
        tokens_name: the setting that says so.
        vision_rows: of a bin.
        window_units: 4 for Qwen2.5-VL, 0 for Qwen2-VL.
    """

    tokens: int = 0
    tokens_name: str = "max_tokens"
    vision_rows: int = 0
    window_units: int = 4

    def problem(self, found: Measure) -> Problem | None:
        """What a record does not fit into."""
        if self.tokens and (long := found.over(self.tokens)):
            return Problem(long[0], f"{long[1]} ({self.tokens_name})")
        needed = found.vision_rows(self.window_units)
        if self.vision_rows and needed > self.vision_rows:
            over = f"over data.vision_rows_per_bin={self.vision_rows}"
            advice = "raise it or lower data.max_pixels"
            return Problem("image", f"an image needs {needed} vision rows, {over}; {advice}")
        return None


@dataclass
class Needs:
    """Grows with every record that is added.

    Attributes:
        preprocessor: that measured them.
        window_units: 4 for Qwen2.5-VL, 0 for Qwen2-VL.
    """

    preprocessor: Preprocessor | None = None
    window_units: int = 4
    tokens: int = 0
    """Of the longest sample."""
    rows: int = 0
    """Vision rows of the largest image."""
    patches: int = 0
    """Of the largest image."""

    def add(self, found: Measure) -> None:
        """Make room for a record."""
        self.tokens = max(self.tokens, found.tokens)
        self.rows = max(self.rows, found.vision_rows(self.window_units))
        self.patches = max(self.patches, *(t * h * w for t, h, w in found.grids), 0)

    def flags(self, kind: str | None) -> Sequence[str]:
        """The settings of a run that hold all of it; none where nothing was measured."""
        if self.preprocessor is None or not self.tokens:
            return []
        tokens = -(-self.tokens // _TOKENS) * _TOKENS
        settings = {"tokens_per_row" if kind == "sft" else "max_prompt_tokens": tokens}
        if self.patches:
            settings["max_pixels"] = self.patches * self.preprocessor.processor.patch_size**2
        if self.patches and kind != "sft":
            settings["vision_rows_per_bin"] = -(-self.rows // _ROWS) * _ROWS
        return [f"--config.data.{name}={value}" for name, value in settings.items()]


class Verdict(NamedTuple):
    """What was found of a record.

    Attributes:
        problems: all that speaks against it; none if it can be trained on.
        measure: its lengths, where a checkpoint was given and its images could be used.
    """

    problems: tuple[Problem, ...]
    measure: Measure | None = None


@dataclass(frozen=True)
class Judge:
    """Says of records whether they can be used, without touching pixels.

    Attributes:
        gold_problems: ``MixedReward.gold_problems``; None leaves golds unchecked.
        preprocessor: of the checkpoint that will read them; None leaves them unmeasured.
        limits: what they have to fit into.
        kind: "sft" for records whose answers are learnt, and whose golds nobody asks for.
    """

    gold_problems: GoldProblems | None = None
    preprocessor: Preprocessor | None = None
    limits: Limits = field(default_factory=Limits)
    kind: str | None = "grpo"

    def __call__(
        self,
        records: Sequence[Record],
        facts: Sequence[Sequence[ImageFacts]],
        *,
        golds_checked: bool = False,
        map: Callable[..., Iterator[Any]] = map,
    ) -> list[Verdict]:
        """A verdict for each record.

        Args:
            records: the records.
            facts: of the images of each.
            golds_checked: an earlier check settles all golds but boxes in resized pixels, which
                depend on pixel limits.
            map: of a pool whose threads tokenise.
        """
        golds = self._golds(records, facts, golds_checked)
        return list(map(self._verdict, records, facts, golds))

    def _golds(
        self,
        records: Sequence[Record],
        facts: Sequence[Sequence[ImageFacts]],
        golds_checked: bool,
    ) -> list[str | None]:
        """What is wrong with the gold of each record; None where all is well or nobody can say."""
        if self.gold_problems is None or self.kind == "sft":
            return [None] * len(records)
        asked = [
            i
            for i, record in enumerate(records)
            if record.verifier_type is not None
            and record.gt is not None
            and (record.box_space == "resized_pixels" or not golds_checked)
        ]
        found = self.gold_problems([self._request(records[i], facts[i]) for i in asked])
        told = dict(zip(asked, found, strict=True))
        return [told.get(i) for i in range(len(records))]

    def _request(self, record: Record, facts: Sequence[ImageFacts]) -> ScoreRequest:
        size = facts[0].size if facts and facts[0].status == "found" else None
        resized = None
        if size is not None and self.preprocessor is not None:
            with suppress(UserError):  # too narrow: the image is refused for that, not the gold
                resized = self.preprocessor.processor.resized(*size)
        return ScoreRequest(
            record.verifier_type or "",
            record.gt or "",
            response="",
            id=record.id,
            question=record.question,
            image_size=size,
            resized_size=resized,
            box_space=record.box_space,
        )

    def _verdict(self, record: Record, facts: Sequence[ImageFacts], gold: str | None) -> Verdict:
        problems = [Problem("image", fact.reason) for fact in facts if fact.reason]
        readable = not problems
        if gold is not None:
            problems.append(Problem("gt", gold))
        if self.preprocessor is None or not readable:
            return Verdict(tuple(problems))
        sizes, learns = [fact.size for fact in facts], self.kind == "sft"
        try:
            found = self.preprocessor.measure(record, sizes, with_answer=learns)
        except Unfit as unfit:
            return Verdict((*problems, Problem(unfit.field, unfit.reason)))
        long = self.limits.problem(found)
        return Verdict((*problems, long) if long else tuple(problems), found)


class Examined(NamedTuple):
    """A record of a source, and what was found.

    Attributes:
        place: its position.
        record: with its lengths, where they were measured; None where it could not be read.
        facts: of its images.
        verdict: what the judge said.
        rejects: its problems with their place.
    """

    place: int
    record: Record | None
    facts: tuple[ImageFacts, ...]
    verdict: Verdict
    rejects: tuple[Reject, ...]


def examine(
    source: Source,
    judge: Judge,
    *,
    whole: bool,
    keep: bool = False,
    workers: int = 2,
    wanted: Callable[[Record], bool] = lambda record: True,
) -> Iterator[Examined]:
    """All records of a source in order, each put to the judge.

    Args:
        source: where they are.
        judge: who decides.
        whole: decode images; otherwise their headers are read, and damage behind goes unseen.
        keep: hand out the encoded images.
        workers: threads that look at images and tokenise.
        wanted: others that can be read are passed over.
    """
    unread: list[Reject] = []
    seen: dict[str, ImageFacts] = {}
    found = iter_indexed(source, unread.append)
    with ThreadPoolExecutor(max(1, workers), "examine") as pool:
        while (batch := list(islice(found, AT_ONCE))) or unread:
            pairs = [pair for pair in batch if wanted(pair[1])]
            records = [record for _, record in pairs]
            look = partial(source.look, whole=whole, keep=keep)
            facts = _looked_at(look, records, {} if keep else seen, pool)
            verdicts = judge(records, facts, golds_checked=source.golds_checked, map=pool.map)
            examined = [Examined(r.index, None, (), Verdict(()), (r,)) for r in unread]
            for (index, record), fact, verdict in zip(pairs, facts, verdicts, strict=True):
                rejects = tuple(source.reject(index, *p, record.id) for p in verdict.problems)
                if verdict.measure is not None:
                    sizes = tuple(f.size for f in fact)
                    record = replace(record, lengths=Lengths(verdict.measure.tokens, sizes))
                examined.append(Examined(index, record, tuple(fact), verdict, rejects))
            unread.clear()
            yield from sorted(examined, key=lambda one: one.place)


def _looked_at(
    look: Callable[[Record, int], ImageFacts],
    records: Sequence[Record],
    seen: dict[str, ImageFacts],
    pool: ThreadPoolExecutor,
) -> list[list[ImageFacts]]:
    """Facts of all images; each path is looked at once."""
    new = {
        path: (record, number)
        for record in reversed(records)
        for number, path in enumerate(record.images)
        if path not in seen
    }
    looked = pool.map(lambda at: look(*at), new.values())
    seen.update(zip(new, looked, strict=True))
    return [[seen[path] for path in record.images] for record in records]


class Findings:
    """Counts rejects that differ only in names and numbers as one kind."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str], Reject] = {}
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, reject: Reject) -> None:
        """Count one."""
        kind = reject.field, _PARTICULAR.sub("#", reject.reason[:300])
        if kind not in self._first and len(self._first) >= MAX_KINDS:
            kind = _REST
        self._first.setdefault(kind, reject)
        self._counts[kind] += 1

    def __len__(self) -> int:
        return len(self._first)

    def total(self) -> int:
        """How many there are of all kinds."""
        return self._counts.total()

    def first(self) -> str:
        """The first by its place, and how many others there are, by field; one line."""
        first = min(self._first.values(), key=lambda reject: reject.index)
        if self.total() == 1:
            return str(first)
        fields: Counter[str] = Counter()
        for (name, _), count in self._counts.items():
            fields[name or "form"] += count
        counts = ", ".join(f"{name} {count:,}" for name, count in fields.most_common())
        return f"{first}; {self.total():,} records cannot be used (by field: {counts})"

    def lines(self) -> list[str]:
        """A line for each kind, the most frequent first: its first place, and how many."""
        return [
            f"{self._first[kind]} ({count:,} like this)" if count > 1 else str(self._first[kind])
            for kind, count in self._counts.most_common()
        ]
