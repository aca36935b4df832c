"""Writes a record file and its images into ArrayRecord shards that training can read at random.

A build goes in three steps: scan the records, copy the images (the encoded bytes, once per image),
write the records with their lengths. What cannot be used is decided here and listed in
``rejects.jsonl``, never at training time. Every shard is written beside its place and renamed, with
a small JSON file that says it is whole; a build that was interrupted goes on from there and ends
with the same bytes.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vlaa_jax import digests, disk
from vlaa_jax.data.images.files import ImageFacts
from vlaa_jax.data.judging.judge import GoldProblems, Judge, Limits, Verdict
from vlaa_jax.data.progress import progress
from vlaa_jax.data.samples.preprocessor import Preprocessor
from vlaa_jax.data.sources.built import FORMAT, MANIFEST, ShardWriter, whole_shard
from vlaa_jax.data.sources.source import TEXTS, Reject, Source, iter_indexed
from vlaa_jax.foreign import local_path, read_object
from vlaa_jax.schema import KINDS, Record, UserError

REJECTS = "rejects.jsonl"
_PLAN = "plan.json"
_READ_AHEAD = 64
HF_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)
"""What decides the lengths of records."""


@dataclass(frozen=True)
class BuildSettings:
    """What decides which bytes are written."""

    kind: str
    """"grpo" or "sft"."""
    max_tokens: int = 2048
    """Longer samples are rejected: prompts for grpo, prompt and answer for sft."""
    min_pixels: int = 0
    """0 takes the checkpoint's own limit."""
    max_pixels: int = 0
    """0 takes the checkpoint's own limit."""
    system_prompt: str = ""
    on_duplicate: str = "reject"
    """"reject" a repeated id, or "rename" it."""
    box_space: str | Mapping[str, str] = "normalized"
    """Space of iou boxes that do not name their own: one of BOX_SPACES, or one per source."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Names of fields in the source; see ``Parser``."""
    shard_records: int = 4096
    shard_images: int = 1024

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if min(self.shard_records, self.shard_images, self.max_tokens) < 1:
            raise UserError("max_tokens, shard_records and shard_images must be at least 1")


Place = tuple[int, int]
"""Position of a record, and number of an image in it."""


class StoredImage(NamedTuple):
    """An image that the records name, and where it is in the image shards, if it could be used."""

    number: int
    """Position in the concatenation of the image shards."""
    reason: str
    """Why it could not be used; empty if it could."""
    size: tuple[int, int]

    @property
    def facts(self) -> ImageFacts:
        """As it was found."""
        return ImageFacts("corrupt" if self.reason else "found", self.reason, self.size)


def _row(record: Record, verdict: Verdict, images: Mapping[str, StoredImage]) -> dict[str, Any]:
    """What is stored of a record that can be used."""
    assert verdict.measure is not None
    here = [images[path] for path in record.images]
    return {
        **{name: getattr(record, name) for name in TEXTS},
        "images": record.images,
        "meta": record.meta,
        "image_numbers": [image.number for image in here],
        "image_sizes": [image.size for image in here],
        "tokens": verdict.measure.tokens,
        "image_tokens": verdict.measure.image_tokens,
        "patches": verdict.measure.patches,
    }


