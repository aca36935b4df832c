"""Settings that hold one value per source of the data, as ``"vg=2,synthesis=1"``."""

import math

from vlaa_jax.schema import BOX_SPACES


def box_spaces(text: str) -> str | dict[str, str]:
    """``"normalized"`` or ``"vg=normalized_square,coco=normalized"`` as ``RecordFile`` takes it.

    Raises:
        ValueError: names what is no space, or given twice.
    """
    if not text.strip():
        return "normalized"
    if "=" not in text:
        return _space(text.strip())
    return {source: _space(space, f"{source}: ") for source, space in _assignments(text).items()}


def source_weights(text: str) -> dict[str, float] | None:
    """``"vg=2,synthesis=1"`` as relative shares; None for an empty text.

    Raises:
        ValueError: names what is no weight, or given twice.
    """
    if not text.strip():
        return None
    weights = {}
    for source, value in _assignments(text).items():
        try:
            weights[source] = float(value)
        except ValueError as error:
            raise ValueError(f"{source}={value}: expected a number") from error
        if not 0 < weights[source] < math.inf:
            raise ValueError(f"{source}={value}: must be above 0; leave the source out")
    return weights


def source_counts(text: str) -> dict[str, int]:
    """``"vg=2000,coco=1000"`` as whole numbers, none negative.

    Raises:
        ValueError: names what is no count, or given twice.
    """
    counts = _assignments(text) if text.strip() else {}
    if wrong := [f"{source}={count}" for source, count in counts.items() if not count.isdecimal()]:
        raise ValueError(f"{wrong[0]}: expected a whole number")
    return {source: int(count) for source, count in counts.items()}


def source_folders(text: str) -> dict[str, str]:
    """``"docvqa=/data/docvqa"`` as folders; nothing for an empty text and for "embedded".

    Raises:
        ValueError: names what is not of this form, or given twice.
    """
    return {} if text.strip() in ("", "embedded") else _assignments(text)


def columns(text: str) -> dict[str, str]:
    """``"question=problem,gt=solution,verifier_type:=math"``: names of fields elsewhere.

    Returns:
        By field the name of its column; or, where ``:=`` was written, "=" and the text that the
        field has in every record.

    Raises:
        ValueError: names what is not of this form, or given twice.
    """
    found = {}
    for field, name in (_assignments(text) if text.strip() else {}).items():
        constant = field.endswith(":")
        found[field.removesuffix(":").strip()] = f"={name}" if constant else name
    return found


def _space(name: str, where: str = "") -> str:
    if name not in BOX_SPACES:
        raise ValueError(f"{where}{name!r} is not one of {', '.join(BOX_SPACES)}")
    return name


def _assignments(text: str) -> dict[str, str]:
    """``A=1,B=2`` as a mapping from names in lower case, as the folders of the data set are."""
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise ValueError(f"{part.strip()!r} is not SOURCE=VALUE (in {text!r})")
        if name.casefold() in found:
            raise ValueError(f"{name!r} is given twice")
        found[name.casefold()] = value
    return found
