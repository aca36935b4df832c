"""Readers for the released VLAA-Thinking files, exactly as they are.

``VLAA-Thinking-GRPO-25K.json`` and ``VLAA-Thinking-SFT-126K.json`` (Hugging Face data set
UCSC-VLAA/VLAA-Thinking, arXiv 2504.11468) are a JSON array or JSON Lines whatever the suffix says;
``meta`` is a dict or the text of a dict; ``gt`` is an integer for counting and text elsewhere, or
missing; ``image`` may begin with a slash. Every refusal names file, line or index, field and
reason.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, overload

from vlaa_jax.data.foreign_forms import guess_record, without_placeholders
from vlaa_jax.data.json_index import JsonIndex, index_json
from vlaa_jax.data.literals import as_json, parse_literal
from vlaa_jax.foreign import local_path, parse_json, shown
from vlaa_jax.schema import BOX_SPACES, VERIFIER_TYPES, Record, UserError, gold_text

KINDS = ("grpo", "sft")
"""What a file is read for: grpo needs ``verifier_type`` and ``gt``, sft needs ``answer``."""

MAX_RECORD_BYTES = 8 << 20
MAX_RECORD_DEPTH = 900
MAX_FIELD_CHARS = 1 << 20
MAX_PATH_CHARS = 1024
MAX_IMAGES = 64
_KNOWN = frozenset(
    ("id", "image", "images", "question", "gt", "answer", "verifier_type", "caption", "meta")
)


_URL = re.compile(r"\s*(data(?=:)|[a-z][a-z0-9+.-]+(?=://))", re.IGNORECASE)
_ANSWER_MARK = re.compile(r"†\s*(?:Answer\s*)?[:：]", re.IGNORECASE)


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

    def as_dict(self) -> dict[str, Any]:
        """The reject as one JSON object of a rejects file."""
        return asdict(self)


class Refusal(Exception):
    """A record cannot be used: which field, and why."""

    def __init__(self, field: str, reason: str, record_id: str = "") -> None:
        super().__init__(reason)
        self.field, self.reason, self.record_id = field, reason, record_id


class RecordFile(Sequence[Record]):
    """Random access to the records of one file; only byte offsets are kept in memory.

    ``file[i]`` raises UserError where the record is unusable; ``file.read(i)`` returns a Reject
    instead. Safe to use from several threads, and picklable, as Grain wants of a source.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        kind: str | None = None,
        box_space: str | Mapping[str, str] = "normalized",
        max_record_bytes: int = MAX_RECORD_BYTES,
    ) -> None:
        """Index a file.

        Args:
          path: JSON array or JSON Lines, whatever the suffix.
          kind: one of KINDS, or None to take what is there.
          box_space: space of iou boxes that do not name their own (one of BOX_SPACES), or a mapping
            from source to space, whatever the case; sources not in it are "normalized".
          max_record_bytes: longer records are refused unread.

        Raises:
          UserError: the file cannot be read, or is neither form of JSON.
        """
        if kind is not None and kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, not {kind!r}")
        self.path = local_path(path)
        self.kind = kind
        self._box_space: str | dict[str, str] = (
            box_space
            if isinstance(box_space, str)
            else {source.casefold(): space for source, space in box_space.items()}
        )
        self._max_bytes = max_record_bytes
        self._fd: int | None = None
        self.spans: JsonIndex = index_json(self.path)

    def __len__(self) -> int:
        return len(self.spans)

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

    def read(self, index: int) -> Record | Reject:
        """The record at ``index``, or why it cannot be used."""
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path}: record {index} of {len(self)}")
        index %= len(self)
        try:
            raw = self._raw(index)
            record = parse_record(raw, fallback_id=f"{self.path.stem}-{index:06d}", kind=self.kind)
        except Refusal as refusal:
            return self.reject(index, refusal.field, refusal.reason, refusal.record_id)
        if record.verifier_type == "iou" and record.box_space is None:
            record = replace(record, box_space=self._space_of(record.source))
        return record

    def problem_at_end(self) -> Reject | None:
        """Says so when the array is never closed; the records before the cut are whole."""
        if not (self.spans.truncated and self.spans.is_array):
            return None
        reason = "the array is not closed; was the download cut short?"
        return Reject(str(self.path), len(self), None, "", "", reason)

    def encoded(self, index: int) -> bytes:
        """The bytes of a record as they are in the file.

        Raises:
          Refusal: there are more than the limit.
        """
        start, end = (int(x) for x in self.spans.spans_N2[index])
        if end - start > self._max_bytes:
            raise Refusal("", f"{end - start:,} bytes long, more than {self._max_bytes:,}")
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        return os.pread(self._fd, end - start, start)

    def _raw(self, index: int) -> Any:
        data = self.encoded(index)
        try:
            # NaN is told by its field; how deep a record may be is for its fields to say, too.
            return parse_json(data, finite=False, max_depth=MAX_RECORD_DEPTH)
        except ValueError as error:
            cut = self.spans.truncated and index == len(self) - 1
            hint = "; the file ends inside it, was the download cut short?" if cut else ""
            raise Refusal("", f"{error}{hint}") from error

    def reject(self, index: int, field: str, reason: str, record_id: str = "") -> Reject:
        """A Reject that names the place of record ``index``."""
        lines = self.spans.lines_N
        line = None if lines is None else int(lines[index])
        return Reject(str(self.path), index, line, record_id, field, reason)

    def _space_of(self, source: str) -> str:
        if isinstance(self._box_space, str):
            return self._box_space
        return self._box_space.get(source.casefold(), "normalized")

    def close(self) -> None:
        """Close the file; reading opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __del__(self) -> None:
        if getattr(self, "_fd", None) is not None:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fd": None}


def iter_records(
    path: str | os.PathLike[str],
    *,
    kind: str | None = None,
    strict: bool = True,
    on_reject: Callable[[Reject], None] | None = None,
    on_duplicate: str = "reject",
    box_space: str | Mapping[str, str] = "normalized",
) -> Iterator[Record]:
    """Stream the records of one file in order, in bounded memory.

    Args:
      path: JSON array or JSON Lines.
      kind: one of KINDS, or None.
      strict: raise at the first refused record; otherwise hand it to ``on_reject`` and go on.
      on_reject: called with every Reject when not strict.
      on_duplicate: "reject" a repeated id, or "rename" it to ``ID#2``, ``ID#3``, ...
      box_space: see RecordFile.

    Raises:
      UserError: the file is unusable, or (strict) a record is.
    """

    def refuse(reject: Reject) -> None:
        if strict:
            raise UserError(str(reject))
        if on_reject is not None:
            on_reject(reject)

    file = RecordFile(path, kind=kind, box_space=box_space)
    try:
        for _, record in iter_indexed(file, refuse, on_duplicate):
            yield record
    finally:
        file.close()


def iter_indexed(
    file: RecordFile, on_reject: Callable[[Reject], None], on_duplicate: str = "reject"
) -> Iterator[tuple[int, Record]]:
    """The usable records of a file with their positions; the others go to ``on_reject``."""
    if on_duplicate not in ("reject", "rename"):
        raise ValueError(f"on_duplicate must be 'reject' or 'rename', not {on_duplicate!r}")
    seen: dict[str, int] = {}  # ids given out, and the highest number each was renamed with
    for index in range(len(file)):
        result = file.read(index)
        if isinstance(result, Reject):
            on_reject(result)
            continue
        if result.id not in seen:
            seen[result.id] = 1
            yield index, result
        elif on_duplicate == "rename":
            yield index, replace(result, id=_renamed(result.id, seen))
        else:
            on_reject(file.reject(index, "id", "used before in this file", result.id))
    if end := file.problem_at_end():
        on_reject(end)


def _renamed(record_id: str, seen: dict[str, int]) -> str:
    """``ID#2``, ``ID#3``, ...: the first that no record before bears, noted in ``seen``."""
    while True:
        seen[record_id] += 1
        name = f"{record_id}#{seen[record_id]}"
        if name not in seen:
            seen[name] = 1
            return name