@dataclass
class _Build:
    """One build; the threads of the pool read images and measure records."""

    records: Source
    out: Path
    settings: BuildSettings
    judge: Judge
    pool: ThreadPoolExecutor
    show: bool

    def run(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Do what is still to be done; returns the manifest, which holds the plan."""
        rejects: list[Reject] = []
        kept, paths = self._scan(rejects)
        image_shards, images = self._store_images(paths)
        record_shards = self._store_records(kept, images)
        rejects += [Reject(**reject) for shard in record_shards for reject in shard["rejects"]]
        rejects.sort(key=lambda reject: reject.index)
        disk.write_text(self.out / REJECTS, "".join(reject.as_line() for reject in rejects))
        totals: dict[str, Counter[str]] = {}
        for shard in record_shards:
            for source, counts in shard["totals"].items():
                totals.setdefault(source, Counter()).update(counts)
        manifest = {
            **plan,
            "record_shards": [
                _without(shard, "rejects", "totals", "images_sha256") for shard in record_shards
            ],
            "image_shards": [_without(shard, "images") for shard in image_shards],
            "sources": {source: dict(totals[source]) for source in sorted(totals)},
            "read": len(self.records),
            "kept": sum(shard["count"] for shard in record_shards),
            "rejected": len(rejects),
        }
        disk.write_json(self.out / MANIFEST, manifest)
        self.records.close()
        return manifest

    def _scan(self, rejects: list[Reject]) -> tuple[list[tuple[int, str]], dict[str, Place]]:
        """Usable records as (position, id), and where each image is first used, in that order."""
        kept: list[tuple[int, str]] = []
        paths: dict[str, Place] = {}
        found = iter_indexed(self.records, rejects.append, self.settings.on_duplicate)
        for index, record in progress(found, len(self.records), "scan records", self.show):
            kept.append((index, record.id))
            for number, path in enumerate(record.images):
                paths.setdefault(path, (index, number))
        return kept, paths

    def _shards(
        self,
        what: str,
        parts: Sequence[Sequence[Any]],
        stale: Callable[[Any, Any], bool],
        write: Callable[[str, Any], dict[str, Any]],
    ) -> Iterator[dict[str, Any]]:
        """What is known of each shard; those that are whole and not stale are kept."""
        for number, part in enumerate(progress(parts, len(parts), f"{what} shards", self.show)):
            name = f"{what}s-{number:05d}"
            shard = whole_shard(self.out, name)
            if shard is None or stale(shard, part):
                # A finished build that is being changed is no finished build.
                (self.out / MANIFEST).unlink(missing_ok=True)
                shard = write(name, part)
            yield shard

    def _store_images(
        self, paths: dict[str, Place]
    ) -> tuple[list[dict[str, Any]], dict[str, StoredImage]]:
        """What is known of the shards, and of all images, bad ones included."""
        parts = _cut(list(paths.values()), self.settings.shard_images)
        shards = list(self._shards("image", parts, self._can_be_mended, self._write_images))
        images: dict[str, StoredImage] = {}
        stored = 0
        facts = (fact for shard in shards for fact in shard["images"])
        for path, (reason, *size) in zip(paths, facts, strict=True):
            images[path] = StoredImage(stored, reason, (size[0], size[1]))
            stored += not reason
        return shards, images

    def _look(self, place: Place, keep: bool = False) -> ImageFacts:
        index, number = place
        return self.records.look(self.records[index], number, keep=keep)

    def _can_be_mended(self, shard: dict[str, Any], part: Sequence[Place]) -> bool:
        """Whether an image that an earlier run had to refuse can be used now."""
        refused = [place for place, fact in zip(part, shard["images"], strict=True) if fact[0]]
        return any(fact.status == "found" for fact in self.pool.map(self._look, refused))

    def _write_images(self, name: str, part: Sequence[Place]) -> dict[str, Any]:
        facts: list[tuple[str, int, int]] = []
        with ShardWriter(self.out, name, compress=False) as writer:  # the files are compressed
            for places in _cut(part, _READ_AHEAD):
                for fact in self.pool.map(partial(self._look, keep=True), places):
                    facts.append((fact.reason, *fact.size))
                    if fact.status == "found":
                        writer.write(fact.data)
        return writer.commit({"images": facts})

    def _store_records(
        self, kept: list[tuple[int, str]], images: dict[str, StoredImage]
    ) -> list[dict[str, Any]]:
        seen = _digest(images)  # records hold places of images: others, other records

        def write(name: str, part: Sequence[tuple[int, str]]) -> dict[str, Any]:
            with ShardWriter(self.out, name) as writer:
                facts = self._write_records(writer, part, images)
            return writer.commit({**facts, "images_sha256": seen})

        parts = _cut(kept, self.settings.shard_records)
        return list(self._shards("record", parts, lambda s, _: s["images_sha256"] != seen, write))

    def _write_records(
        self,
        writer: ShardWriter,
        part: Sequence[tuple[int, str]],
        images: Mapping[str, StoredImage],
    ) -> dict[str, Any]:
        """What is noted of a shard beside its bytes: the rejects, and counts by source."""
        rejects: list[dict[str, Any]] = []
        totals: dict[str, Counter[str]] = {}
        # Tokenising takes most of the time, and lets other threads run meanwhile.
        for places in _cut(part, _READ_AHEAD):
            records = [replace(self.records[index], id=name) for index, name in places]
            facts = [[images[path].facts for path in record.images] for record in records]
            verdicts = self.judge(records, facts, map=self.pool.map)
            for (index, _), record, verdict in zip(places, records, verdicts, strict=True):
                count = totals.setdefault(record.source, Counter())
                if verdict.problems:
                    count["rejected"] += 1
                    reject = self.records.reject(index, *verdict.problems[0], record.id)
                    rejects.append(asdict(reject))
                else:
                    row = _row(record, verdict, images)
                    sizes = {key: row[key] for key in ("tokens", "image_tokens", "patches")}
                    count.update({"records": 1, **sizes})
                    writer.write(json.dumps(row, ensure_ascii=False).encode())
        return {"rejects": rejects, "totals": totals}


def build(
    source: Source,
    out: str | os.PathLike[str],
    hf_dir: str | os.PathLike[str],
    settings: BuildSettings,
    *,
    gold_problems: GoldProblems | None = None,
    workers: int = 2,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Build shards from records and their images; goes on where an earlier run stopped.

    Shards that are whole are kept. Images that were refused are looked at again, and what depends
    on them is built again when one can be used now; images that were found are not read again.

    Args:
      source: of any form, opened for the kind, box space and columns of the settings.
      out: empty or new folder, or one that holds a build of the same inputs, finished or not.
      hf_dir: checkpoint directory whose tokenizer and processor give the lengths.
      settings: what decides the bytes.
      gold_problems: says what is wrong with golds; None leaves them unchecked.
      workers: threads that read images and measure records.
      show_progress: show progress on stderr.

    Returns:
      The manifest, which is also ``out/manifest.json``.

    Raises:
      UserError: an input cannot be read, or ``out`` cannot be used.
    """
    folder, checkpoint = local_path(out), local_path(hf_dir)
    limits = settings.min_pixels, settings.max_pixels
    reader = Preprocessor.from_dir(checkpoint, *limits, settings.system_prompt)
    judge = Judge(gold_problems, reader, Limits(settings.max_tokens), settings.kind)
    try:
        plan = {
            "format": FORMAT,
            "settings": {k: v for k, v in asdict(settings).items() if k != "columns" or v},
            "records": {"file": source.path.name, "sha256": source_digest(source.path)},
            "checkpoint": checkpoint_digests(checkpoint),
            "golds_checked": gold_problems is not None,
        }
        _claim(folder, plan)
        with ThreadPoolExecutor(max(1, workers)) as pool:
            return _Build(source, folder, settings, judge, pool, show_progress).run(plan)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error


def _claim(out: Path, plan: dict[str, Any]) -> None:
    """Make the folder ours, or go on with a build of the same inputs and settings."""
    out.mkdir(parents=True, exist_ok=True)
    plan_file = out / _PLAN
    if plan_file.exists():
        if other := _differences(read_object(plan_file), plan):
            raise UserError(
                f"{out}: holds a build of other records, settings or checkpoint "
                f"({'; '.join(other)}); choose another folder or delete this one"
            )
    elif any(out.iterdir()):
        raise UserError(f"{out}: is not empty and holds no build; choose another folder")
    else:
        disk.write_json(plan_file, plan)


def source_digest(path: Path) -> str:
    """SHA-256 of a source: of the file, or of the names and digests of those in the folder."""
    if path.is_file():
        return digests.of_file(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return _digest({str(file.relative_to(path)): digests.of_file(file) for file in files})


def checkpoint_digests(hf_dir: Path) -> dict[str, str]:
    """File name to SHA-256 of what decides the lengths of records."""
    return {name: digests.of_file(hf_dir / name) for name in HF_FILES if (hf_dir / name).is_file()}


def _digest(table: Mapping[str, Any]) -> str:
    """SHA-256 of a mapping whose items repr tells fully."""
    text = "".join(map(repr, table.items())) + "\n"
    return hashlib.sha256(text.encode()).hexdigest()


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    """What differs between two plans, in words; digests are only named."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[str] = []
        for key in sorted(old.keys() | new.keys()):
            found += _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        return found
    if old == new:
        return []
    values = "" if len(f"{old}{new}") > 60 else f" was {old!r}, is {new!r}"
    return [f"{where}{values}"]


def _cut(items: Sequence[Any], length: int) -> list[Sequence[Any]]:
    return [items[start : start + length] for start in range(0, len(items), length)]


def _without(value: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in keys}


def iter_rejects(out: str | os.PathLike[str]) -> Iterator[Reject]:
    """The rejects of a finished build."""
    with (local_path(out) / REJECTS).open(encoding="utf-8") as file:
        for line in file:
            yield Reject(**json.loads(line))
