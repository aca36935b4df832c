"""Records of the released VLAA-Thinking files, exactly as they are, read and written.

``VLAA-Thinking-GRPO-25K.json`` and ``VLAA-Thinking-SFT-126K.json`` (Hugging Face data set
UCSC-VLAA/VLAA-Thinking, arXiv 2504.11468) are a JSON array or JSON Lines whatever the suffix says;
``meta`` is a dict or the text of a dict; ``gt`` is an integer for counting and text elsewhere, or
missing; ``image`` may begin with a slash. Every refusal names file, line or index, field and
reason.
"""

import re
from collections.abc import Mapping
from typing import Any

from vlaa_jax.data.records.foreign_forms import guess_record, without_placeholders
from vlaa_jax.data.records.literals import as_json, parse_literal
from vlaa_jax.foreign import shown
from vlaa_jax.schema import BOX_SPACES, KINDS, VERIFIER_TYPES, Record, gold_text

MAX_FIELD_CHARS = 1 << 20
MAX_PATH_CHARS = 1024
MAX_IMAGES = 64
_KNOWN = frozenset(
    ("id", "image", "images", "question", "gt", "answer", "verifier_type", "caption", "meta")
)
_URL = re.compile(r"\s*(data(?=:)|[a-z][a-z0-9+.-]+(?=://))", re.IGNORECASE)
_ANSWER_MARK = re.compile(r"†\s*(?:Answer\s*)?[:：]", re.IGNORECASE)
_WRITTEN = ("question", "gt", "answer", "verifier_type", "caption", "box_space")


class Refusal(Exception):
    """A record cannot be used: which field, and why."""

    def __init__(self, field: str, reason: str, record_id: str = "") -> None:
        super().__init__(reason)
        self.field, self.reason, self.record_id = field, reason, record_id


class Parser:
    """How JSON objects of one source become records.

    Args:
      kind: one of KINDS, or None to take what is there.
      box_space: space of iou boxes that do not name their own (one of BOX_SPACES), or a mapping
        from source to space, whatever the case; sources not in it are "normalized".
      columns: the name that a field has in the objects, by field, where they have one of it; or the
        text of a field that they lack, after a "=". See ``settings.by_source.columns``.
    """

    def __init__(
        self,
        kind: str | None = None,
        box_space: str | Mapping[str, str] | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        if kind is not None and kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, not {kind!r}")
        self.kind = kind
        spaces = box_space or "normalized"
        self._spaces: str | dict[str, str] = (
            spaces if isinstance(spaces, str) else {k.casefold(): v for k, v in spaces.items()}
        )
        said = columns or {}
        self.constants = {f: text[1:] for f, text in said.items() if text.startswith("=")}
        self.columns = {f: name for f, name in said.items() if f not in self.constants}

    def __call__(self, raw: Any, fallback_id: str, place: int = -1) -> Record:
        """One JSON object of the released files as a Record.

        Fields that a Record does not name (``ds_answer``, ...) go into its ``meta``.

        Args:
          raw: the parsed JSON object.
          fallback_id: id of a record that has none.
          place: position in its source.

        Raises:
          Refusal: names the field and the reason.
        """
        if not isinstance(raw, dict):
            raise Refusal("", f"a JSON {type(raw).__name__}, expected an object")
        if self.columns or self.constants:
            # Held-out records beside training ones may have the fields under their own names.
            mapped = {field: raw[name] for field, name in self.columns.items() if name in raw}
            taken = {self.columns[field] for field in mapped}
            raw = {k: v for k, v in raw.items() if k not in taken} | mapped
            raw |= {f: text for f, text in self.constants.items() if raw.get(f) is None}
        record_id = _id(raw.get("id"), fallback_id)
        try:
            return self._record(raw, record_id, place)
        except Refusal as refusal:
            refusal.record_id = record_id
            raise

    def _record(self, raw: dict[str, Any], record_id: str, place: int) -> Record:
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
        source = images[0].split("/", 1)[0] if images and "/" in images[0] else ""
        if verifier_type == "iou" and box_space is None:
            box_space = self._space_of(source)
        record = Record(
            id=record_id,
            question=question,
            images=images,
            gt=gold,
            verifier_type=verifier_type,
            answer=_text(raw, "answer", required=self.kind == "sft"),
            source=source,
            caption=_text(raw, "caption"),
            box_space=box_space,
            meta=meta,
            place=place,
        )
        if self.kind == "grpo" and record.verifier_type is None:
            raise Refusal("verifier_type", "missing; GRPO needs to know which verifier scores it")
        if self.kind == "grpo" and record.gt is None:
            raise Refusal("gt", "missing; GRPO needs a gold answer")
        return record

    def _space_of(self, source: str) -> str:
        if isinstance(self._spaces, str):
            return self._spaces
        return self._spaces.get(source.casefold(), "normalized")


def as_released(record: Record) -> dict[str, Any]:
    """A record as one JSON object of a released file; fields of its own are kept in ``meta``."""
    images = record.images[0] if len(record.images) == 1 else list(record.images)
    values: dict[str, Any] = {"id": record.id, "image": images or None}
    values |= {name: getattr(record, name) for name in _WRITTEN}
    values["meta"] = dict(record.meta) or None
    return {name: value for name, value in values.items() if value is not None}


def _id(value: Any, fallback: str) -> str:
    if value is None or value == "":
        return fallback
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Refusal("id", f"{shown(value)} is neither text nor a whole number")
    return _bounded("id", str(value), MAX_PATH_CHARS)


def _text(raw: dict[str, Any], field: str, required: bool = False) -> str | None:
    value = raw.get(field)
    if value is None and not required:
        return None
    if not isinstance(value, str):
        what = "missing" if value is None else f"{shown(value)} is not text"
        raise Refusal(field, what)
    if required and not value.strip():
        raise Refusal(field, "empty")
    return _bounded(field, value, MAX_FIELD_CHARS)


def _bounded(field: str, value: str, most: int) -> str:
    """A text that is not too long and that a file can hold."""
    if len(value) > most:
        raise Refusal(field, f"{len(value):,} characters long, more than {most:,}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refusal(field, f"a lone surrogate at character {error.start}") from error
    return value


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
    _bounded(field, path, MAX_PATH_CHARS)
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
