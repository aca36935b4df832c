"""The judge of records: what can be trained on, decided in one place.

`check`, `build`, the TFDS builder and training put their records to a ``Judge`` and get a
``Verdict``. They differ in how closely images are looked at (``examine``'s ``whole``) and in what
the judge was given to judge by: verifiers, a checkpoint, limits.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from vlaa_jax.data.images.bins import rows_needed
from vlaa_jax.data.images.inspect import ImageFacts
from vlaa_jax.data.judging.golds import GoldProblems, bad_golds
from vlaa_jax.data.records.reject import Reject
from vlaa_jax.data.samples.preprocessor import Measure, Preprocessor, Unfit
from vlaa_jax.data.sources.source import Source, iter_indexed
from vlaa_jax.schema import Lengths, Record

AT_ONCE = 256
"""Records whose golds are asked about together."""


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
        needed = max((rows_needed(grid, self.window_units) for grid in found.grids), default=0)
        if self.vision_rows and needed > self.vision_rows:
            over = f"over data.vision_rows_per_bin={self.vision_rows}"
            advice = "raise it or lower data.max_pixels"
            return Problem("image", f"an image needs {needed} vision rows, {over}; {advice}")
        return None


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
        sizes = [f[0].size if f and f[0].status == "found" else None for f in facts]
        golds = bad_golds(
            records,
            sizes,
            None if self.kind == "sft" else self.gold_problems,
            resized=self.preprocessor.processor.resized if self.preprocessor else None,
            only_resized=golds_checked,
        )
        return list(map(self._verdict, records, facts, golds))

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
            golds_checked = source.golds_checked
            verdicts = judge(records, facts, golds_checked=golds_checked, map=pool.map)
            examined = [Examined(r.index, None, (), _UNREAD, (r,)) for r in unread]
            for (index, record), fact, verdict in zip(pairs, facts, verdicts, strict=True):
                place = partial(source.reject, index, record_id=record.id)
                rejects = tuple(place(*problem) for problem in verdict.problems)
                if verdict.measure is not None:
                    sizes = tuple(f.size for f in fact)
                    record = replace(record, lengths=Lengths(verdict.measure.tokens, sizes))
                examined.append(Examined(index, record, tuple(fact), verdict, rejects))
            unread.clear()
            yield from sorted(examined, key=lambda one: one.place)


_UNREAD = Verdict(())


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
