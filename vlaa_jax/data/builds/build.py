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
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlaa_jax.data.images.inspect import inspect_image
from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.judging.golds import GoldProblems, bad_golds
from vlaa_jax.data.progress import progress
from vlaa_jax.data.records.parse import KINDS
from vlaa_jax.data.records.reject import Refusal, Reject
from vlaa_jax.data.samples.measure import Unfit, measure, over_limit
from vlaa_jax.data.sources.record_file import RecordFile, iter_indexed
from vlaa_jax.data.sources.shards import (
    FORMAT,
    MANIFEST,
    ShardWriter,
    file_digest,
    whole_shard,
    write_json,
    write_whole,
)
from vlaa_jax.data.text.chat import Chat
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
    shard_records: int = 4096
    shard_images: int = 1024

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if min(self.shard_records, self.shard_images, self.max_tokens) < 1:
            raise UserError("max_tokens, shard_records and shard_images must be at least 1")


@dataclass(frozen=True)
class StoredImage:
    """An image in the image shards."""

    number: int
    """Position in the concatenation of the image shards."""
    size: tuple[int, int]


class Builder:
    """One build; see ``build``."""

    def __init__(
        self,
        record_file: Path,
        image_root: Path,
        out: Path,
        hf_dir: Path,
        settings: BuildSettings,
        gold_problems: GoldProblems | None,
        workers: int,
        show_progress: bool,
    ) -> None:
        self.records = RecordFile(record_file, kind=settings.kind, box_space=settings.box_space)
        self.image_root, self.out, self.settings = image_root, out, settings
        self.gold_problems, self.workers, self.show = gold_problems, workers, show_progress
        self.chat = Chat.from_dir(hf_dir)
        self.processor = ImageProcessor.from_dir(
            hf_dir, settings.min_pixels or None, settings.max_pixels or None
        )
        self.chat.check_text(settings.system_prompt, "the system prompt")
        self.plan = {
            "format": FORMAT,
            "settings": asdict(settings),
            "records": {"file": record_file.name, "sha256": file_digest(record_file)},
            "checkpoint": checkpoint_digests(hf_dir),
            "golds_checked": gold_problems is not None,
        }

    def run(self) -> dict[str, Any]:
        """Do what is still to be done; returns the manifest."""
        self._claim()
        rejects: list[Reject] = []
        kept, paths = self._scan(rejects)
        image_shards, images, bad_images = self._store_images(paths)
        record_shards = self._store_records(kept, images, bad_images)
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
            write_json(plan_file, self.plan)

    def _scan(self, rejects: list[Reject]) -> tuple[list[tuple[int, str]], list[str]]:
        """Usable records as (position, id), and the different images in order of first use."""
        kept: list[tuple[int, str]] = []
        paths: dict[str, None] = {}
        found = iter_indexed(self.records, rejects.append, self.settings.on_duplicate)
        for index, record in progress(found, len(self.records), "scan records", self.show):
            kept.append((index, record.id))
            paths.update(dict.fromkeys(record.images))
        return kept, list(paths)

    def _store_images(
        self, paths: list[str]
    ) -> tuple[list[dict[str, Any]], dict[str, StoredImage], dict[str, str]]:
        step = self.settings.shard_images
        starts = range(0, len(paths), step)
        shards: list[dict[str, Any]] = []
        stored: dict[str, StoredImage] = {}
        bad: dict[str, str] = {}
        for number, start in enumerate(progress(starts, len(starts), "image shards", self.show)):
            part = paths[start : start + step]
            name = f"images-{number:05d}"
            shard = whole_shard(self.out, name)
            if shard is None or self._can_be_mended(shard, part):
                shard = self._write_images(name, part)
            shards.append(shard)
            for path, (reason, width, height) in zip(part, shard["images"], strict=True):
                if reason:
                    bad[path] = reason
                else:
                    stored[path] = StoredImage(len(stored), (width, height))
        return shards, stored, bad

    def _can_be_mended(self, shard: dict[str, Any], paths: list[str]) -> bool:
        """Whether an image that an earlier run had to refuse can be used now."""
        refused = [path for path, fact in zip(paths, shard["images"], strict=True) if fact[0]]
        with ThreadPoolExecutor(self.workers) as pool:
            facts = pool.map(lambda path: inspect_image(self.image_root, path), refused)
            return any(fact.status == "found" for fact in facts)

    def _write_images(self, name: str, paths: list[str]) -> dict[str, Any]:
        facts: list[tuple[str, int, int]] = []
        self._withdraw()
        # Image files are compressed already.
        with (
            ShardWriter(self.out, name, compress=False) as writer,
            ThreadPoolExecutor(self.workers) as pool,
        ):
            for start in range(0, len(paths), _READ_AHEAD):
                part = paths[start : start + _READ_AHEAD]
                for fact in pool.map(lambda p: inspect_image(self.image_root, p, keep=True), part):
                    facts.append((fact.reason, *fact.size))
                    if fact.status == "found":
                        writer.write(fact.data)
        return writer.commit({"images": facts})

    def _store_records(
        self, kept: list[tuple[int, str]], images: dict[str, StoredImage], bad: dict[str, str]
    ) -> list[dict[str, Any]]:
        step = self.settings.shard_records
        starts = range(0, len(kept), step)
        shards = []
        seen = _digest(images, bad)  # records hold places of images: others, other records
        for number, start in enumerate(progress(starts, len(starts), "record shards", self.show)):
            name = f"records-{number:05d}"
            shard = whole_shard(self.out, name)
            if shard is None or shard["images_sha256"] != seen:
                part = kept[start : start + step]
                shard = self._write_records(name, part, images, bad, seen)
            shards.append(shard)
        return shards

    def _write_records(
        self,
        name: str,
        part: list[tuple[int, str]],
        images: dict[str, StoredImage],
        bad: dict[str, str],
        seen: str,
    ) -> dict[str, Any]:
        rejects: list[dict[str, Any]] = []
        totals: dict[str, Counter[str]] = {}
        self._withdraw()
        # Tokenising takes most of the time, and lets other threads run meanwhile.
        with ShardWriter(self.out, name) as writer, ThreadPoolExecutor(self.workers) as pool:
            for start in range(0, len(part), _READ_AHEAD):
                places = part[start : start + _READ_AHEAD]
                records = [self.records[index] for index, _ in places]
                refusals = self._refusals(records, images, bad)
                rows = pool.map(partial(self._row, images=images), places, records, refusals)
                for (index, record_id), record, row in zip(places, records, rows, strict=True):
                    count = totals.setdefault(record.source, Counter())
                    if isinstance(row, Refusal):
                        count["rejected"] += 1
                        reject = self.records.reject(index, row.field, row.reason, record_id)
                        rejects.append(reject.as_dict())
                        continue
                    count["records"] += 1
                    for key in ("tokens", "image_tokens", "patches"):
                        count[key] += row[key]
                    writer.write(json.dumps(row, ensure_ascii=False).encode())
        return writer.commit({"rejects": rejects, "totals": totals, "images_sha256": seen})

    def _refusals(
        self, records: Sequence[Record], images: dict[str, StoredImage], bad: dict[str, str]
    ) -> list[Refusal | None]:
        """What is known against each record before it is measured: its images, its gold."""
        found: list[Refusal | None] = []
        for record in records:
            reason = next((bad[path] for path in record.images if path in bad), None)
            found.append(None if reason is None else Refusal("image", reason))
        asked = [i for i, refusal in enumerate(found) if refusal is None]
        firsts = [next(iter(records[i].images), None) for i in asked]
        sizes = [None if first is None else images[first].size for first in firsts]
        problems = bad_golds(
            [records[i] for i in asked], sizes, self.gold_problems, resized=self.processor.resized
        )
        for i, problem in zip(asked, problems, strict=True):
            found[i] = None if problem is None else Refusal("gt", problem)
        return found

    def _row(
        self,
        place: tuple[int, str],
        record: Record,
        refusal: Refusal | None,
        images: dict[str, StoredImage],
    ) -> Refusal | dict[str, Any]:
        """What is stored of a record, or why it cannot be used."""
        if refusal is not None:
            return refusal
        sizes = [images[path].size for path in record.images]
        try:
            found = measure(
                record,
                sizes,
                self.chat,
                self.processor,
                system_prompt=self.settings.system_prompt,
                with_answer=self.settings.kind == "sft",
            )
        except Unfit as unfit:
            return Refusal(unfit.field, unfit.reason)
        if problem := over_limit(found, self.settings.max_tokens):
            return Refusal(*problem)
        return {
            **asdict(record),
            "id": place[1],
            "image_numbers": [images[path].number for path in record.images],
            "image_sizes": sizes,
            "tokens": found.tokens,
            "image_tokens": found.image_tokens,
            "patches": found.patches,
        }

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
        write_whole(self.out / REJECTS, "".join(lines).encode())
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
        write_json(self.out / MANIFEST, manifest)
        self.records.close()
        return manifest


def build(
    record_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    hf_dir: str | os.PathLike[str],
    settings: BuildSettings,
    *,
    gold_problems: GoldProblems | None = None,
    workers: int = 2,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Build shards from a record file and its images; goes on where an earlier run stopped.

    Shards that are whole are kept. Images that were refused are looked at again, and what depends
    on them is built again when one can be used now; images that were found are not read again.

    Args:
      record_file: JSON array or JSON Lines.
      image_root: folder the image paths are relative to.
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
    if not local_path(image_root).is_dir():
        raise UserError(f"{image_root}: no such image folder")
    try:
        return Builder(
            local_path(record_file),
            local_path(image_root),
            local_path(out),
            local_path(hf_dir),
            settings,
            gold_problems,
            max(1, workers),
            show_progress,
        ).run()
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error


def checkpoint_digests(hf_dir: Path) -> dict[str, str]:
    """File name to SHA-256 of what decides the lengths of records."""
    return {name: file_digest(hf_dir / name) for name in HF_FILES if (hf_dir / name).is_file()}


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
