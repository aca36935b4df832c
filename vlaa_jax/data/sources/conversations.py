"""Conversations as LLaVA, ShareGPT and chat trainers write them: one round is one record."""

import re
from pathlib import Path
from typing import Any

from vlaa_jax.data.records.foreign_forms import PLACEHOLDER, marks_lead, without_placeholders
from vlaa_jax.data.records.parse import Refusal
from vlaa_jax.data.sources.record_file import RecordFile

TURNS = {"conversations": ("from", "value"), "messages": ("role", "content")}
"""Field of the turns, and in a turn those of who speaks and what is said."""
_ASKS, _SAYS = ("human", "user"), ("gpt", "assistant")
_KEY = re.compile(rb'"(conversations|messages)"\s*:\s*\[')


class Conversations(RecordFile):
    """A JSON array or JSON Lines of conversations.

    What is said becomes the answer; or the gold, where a verifier is to score it (``kind`` grpo,
    or a ``verifier_type`` in the file or among the columns). Nothing is left out: a conversation of
    more than one round, or one that begins with a system prompt, is refused.
    """

    @staticmethod
    def looks_so(path: Path, start: bytes) -> bool:
        """Whether a file that begins like this holds conversations, not records."""
        return _KEY.search(start) is not None and re.search(rb'"question"\s*:', start) is None

    def _raw(self, index: int) -> Any:
        raw = super()._raw(index)
        return self._fields(raw) if isinstance(raw, dict) else raw

    def _fields(self, raw: dict[str, Any]) -> dict[str, Any]:
        """The fields of a record."""
        try:
            field, asked, said = _round(raw)
            names = (self._parse.columns.get(name, name) for name in ("image", "images"))
            images = next((raw[name] for name in names if raw.get(name) is not None), None)
            count = len(images) if isinstance(images, list) else int(images is not None)
            asked = _unmarked(asked, count, field)
        except Refusal as refusal:
            refusal.record_id = str(raw.get("id") or "")
            raise
        scored = self.kind == "grpo" or "verifier_type" in {**raw, **self._parse.constants}
        rest = {key: value for key, value in raw.items() if key != field}
        return {**rest, "question": asked, "gt" if scored else "answer": said}


def _round(raw: dict[str, Any]) -> tuple[str, str, str]:
    """The field of the turns, what is asked, and what is said."""
    field = next((name for name in TURNS if isinstance(raw.get(name), list)), "conversations")
    turns = raw.get(field)
    if not isinstance(turns, list):
        raise Refusal(field, "missing")
    who, what = TURNS[field]
    texts = [(turn.get(who), _text(turn.get(what))) for turn in turns if isinstance(turn, dict)]
    if len(texts) != len(turns) or any(text is None for _, text in texts):
        raise Refusal(field, f"a turn is no object with the texts {who!r} and {what!r}")
    speakers = [name for name, _ in texts]
    if speakers[:1] == ["system"]:
        raise Refusal(field, "begins with a system prompt; take it out and give data.system_prompt")
    if len(texts) == 2 and speakers[0] in _ASKS and speakers[1] in _SAYS:
        return field, str(texts[0][1]), str(texts[1][1])
    rounds = sum(name in _SAYS for name in speakers)
    wanted = "a record is one question and its answer"
    raise Refusal(field, f"{len(texts)} turns, {rounds} of them answers; {wanted}")


def _text(value: Any) -> str | None:
    """What a turn says; messages may hold a list of parts, of which images are marks."""
    if isinstance(value, list):
        parts = [part if isinstance(part, dict) else {} for part in value]
        marks = ["<image>" if p.get("type") == "image" else p.get("text") for p in parts]
        return None if None in marks else "\n".join(map(str, marks))
    return value if isinstance(value, str) else None


def _unmarked(asked: str, images: int, field: str) -> str:
    """The question without the marks of images that are shown before it."""
    marks = len(PLACEHOLDER.findall(asked))
    if marks not in (0, images):
        raise Refusal(field, f"has {marks} marks like <image> for {images} images")
    if marks > 1 and not marks_lead(asked):
        reason = "they are shown before the text: name them there (the first image)"
        raise Refusal(field, f"puts its {marks} images between its words; {reason}")
    return without_placeholders(asked) if marks else asked
