"""What every source of records can do; ``table`` says which ones there are.

A source is one file: a subclass that says how record number ``i`` is read and where its images are.
"""

import json
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO, overload

from PIL import Image

from vlaa_jax.data.images.files import ImageFacts, decode, in_memory, inspect
from vlaa_jax.data.records.parse import Parser, Refusal
from vlaa_jax.foreign import local_path
from vlaa_jax.schema import Record, UserError

ImageOpener = Callable[[Record], tuple[Image.Image, ...]]
"""Decoded images of a record: ``Source.images``."""
TEXTS = (*("id", "question", "gt", "verifier_type", "answer", "source", "caption", "box_space"),)
"""Fields of a record that are text, or None."""


@dataclass(frozen=True)
class Reject:
    """One record that was refused, and why."""

    file: str
    index: int
    """Position in the file from 0."""
    line: int | None
    """Line number from 1 in JSON Lines; None in an array."""
    id: str
    field: str
    reason: str

    def __str__(self) -> str:
        place = f"line {self.line}" if self.line is not None else f"record {self.index}"
        name = f" (id {self.id!r})" if self.id else ""
        field = f"field '{self.field}': " if self.field else ""
        return f"{self.file}: {place}{name}: {field}{self.reason}"

    def as_line(self) -> str:
        """The reject as a line of a rejects file."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


class Source(Sequence[Record]):
    """Records at random access, and their images.

    ``source[i]`` raises UserError where the record is unusable; ``source.read(i)`` returns a Reject
    instead. Safe to use from several threads.

    Attributes:
        path: file or folder.
        kind: what its records are read for; one of ``schema.KINDS``.
        golds_checked: whether golds were put to their verifiers when it was made.
        needs_root: whether images lie below an image root.
    """

    golds_checked = False
    needs_root = False

    def __init__(
        self,
        path: str | os.PathLike[str],
        image_root: str | os.PathLike[str] | None = None,
        *,
        kind: str | None = None,
        box_space: str | Mapping[str, str] | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        """Open a source; see ``Parser`` for its kind, box space and columns.

        Args:
          path: where it is.
          image_root: folder that image paths are relative to; sources that hold images need none.
          kind: what its records are read for, or have to be of; None takes what is there.
          box_space: of boxes that do not say it, or that it has to be made with.
          columns: names of fields in it.

        Raises:
          UserError: it cannot be read, or was made for something else.
        """
        self.path, self.root, self.kind = local_path(path), image_root, kind
        self.box_space, self.columns = box_space, columns or {}
        self._open()

    @staticmethod
    @abstractmethod
    def looks_so(path: Path, start: bytes) -> bool:
        """Whether a path, with a file of this beginning, is one of these; cheap."""

    @abstractmethod
    def _open(self) -> None:
        """Finds out what is there."""

    @abstractmethod
    def _read(self, index: int) -> Record:
        """Record number ``index``, from 0, with its ``place``; or Refusal."""

    @abstractmethod
    def _image(self, record: Record, number: int) -> AbstractContextManager[BinaryIO]:
        """Opens image ``number`` of a record of this source; UserError where it cannot be."""

    def read(self, index: int) -> Record | Reject:
        """The record at ``index``, or why it cannot be used."""
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path}: record {index} of {len(self)}")
        index %= len(self)
        try:
            return self._read(index)
        except Refusal as refusal:
            return self.reject(index, refusal.field, refusal.reason, refusal.record_id)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        result = self.read(index)
        if isinstance(result, Reject):
            raise UserError(str(result))
        return result

    def reject(self, index: int, field: str, reason: str, record_id: str = "") -> Reject:
        """A Reject that names the place of record ``index``."""
        return Reject(str(self.path), index, self.line(index), record_id, field, reason)

    def line(self, index: int) -> int | None:
        """Line of a record, from 1, where there are lines."""
        return None

    def mentions(self, index: int, pattern: re.Pattern[bytes]) -> bool:
        """Whether the bytes of a record may hold a pattern: looked for before any is parsed."""
        return True

    def problem_at_end(self) -> Reject | None:
        """Says so when the source seems cut off; what comes before the cut is whole."""
        return None

    def look(
        self, record: Record, number: int, *, whole: bool = True, keep: bool = False
    ) -> ImageFacts:
        """What is found at image ``number`` of a record; see ``inspect``.

        Where the record brings its lengths, a header is not read for a size that is known.
        """
        if record.lengths is not None and not whole and not keep:
            return ImageFacts("found", "", record.lengths.image_sizes[number])
        name = record.images[number]
        return inspect(self._image(record, number), name, whole=whole, keep=keep)

    def images(self, record: Record) -> tuple[Image.Image, ...]:
        """The decoded images of a record of this source, upright; a UserError names the record."""
        found = []
        try:
            for number, name in enumerate(record.images):
                with self._image(record, number) as file:
                    found.append(decode(file, name))
        except UserError as error:
            raise UserError(f"record {record.id!r}: {error}") from error
        return tuple(found)

    def close(self) -> None:
        """Close what is open; reading opens it again."""


class ParsedSource(Source):
    """A source of raw objects, which a ``Parser`` makes records of."""

    def _open(self) -> None:
        self._parse = Parser(self.kind, self.box_space, self.columns)

    def read_as(self, kind: str) -> None:
        """Settle what the records are read for, where it was left open."""
        self.kind = self._parse.kind = kind


class ImageHolder(Source):
    """A source that holds its images."""

    @abstractmethod
    def encoded_images(self, record: Record) -> Sequence[bytes]:
        """The image files of a record of this source, byte for byte."""

    def _image(self, record: Record, number: int) -> AbstractContextManager[BinaryIO]:
        return in_memory(self.encoded_images(record)[number], record.images[number])


class StoredSource(ImageHolder):
    """Records that we judged before, and keep with their images."""

    def _made_for(self, what: str, kind: str, spaces: str | Mapping[str, str]) -> None:
        """Refuses a source that was made for something else than it is opened for.

        Raises:
          UserError: names which.
        """
        if self.kind is not None and self.kind != kind:
            raise UserError(f"{self.path}: is {what} of kind {kind!r}, {self.kind!r} is needed")
        if self.columns:
            raise UserError(f"data.columns: {self.path} is {what} and has none; leave it empty")
        if self.box_space and plain_space(self.box_space) != plain_space(spaces):
            raise UserError(
                f"data.box_space: {self.path} was built with {spaces!r}; leave it empty, or build "
                "again with --box-space"
            )
        self.kind = kind


def plain_space(box_space: str | Mapping[str, str]) -> str | dict[str, str]:
    """A box space, or those of sources, in a form that can be compared."""
    if isinstance(box_space, str):
        return box_space
    return {source.casefold(): space for source, space in sorted(box_space.items())}


def iter_indexed(
    source: Source, on_reject: Callable[[Reject], None], on_duplicate: str = "reject"
) -> Iterator[tuple[int, Record]]:
    """The usable records of a source with their positions; the others go to ``on_reject``.

    Args:
      source: where they are.
      on_reject: called with every Reject.
      on_duplicate: "reject" a repeated id, or "rename" it to ``ID#2``, ``ID#3``, ...
    """
    if on_duplicate not in ("reject", "rename"):
        raise ValueError(f"on_duplicate must be 'reject' or 'rename', not {on_duplicate!r}")
    seen: dict[str, int] = {}  # ids given out, and the highest number each was renamed with
    for index in range(len(source)):
        result = source.read(index)
        if isinstance(result, Reject):
            on_reject(result)
        elif result.id not in seen:
            seen[result.id] = 1
            yield index, result
        elif on_duplicate == "rename":
            yield index, replace(result, id=_renamed(result.id, seen))
        else:
            on_reject(source.reject(index, "id", "used before in this file", result.id))
    if end := source.problem_at_end():
        on_reject(end)


def _renamed(record_id: str, seen: dict[str, int]) -> str:
    """``ID#2``, ``ID#3``, ...: the first that no record before bears, noted in ``seen``."""
    while True:
        seen[record_id] += 1
        name = f"{record_id}#{seen[record_id]}"
        if name not in seen:
            seen[name] = 1
            return name
