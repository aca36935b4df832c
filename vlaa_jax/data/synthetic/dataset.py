"""Writes the embedded data set in the released VLAA-Thinking form.

The files keep the irregularities of the released ones on purpose (integer golds for counting, a
leading slash in ALLaVA paths, ``meta`` as the text of a dict, JSON Lines under a .json suffix, SFT
records without gold), so that the embedded run goes through the same reader as the real data.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlaa_jax.data.synthetic import TASKS, draw_sample
from vlaa_jax.data.synthetic.sample import SyntheticSample
from vlaa_jax.schema import UserError

FORMAT = 3
"""Counts up when the drawings change, so that a data set of an older version is written anew."""

GRPO_FILE = "VLAA-Thinking-GRPO-25K.json"
HELDOUT_FILE = "VLAA-Thinking-GRPO-heldout.json"
SFT_FILE = "VLAA-Thinking-SFT-126K.json"
IMAGE_FOLDER = "images"
_STAMP = "dataset.json"

_FOLDERS = {
    "clevr_math": "clevr_math/images/{name}.png",
    "arxivqa": "arxivqa/images/{name}.png",
    "geoqa170k": "geoqa170k/images/{name}.png",
    "synthesis": "synthesis/images/{name}.png",
    "coco": "coco/train2017/{name}.jpg",
    "vg": "vg/VG_100K/{name}.jpg",
    "allava_laion": "allava_laion/images/{name}.png",
}


@dataclass(frozen=True)
class DatasetPaths:
    """Where the parts of a data set lie."""

    root: Path
    images: Path
    grpo: Path
    """Training records with golds: a JSON array."""
    heldout: Path
    """As ``grpo``; shares no image with the other parts."""
    sft: Path
    """Records with a target answer: JSON Lines."""


def dataset_paths(root: str | os.PathLike[str]) -> DatasetPaths:
    """The paths of a data set under ``root``, whether it has been written or not."""
    root = Path(root)
    return DatasetPaths(
        root, root / IMAGE_FOLDER, root / GRPO_FILE, root / HELDOUT_FILE, root / SFT_FILE
    )


def write_dataset(
    root: str | os.PathLike[str],
    *,
    n_train: int = 1000,
    n_heldout: int = 200,
    n_sft: int = 200,
    seed: int = 0,
) -> DatasetPaths:
    """Write the three record files and the image folder; does nothing if they are there already.

    The five tasks take turns, so every part holds as many of one as of the other. No two images of
    the whole data set are equal.

    Args:
      root: folder to write into; created when missing.
      n_train: GRPO records to train on.
      n_heldout: GRPO records to evaluate on.
      n_sft: records with target answers.
      seed: other seeds give other data sets.

    Raises:
      UserError: ``root`` cannot be written.
    """
    paths = dataset_paths(root)
    settings = {
        "format": FORMAT,
        "n_train": n_train,
        "n_heldout": n_heldout,
        "n_sft": n_sft,
        "seed": seed,
    }
    if _stamp_of(paths.root) == settings:
        return paths
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        seen: set[bytes] = set()
        writer = _Writer(paths.images, seed, seen)
        _write_text(paths.heldout, _as_array(writer.grpo("heldout", n_heldout)))
        _write_text(paths.grpo, _as_array(writer.grpo("train", n_train)))
        _write_text(paths.sft, _as_lines(writer.sft(n_sft)))
        _write_text(paths.root / _STAMP, [json.dumps(settings, indent=1) + "\n"])
    except OSError as error:
        raise UserError(
            f"{paths.root}: the embedded data set cannot be written ({error.strerror or error})"
        ) from error
    return paths


def samples(
    part: str, count: int, seed: int, seen: set[bytes] | None = None
) -> Iterator[SyntheticSample]:
    """The samples of one part in order; ``seen`` holds digests of images not to be drawn again."""
    seen = set() if seen is None else seen
    tasks = tuple(TASKS)
    for index in range(count):
        for attempt in range(100):
            rng = np.random.default_rng([seed, *part.encode(), index, attempt])
            sample = draw_sample(tasks[index % len(tasks)], rng)
            digest = image_digest(sample.image)
            if digest not in seen:
                break
        else:
            raise RuntimeError(f"no new image for {part} sample {index}")
        seen.add(digest)
        yield sample


def image_digest(image: Image.Image) -> bytes:
    """Digest of the size and the pixels of an image."""
    return hashlib.sha256(repr(image.size).encode() + image.convert("RGB").tobytes()).digest()


class _Writer:
    """Draws samples, writes their images and yields their records."""

    def __init__(self, images: Path, seed: int, seen: set[bytes]) -> None:
        self._images, self._seed, self._seen = images, seed, seen

    def grpo(self, part: str, count: int) -> Iterator[dict[str, Any]]:
        for index, sample in enumerate(samples(part, count, self._seed, self._seen)):
            record_id, path = self._save(sample, part, index)
            # As released: a leading slash on some paths, meta as text on some records.
            slash = "/" if sample.source == "allava_laion" else ""
            meta: Any = {"caption_model_id": "drawn", "ds_answer": sample.target}
            if sample.box_space is not None:
                meta["box_space"] = sample.box_space
            yield {
                "id": record_id,
                "image": slash + path,
                "question": sample.question,
                "gt": int(sample.gt) if sample.verifier_type == "digit" else sample.gt,
                "verifier_type": sample.verifier_type,
                "caption": sample.caption,
                "meta": str(meta) if sample.source in ("synthesis", "geoqa170k") else meta,
            }

    def sft(self, count: int) -> Iterator[dict[str, Any]]:
        for index, sample in enumerate(samples("sft", count, self._seed, self._seen)):
            record_id, path = self._save(sample, "sft", index)
            record = {
                "id": record_id,
                "image": path,
                "question": sample.question,
                "answer": sample.target,
            }
            yield record if index % 2 else {**record, "gt": sample.gt}

    def _save(self, sample: SyntheticSample, part: str, index: int) -> tuple[str, str]:
        name = f"{sample.family}_{part}_{index:06d}"
        path = _FOLDERS[sample.source].format(name=name)
        file = self._images / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".jpg":
            sample.image.save(file, quality=95, subsampling=0)
        else:
            sample.image.save(file, compress_level=1)
        return f"{sample.source}-{name}", path


def _stamp_of(root: Path) -> Mapping[str, Any] | None:
    try:
        return json.loads((root / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _as_array(records: Iterator[dict[str, Any]]) -> Iterator[str]:
    yield "["
    for index, record in enumerate(records):
        yield (",\n " if index else "\n ") + json.dumps(record, ensure_ascii=False)
    yield "\n]\n"


def _as_lines(records: Iterator[dict[str, Any]]) -> Iterator[str]:
    for record in records:
        yield json.dumps(record, ensure_ascii=False) + "\n"


def _write_text(path: Path, pieces: Iterator[str] | list[str]) -> None:
    """Write to a neighbour and rename, so that a file that is there is whole."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(pieces)
    partial.replace(path)
