"""Fetches the released VLAA-Thinking data from the hub: record files, and image archives unpacked.

What is there is not fetched again: the hub's client resumes files, and an archive that was unpacked
leaves a mark. Two sources are not on the hub; they are named with where they come from.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

from vlaa_jax.data.progress import progress
from vlaa_jax.schema import UserError

REPOSITORY = "UCSC-VLAA/VLAA-Thinking"
RECORDS, ARCHIVES = (".json", ".jsonl"), (".tar", ".tar.gz", ".tgz")
ELSEWHERE = {
    "coco/train2017": "http://images.cocodataset.org/zips/train2017.zip",
    "vg/VG_100K": "https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip",
    "vg/VG_100K_2": "https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip",
}
"""Folders below the image root that the released archives do not hold (the paper's repository)."""
_IMAGES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp")
_LARGEST = 256 * 2**20
"""Bytes of one image in an archive."""


class Fetched(NamedTuple):
    """Attributes: record files, the image root, and folders still to be had from elsewhere."""

    records: list[Path]
    images: Path
    missing: dict[str, str]


def fetch(
    out: str | os.PathLike[str],
    *,
    repository: str = REPOSITORY,
    revision: str | None = None,
    endpoint: str | None = None,
    images: bool = True,
) -> Fetched:
    """Downloads a data set of the released form into OUT, images into OUT/images.

    Args:
        out: folder to write into; created when missing.
        repository: data set on the hub.
        revision: branch, tag or commit; None takes the main one.
        endpoint: address of the hub; None takes the public one, or ``HF_ENDPOINT``.
        images: fetch and unpack the archives too (26 GB).

    Raises:
        UserError: the hub cannot be reached or has no such data set, the disk is full, or an
            archive holds something that is no image or leaves its folder.
    """
    root = Path(out)
    api = huggingface_hub.HfApi(endpoint=endpoint)
    try:
        root.mkdir(parents=True, exist_ok=True)
        names = api.list_repo_files(repository, repo_type="dataset", revision=revision)
        kinds = RECORDS + (ARCHIVES if images else ())
        wanted = sorted(name for name in names if name.endswith(kinds))
        if not any(name.endswith(RECORDS) for name in wanted):
            raise UserError(f"{repository}: holds no file of records (.json, .jsonl)")
        for name in progress(wanted, len(wanted), f"fetch {repository}", len(wanted) > 1):
            if name.endswith(ARCHIVES) and _mark(root, name).exists():
                continue
            file = api.hf_hub_download(
                repository, name, repo_type="dataset", revision=revision, local_dir=root
            )
            if name.endswith(ARCHIVES):
                _unpack(Path(file), root / "images")
                _mark(root, name).write_text("unpacked\n", encoding="utf-8")
                Path(file).unlink()
    except (HfHubHTTPError, OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{repository}: could not be fetched: {reason}") from error
    records = [root / name for name in wanted if name.endswith(RECORDS)]
    missing = {f: url for f, url in ELSEWHERE.items() if not (root / "images" / f).is_dir()}
    return Fetched(records, root / "images", missing)


def _mark(root: Path, name: str) -> Path:
    return root / f"{name.replace('/', '_')}.unpacked"


def _unpack(archive: Path, root: Path) -> None:
    """Images of an archive below the image root; nothing else is written."""
    root.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive) as tar:
            for member, path in _members(tar, archive):
                target = root / path
                target.parent.mkdir(parents=True, exist_ok=True)
                source: Any = tar.extractfile(member)
                partial = target.with_name(target.name + ".partial")
                with source, open(partial, "wb") as file:
                    while block := source.read(2**20):
                        file.write(block)
                partial.replace(target)
    except tarfile.TarError as error:
        raise UserError(
            f"{archive}: is no sound archive ({error}); delete it to fetch it again"
        ) from error


def _members(tar: tarfile.TarFile, archive: Path) -> Iterator[tuple[tarfile.TarInfo, Path]]:
    for member in tar:
        path = PurePosixPath(member.name)
        if member.isdir():
            continue
        if not member.isreg() or path.is_absolute() or ".." in path.parts:
            raise UserError(f"{archive}: {member.name!r} is no plain file below the archive's root")
        if path.suffix.lower() not in _IMAGES:
            continue  # notes and the like
        if member.size > _LARGEST:
            raise UserError(f"{archive}: {member.name!r} has {member.size} bytes, no image is that")
        yield member, Path(*path.parts)
