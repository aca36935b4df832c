"""Records in the released form, to be written."""

from typing import Any

from vlaa_jax.schema import Record

FIELDS = ("question", "gt", "answer", "verifier_type", "caption", "box_space")


def as_released(record: Record) -> dict[str, Any]:
    """A record as one JSON object of a released file; fields of its own are kept in ``meta``."""
    images = record.images[0] if len(record.images) == 1 else list(record.images)
    values: dict[str, Any] = {"id": record.id, "image": images or None}
    values |= {name: getattr(record, name) for name in FIELDS}
    values["meta"] = dict(record.meta) or None
    return {name: value for name, value in values.items() if value is not None}
