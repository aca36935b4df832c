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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from vlaa_jax import digests, disk
from vlaa_jax.data.images.inspect import ImageFacts
from vlaa_jax.data.judging.judge import GoldProblems, Judge, Limits, Verdict
from vlaa_jax.data.progress import progress
from vlaa_jax.data.records.parse import KINDS
from vlaa_jax.data.records.reject import Reject
from vlaa_jax.data.samples.preprocessor import Preprocessor
from vlaa_jax.data.sources.shards import FORMAT, MANIFEST, ShardWriter, whole_shard
from vlaa_jax.data.sources.source import Source, iter_indexed
from vlaa_jax.data.sources.stored import TEXTS
from vlaa_jax.foreign import local_path
from vlaa_jax.schema import Record, UserError

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


class _Written(NamedTuple):
    """A shard of records that is being written, and what is noted of it."""

    writer: ShardWriter
    rejects: list[dict[str, Any]]
    totals: dict[str, Counter[str]]

    def refuse(self, record: Record, reject: Reject) -> None:
        self.totals.setdefault(record.source, Counter())["rejected"] += 1
        self.rejects.append(reject.as_dict())

    def add(self, record: Record, row: dict[str, Any]) -> None:
        count = self.totals.setdefault(record.source, Counter())
        count["records"] += 1
        for key in ("tokens", "image_tokens", "patches"):
            count[key] += row[key]
        self.writer.write(json.dumps(row, ensure_ascii=False).encode())

    def commit(self, **facts: Any) -> dict[str, Any]:
        return self.writer.commit({"rejects": self.rejects, "totals": self.totals, **facts})


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


