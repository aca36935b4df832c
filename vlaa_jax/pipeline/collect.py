"""Step 1: samples of all sources, each with one image that no other sample has.

Sources are gone through twice: once to count, then, in their own order, over the places that were
drawn. An image is read once; its bytes give the digest, and are put below the image root.
"""

import hashlib
import heapq
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, TypeVar

from vlaa_jax.data.images.files import MAX_ASPECT, decode_image
from vlaa_jax.data.records.parse import Refusal, clean_image_path
from vlaa_jax.foreign import image_suffix, own_file, read_object
from vlaa_jax.pipeline.sample import Sample
from vlaa_jax.pipeline.sources import SOURCES, Source
from vlaa_jax.pipeline.sources.formats import Row, Unusable
from vlaa_jax.rewards.digit import digit_gold_problem
from vlaa_jax.rewards.iou import iou_gold_problem
from vlaa_jax.rewards.math import math_gold_problem
from vlaa_jax.rewards.mcq import mcq_gold_problem
from vlaa_jax.schema import UserError
from vlaa_jax.settings.by_source import source_counts, source_folders
from vlaa_jax.settings.pipeline import CollectSettings, SplitSettings

T = TypeVar("T")

NAME = "collect"
SAMPLES, REJECTS, STAMP = "collected.jsonl", "collect_rejects.jsonl", "collected.json"
_CHUNK = 64
_MAX_NAME_BYTES = 240
"""Of a file or folder; most disks allow 255, and a suffix is added for a while."""
_UNSAFE = re.compile(r"[^\w.-]+")


@dataclass
class Collected:
    """What step 1 left in the work directory."""

    samples: Path
    rejects: Path
    originals: dict[str, int] = field(default_factory=dict)
    """Places drawn per source: what came in."""
    count: int = 0
    """Samples."""


def collect(settings: CollectSettings, workdir: Path, image_root: Path) -> Collected:
    """Collect all sources, or return what an earlier run has collected with the same settings.

    Raises:
        UserError: a source is unknown or its files are not there, or the folder holds the samples
            of other settings.
    """
    done = Collected(workdir / SAMPLES, workdir / REJECTS)
    stamp = workdir / STAMP
    folders = {
        name: Path(at).expanduser()
        for name, at in known(source_folders, settings, "sources").items()
    }
    limits = known(source_counts, settings, "limits")
    if not folders:
        raise UserError("collect.sources: name at least one, e.g. arxivqa=/data/arxivqa")
    wanted = asdict(settings)
    del wanted["sources"]  # to the end: "embedded" draws its sources by the other settings
    wanted["sources"] = [[name, str(folder.resolve())] for name, folder in folders.items()]
    if (before := _stamped(stamp)) and done.samples.is_file() and done.rejects.is_file():
        if other := [name for name in wanted if before["settings"].get(name) != wanted[name]]:
            told = f"was collected with another collect.{other[0]}; choose another --workdir"
            raise UserError(f"{workdir}: {told}")
        done.originals, done.count = before["originals"], before["count"]
        return done
    partial = [path.with_suffix(".partial") for path in (done.samples, done.rejects)]
    with (
        partial[0].open("w", encoding="utf-8") as out,
        partial[1].open("w", encoding="utf-8") as bad,
    ):
        collector = _Collector(settings, image_root, out, bad)
        for name, folder in folders.items():
            done.originals[name] = collector.source(name, folder, limits.get(name))
    done.count = collector.count
    for path, final in zip(partial, (done.samples, done.rejects), strict=True):
        path.replace(final)
    stamp.with_suffix(".partial").write_text(
        json.dumps(
            {"settings": wanted, "originals": done.originals, "count": done.count}, indent=1
        ),
        encoding="utf-8",
    )
    stamp.with_suffix(".partial").replace(stamp)
    return done


def _stamped(stamp: Path) -> dict[str, Any] | None:
    """What an earlier run noted at the end of collecting; None where it did not come so far."""
    if not stamp.is_file():
        return None
    found = read_object(stamp)
    kinds = {"settings": dict, "originals": dict, "count": int}
    if any(not isinstance(found.get(name), kind) for name, kind in kinds.items()):
        raise UserError(f"{stamp}: is damaged; remove it to collect again")
    return found


def known(
    read: Callable[[str], dict[str, T]], settings: CollectSettings | SplitSettings, field_name: str
) -> dict[str, T]:
    """A setting that has a value per source, whose sources there are.

    Raises:
        UserError: names one that there is not.
    """
    found = read(getattr(settings, field_name))
    for name in found:
        if name not in SOURCES:
            where = settings.name_of(field_name)
            raise UserError(f"{where}: {name!r} is not one of {', '.join(SOURCES)}")
    return found


def iter_samples(path: Path) -> Iterator[tuple[int, Sample]]:
    """Collected samples in order, with their positions."""
    with path.open("rb") as file:
        for position, line in enumerate(file):
            with own_file(path):
                sample = Sample.from_json(line)
            yield position, sample


def rejected(path: Path) -> Counter[tuple[str, str, str]]:
    """Places that became no sample, by source, step and reason."""
    with own_file(path), path.open("rb") as file:
        lines = (json.loads(line) for line in file)
        return Counter((line["source"], NAME, line["reason"]) for line in lines)