def load_records(path: str | os.PathLike[str], **options: Any) -> list[Record]:
    """All records of a file as a list; options as for iter_records."""
    return list(iter_records(path, **options))


def parse_record(raw: Any, *, fallback_id: str, kind: str | None = None) -> Record:
    """One JSON object of the released files as a Record.

    Fields that a Record does not name (``ds_answer``, ...) go into its ``meta``.

    Args:
      raw: the parsed JSON object.
      fallback_id: id of a record that has none.
      kind: one of KINDS, or None to take what is there.

    Raises:
      Refusal: names the field and the reason.
    """
    if not isinstance(raw, dict):
        raise Refusal("", f"a JSON {type(raw).__name__}, expected an object")
    record_id = _id(raw.get("id"), fallback_id)
    try:
        return _parse_fields(raw, record_id, kind)
    except Refusal as refusal:
        refusal.record_id = record_id
        raise


def _parse_fields(raw: dict[str, Any], record_id: str, kind: str | None) -> Record:
    if raw.get("question") is None and (guess := guess_record(raw)):
        raise Refusal("question", f"missing; {guess}")
    images = _images(raw)
    meta = _meta(raw.get("meta"), {k: v for k, v in raw.items() if k not in _KNOWN})
    verifier_type = raw.get("verifier_type")
    if verifier_type is not None and verifier_type not in VERIFIER_TYPES:
        raise Refusal("verifier_type", f"{shown(verifier_type)} is none of {VERIFIER_TYPES}")
    box_space = meta.pop("box_space", None)
    if box_space is not None and box_space not in BOX_SPACES:
        raise Refusal("box_space", f"{shown(box_space)} is none of {BOX_SPACES}")
    if verifier_type == "iou" and not images:
        raise Refusal("image", "missing; a box lies in an image")
    gold = _gold(raw.get("gt"))
    if verifier_type == "math" and gold is not None and (answer := _marked_answer(gold)):
        meta["gt_solution"], gold = gold, answer
    question = _text(raw, "question", required=True) or ""
    if not without_placeholders(question):
        raise Refusal("question", f"empty but for {shown(question.strip())}")
    record = Record(
        id=record_id,
        question=question,
        images=images,
        gt=gold,
        verifier_type=verifier_type,
        answer=_text(raw, "answer", required=kind == "sft"),
        source=images[0].split("/", 1)[0] if images and "/" in images[0] else "",
        caption=_text(raw, "caption"),
        box_space=box_space,
        meta=meta,
    )
    if kind == "grpo" and record.verifier_type is None:
        raise Refusal("verifier_type", "missing; GRPO needs to know which verifier scores it")
    if kind == "grpo" and record.gt is None:
        raise Refusal("gt", "missing; GRPO needs a gold answer")
    return record