class Builder:
    """One build; see ``build``."""

    def __init__(
        self,
        records: Source,
        out: Path,
        hf_dir: Path,
        settings: BuildSettings,
        gold_problems: GoldProblems | None,
        workers: int,
        show_progress: bool,
    ) -> None:
        self.records, self.out, self.settings = records, out, settings
        self.workers, self.show = workers, show_progress
        limits = settings.min_pixels, settings.max_pixels
        self.judge = Judge(
            gold_problems,
            Preprocessor.from_dir(hf_dir, *limits, settings.system_prompt),
            Limits(settings.max_tokens),
            settings.kind,
        )
        self.plan = {
            "format": FORMAT,
            "settings": {k: v for k, v in asdict(settings).items() if k != "columns" or v},
            "records": {"file": records.path.name, "sha256": source_digest(records.path)},
            "checkpoint": checkpoint_digests(hf_dir),
            "golds_checked": gold_problems is not None,
        }

    def run(self) -> dict[str, Any]:
        """Do what is still to be done; returns the manifest."""
        self._claim()
        rejects: list[Reject] = []
        kept, paths = self._scan(rejects)
        image_shards, images = self._store_images(paths)
        record_shards = self._store_records(kept, images)
        for shard in record_shards:
            rejects.extend(Reject(**reject) for reject in shard["rejects"])
        return self._finish(rejects, record_shards, image_shards)

    def _claim(self) -> None:
        """Make the folder ours, or go on with a build of the same inputs and settings."""
        self.out.mkdir(parents=True, exist_ok=True)
        plan_file = self.out / _PLAN
        if plan_file.exists():
            if other := _differences(_read_json(plan_file), self.plan):
                raise UserError(
                    f"{self.out}: holds a build of other records, settings or checkpoint "
                    f"({'; '.join(other)}); choose another folder or delete this one"
                )
        elif any(self.out.iterdir()):
            raise UserError(f"{self.out}: is not empty and holds no build; choose another folder")
        else:
            disk.write_json(plan_file, self.plan)

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

    def _store_images(
        self, paths: dict[str, Place]
    ) -> tuple[list[dict[str, Any]], dict[str, StoredImage]]:
        """What is known of the shards, and of all images, bad ones included."""
        step, every = self.settings.shard_images, list(paths.items())
        starts = range(0, len(every), step)
        shards: list[dict[str, Any]] = []
        images: dict[str, StoredImage] = {}
        stored = 0
        for number, start in enumerate(progress(starts, len(starts), "image shards", self.show)):
            part = every[start : start + step]
            name = f"images-{number:05d}"
            shard = whole_shard(self.out, name)
            if shard is None or self._can_be_mended(shard, part):
                shard = self._write_images(name, part)
            shards.append(shard)
            for (path, _), (reason, *size) in zip(part, shard["images"], strict=True):
                images[path] = StoredImage(stored, reason, (size[0], size[1]))
                stored += not reason
        return shards, images

    def _look(self, place: Place, keep: bool = False) -> ImageFacts:
        index, number = place
        return self.records.look(self.records[index], number, keep=keep)

    def _can_be_mended(self, shard: dict[str, Any], part: list[tuple[str, Place]]) -> bool:
        """Whether an image that an earlier run had to refuse can be used now."""
        both = zip(part, shard["images"], strict=True)
        refused = [place for (_, place), fact in both if fact[0]]
        with ThreadPoolExecutor(self.workers) as pool:
            return any(fact.status == "found" for fact in pool.map(self._look, refused))

    def _write_images(self, name: str, part: list[tuple[str, Place]]) -> dict[str, Any]:
        facts: list[tuple[str, int, int]] = []
        self._withdraw()
        # Image files are compressed already.
        with (
            ShardWriter(self.out, name, compress=False) as writer,
            ThreadPoolExecutor(self.workers) as pool,
        ):
            for start in range(0, len(part), _READ_AHEAD):
                places = [place for _, place in part[start : start + _READ_AHEAD]]
                for fact in pool.map(lambda place: self._look(place, keep=True), places):
                    facts.append((fact.reason, *fact.size))
                    if fact.status == "found":
                        writer.write(fact.data)
        return writer.commit({"images": facts})

    def _store_records(
        self, kept: list[tuple[int, str]], images: dict[str, StoredImage]
    ) -> list[dict[str, Any]]:
        step = self.settings.shard_records
        starts = range(0, len(kept), step)
        shards = []
        seen = _digest(images)  # records hold places of images: others, other records
        for number, start in enumerate(progress(starts, len(starts), "record shards", self.show)):
            name = f"records-{number:05d}"
            shard = whole_shard(self.out, name)
            if shard is None or shard["images_sha256"] != seen:
                facts = self._write_records(name, kept[start : start + step], images)
                shard = facts.commit(images_sha256=seen)
            shards.append(shard)
        return shards

    def _write_records(
        self, name: str, part: list[tuple[int, str]], images: dict[str, StoredImage]
    ) -> "_Written":
        self._withdraw()
        # Tokenising takes most of the time, and lets other threads run meanwhile.
        with ShardWriter(self.out, name) as writer, ThreadPoolExecutor(self.workers) as pool:
            written = _Written(writer, [], {})
            for start in range(0, len(part), _READ_AHEAD):
                places = part[start : start + _READ_AHEAD]
                records = [replace(self.records[index], id=name) for index, name in places]
                facts = [[images[path].facts for path in record.images] for record in records]
                verdicts = self.judge(records, facts, map=pool.map)
                for (index, _), record, verdict in zip(places, records, verdicts, strict=True):
                    if verdict.problems:
                        problem = verdict.problems[0]
                        written.refuse(record, self.records.reject(index, *problem, record.id))
                    else:
                        written.add(record, _row(record, verdict, images))
        return written

    def _withdraw(self) -> None:
        """A finished build that is being changed is no finished build."""
        (self.out / MANIFEST).unlink(missing_ok=True)

    def _finish(
        self,
        rejects: list[Reject],
        record_shards: Sequence[dict[str, Any]],
        image_shards: Sequence[dict[str, Any]],
    ) -> dict[str, Any]:
        rejects.sort(key=lambda reject: reject.index)
        lines = (json.dumps(reject.as_dict(), ensure_ascii=False) + "\n" for reject in rejects)
        disk.write_text(self.out / REJECTS, "".join(lines))
        totals: dict[str, Counter[str]] = {}
        for shard in record_shards:
            for source, counts in shard["totals"].items():
                totals.setdefault(source, Counter()).update(counts)
        manifest = {
            **self.plan,
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
    try:
        return Builder(
            source,
            local_path(out),
            local_path(hf_dir),
            settings,
            gold_problems,
            max(1, workers),
            show_progress,
        ).run()
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error


def source_digest(path: Path) -> str:
    """SHA-256 of a source: of the file, or of the names and digests of those in the folder."""
    if path.is_file():
        return digests.of_file(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return _digest({str(file.relative_to(path)): digests.of_file(file) for file in files})


def checkpoint_digests(hf_dir: Path) -> dict[str, str]:
    """File name to SHA-256 of what decides the lengths of records."""
    return {name: digests.of_file(hf_dir / name) for name in HF_FILES if (hf_dir / name).is_file()}


def _digest(*tables: Mapping[str, Any]) -> str:
    """SHA-256 of mappings whose items repr tells fully."""
    digest = hashlib.sha256()
    for table in tables:
        for item in table.items():
            digest.update(repr(item).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    """What differs between two plans, in words; digests are only named."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        found = [
            _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
            for key in keys
        ]
        return [text for texts in found for text in texts]
    if old == new:
        return []
    values = "" if len(f"{old}{new}") > 60 else f" was {old!r}, is {new!r}"
    return [f"{where}{values}"]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error


def _without(value: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in keys}


def iter_rejects(out: str | os.PathLike[str]) -> Iterator[Reject]:
    """The rejects of a finished build."""
    with (local_path(out) / REJECTS).open(encoding="utf-8") as file:
        for line in file:
            yield Reject(**json.loads(line))