class _Collector:
    """Goes through sources and writes samples, rejects and images."""

    def __init__(self, settings: CollectSettings, root: Path, out: TextIO, bad: TextIO) -> None:
        self._settings, self._root, self._out, self._bad = settings, root, out, bad
        self._images: dict[bytes, str] = {}  # digest to the id of its first sample
        self._ids: set[int] = set()
        self._paths: set[int] = set()
        self.count = 0

    def source(self, name: str, folder: Path, limit: int | None) -> int:
        """Collect one source; returns how many places were drawn."""
        if not folder.is_dir():
            raise UserError(f"collect.sources: {name}: {folder} is no folder")
        source = SOURCES[name]
        chosen = self._draw(name, source, folder, limit) if limit is not None else None
        drawn = 0
        places = source.adapter(folder)
        picked = (p for i, p in enumerate(places) if chosen is None or i in chosen)
        with ThreadPoolExecutor(4) as pool:
            while chunk := list(islice(picked, _CHUNK)):
                for place, loaded in pool.map(_load, chunk):
                    drawn += 1
                    self._take(name, source, place, loaded)
        return drawn

    def _draw(self, name: str, source: Source, folder: Path, limit: int) -> set[int]:
        """Numbers of the places that a seeded draw of ``limit`` takes."""
        ranked = (
            (_rank(self._settings.seed, f"{name}:{place}"), index)
            for index, (place, _) in enumerate(source.adapter(folder))
        )
        return {index for _, index in heapq.nsmallest(limit, ranked)}

    def _take(self, name: str, source: Source, place: str, loaded: "_Loaded | Unusable") -> None:
        try:
            if isinstance(loaded, Unusable):
                raise loaded
            sample = self._sample(name, source, place, loaded)
        except Unusable as error:
            told = {"source": name, "origin": place, "step": NAME, "reason": error.reason}
            self._bad.write(json.dumps({**told, "detail": error.detail}, ensure_ascii=False) + "\n")
            return
        self._out.write(sample.to_json() + "\n")
        self.count += 1

    def _sample(self, name: str, source: Source, place: str, loaded: "_Loaded") -> Sample:
        row, digest = loaded.row, loaded.digest
        record_id = f"{name}-{row.name}"
        if hash(record_id) in self._ids:
            raise Unusable("id used before", record_id)
        if self._settings.unique_images and digest in self._images:
            raise Unusable("image used before", self._images[digest])
        verifier = row.verifier_type or source.verifier_type
        uses = tuple(use for use in (row.uses or source.uses) if use in source.uses)
        if "rl" in uses and (why := _gold_problem(verifier, row.gt, row.question)):
            if uses == ("rl",):
                raise Unusable("gold cannot be scored", why)
            uses = ("sft",)
        image = self._place_image(source, loaded)
        self._ids.add(hash(record_id))
        self._images[digest] = record_id
        return Sample(
            id=record_id,
            source=name,
            question=row.question,
            gt=row.gt,
            verifier_type=verifier,
            image=image,
            digest=digest.hex(),
            license=source.license,
            origin=place,
            context=row.context,
            caption=row.caption,
            caption_model=row.caption_model,
            thought=row.thought,
            answer=row.answer,
            uses=uses,
            meta=row.meta,
        )

    def _place_image(self, source: Source, loaded: "_Loaded") -> str:
        """Put the image below the root, as a link where it is a file of the same disk."""
        row = loaded.row
        suffix = row.suffix or f"images/{_UNSAFE.sub('_', row.name)}.{loaded.kind}"
        try:
            path = clean_image_path(f"{source.folder}/{suffix}")
        except Refusal as refusal:
            raise Unusable("image path refused", refusal.reason) from None
        if max(len(part.encode()) for part in path.split("/")) > _MAX_NAME_BYTES:
            raise Unusable("image name too long", path[:200])
        target = self._root / path
        if hash(path) in self._paths and loaded.digest != _digest_of(target):
            raise Unusable("image name used before", path)
        self._paths.add(hash(path))
        if not (target.is_file() and _digest_of(target) == loaded.digest):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.partial")
            partial.unlink(missing_ok=True)
            try:
                os.link(row.image.path(), partial)
            except OSError:  # another disk, or no file of its own
                partial.write_bytes(loaded.data)
            partial.replace(target)
        return path


@dataclass(frozen=True)
class _Loaded:
    """A row with its image."""

    row: Row
    data: bytes
    digest: bytes
    kind: str
    """Suffix that the bytes deserve."""


def _load(entry: tuple[str, Callable[[], Row]]) -> tuple[str, "_Loaded | Unusable"]:
    """Make a row, read its image and decode it once; whatever is wrong comes back as a value."""
    place, make = entry
    try:
        row = make()
        data = row.image.read()
        if (kind := image_suffix(data)) is None:
            raise Unusable("image of unknown format")
        try:
            with decode_image(data, row.name) as image:
                width, height = image.size
        except UserError as error:
            raise Unusable("image corrupt", str(error)) from None
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise Unusable("image too narrow", f"{width}x{height}")
        return place, _Loaded(row, data, hashlib.sha256(data).digest(), kind)
    except Unusable as error:
        return place, error


def _digest_of(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def _rank(seed: int, text: str) -> int:
    """A number that a seed and a text always give, as good as drawn."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8], "big")


def drawn_first(seed: int, ids: Mapping[int, str], count: int) -> set[int]:
    """The keys of ``count`` ids that a seeded draw takes; all where there are fewer."""
    ranked = ((_rank(seed, name), key) for key, name in ids.items())
    return {key for _, key in heapq.nsmallest(count, ranked)}


def _gold_problem(verifier: str, gold: str, question: str) -> str | None:
    """What the text of a gold tells; the maths parser is asked once, when the sets are split."""
    if verifier == "mcq":
        return mcq_gold_problem(gold, question)
    if verifier == "iou":
        return iou_gold_problem(gold)
    rules = {"digit": digit_gold_problem, "math": math_gold_problem}
    return rules[verifier](gold) if verifier in rules else None