def _id(value: Any, fallback: str) -> str:
    if value is None or value == "":
        return fallback
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Refusal("id", f"{shown(value)} is neither text nor a whole number")
    text = str(value)
    if len(text) > MAX_PATH_CHARS:
        raise Refusal("id", f"{len(text):,} characters long, more than {MAX_PATH_CHARS:,}")
    _check_encodable("id", text)
    return text


def _text(raw: dict[str, Any], field: str, required: bool = False) -> str | None:
    value = raw.get(field)
    if value is None and not required:
        return None
    if not isinstance(value, str):
        what = "missing" if value is None else f"{shown(value)} is not text"
        raise Refusal(field, what)
    if required and not value.strip():
        raise Refusal(field, "empty")
    if len(value) > MAX_FIELD_CHARS:
        raise Refusal(field, f"{len(value):,} characters long, more than {MAX_FIELD_CHARS:,}")
    _check_encodable(field, value)
    return value


def _check_encodable(field: str, value: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refusal(field, f"a lone surrogate at character {error.start}") from error


def _gold(value: Any) -> str | None:
    """Gold answers come as text, integers (counting), and now and then as numbers or boxes."""
    if value is None:
        return None
    if isinstance(value, str):
        text = _text({"gt": value}, "gt") or ""
        if not text.strip():
            raise Refusal("gt", "empty")
        return text
    try:
        return gold_text(value)
    except ValueError as error:
        raise Refusal("gt", str(error)) from None


def _marked_answer(gold: str) -> str:
    """The answer of a worked solution whose last line begins with a dagger, as those of some
    sources of maths records do; else empty."""
    last = gold.rstrip().rpartition("\n")[2].lstrip()
    mark = _ANSWER_MARK.match(last)
    return last[mark.end() :].strip() if mark else ""


def _images(raw: dict[str, Any]) -> tuple[str, ...]:
    """Paths of the images; a record without the field, or with an empty list, is text alone."""
    field = "image" if raw.get("image") is not None else "images"
    value = raw.get(field)
    if value is None:
        return ()
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_literal(value)
        except ValueError as error:
            raise Refusal(field, f"looks like a list but is {error}") from error
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list | tuple) or not all(isinstance(p, str) for p in paths):
        raise Refusal(field, f"{shown(value)} is neither a path nor a list of paths")
    if len(paths) > MAX_IMAGES:
        raise Refusal(field, f"{len(paths)} images; at most {MAX_IMAGES} are allowed")
    return tuple(clean_image_path(path, field) for path in paths)


def clean_image_path(path: str, field: str = "image") -> str:
    """A path relative to the image root, without leading slashes, that cannot leave the root.

    Raises:
      Refusal: empty, too long, a URL, with ``..``, a backslash, a control character or a drive
        letter.
    """
    if scheme := _URL.match(path):
        what = f"is a URL ({scheme[1].lower()}:)"
        advice = "only files below the image root are read: save it there and give its path"
        raise Refusal(field, f"{shown(path)} {what}; {advice}")
    if len(path) > MAX_PATH_CHARS:
        raise Refusal(field, f"{len(path):,} characters long, more than {MAX_PATH_CHARS:,}")
    _check_encodable(field, path)
    if any(ord(c) < 32 for c in path) or "\\" in path:
        raise Refusal(field, f"{shown(path)} holds a backslash or a control character")
    parts = [part for part in path.strip().split("/") if part not in ("", ".")]
    if not parts:
        raise Refusal(field, f"{shown(path)} names no file")
    if len(parts[0]) > 1 and parts[0][1] == ":":
        raise Refusal(field, f"{shown(path)} is an absolute path, which leaves the image root")
    if ".." in parts:
        raise Refusal(field, f"{shown(path)} leaves the image root")
    return "/".join(parts)


def _meta(value: Any, further: dict[str, Any]) -> dict[str, Any]:
    """``meta`` together with fields that a Record does not name, as JSON can hold it."""
    try:
        if isinstance(value, str):
            value = parse_literal(value) if value.strip() else None
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise ValueError(f"{shown(value)} is neither an object nor the text of one")
        return dict(as_json(value) | as_json(further))
    except ValueError as error:
        raise Refusal("meta", str(error)) from error
