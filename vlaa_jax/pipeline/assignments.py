"""Settings of the form ``NAME=VALUE,NAME=VALUE``, one value for each source."""

from collections.abc import Collection
from pathlib import Path

from vlaa_jax.schema import UserError


def folders_by_name(text: str, where: str, known: Collection[str]) -> dict[str, Path]:
    """Folders in the order given; names must be known.

    Raises:
        UserError: names the setting and what is wrong with it.
    """
    return {n: Path(v).expanduser() for n, v in _assignments(text, where, known).items()}


def counts_by_name(text: str, where: str, known: Collection[str]) -> dict[str, int]:
    """Counts, none negative.

    Raises:
        UserError: names the setting and what is wrong with it.
    """
    counts = {}
    for name, value in _assignments(text, where, known).items():
        if not value.isdecimal():
            raise UserError(f"{where}: {name}={value!r} is no count")
        counts[name] = int(value)
    return counts


def _assignments(text: str, where: str, known: Collection[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise UserError(f"{where}: {part!r} is not of the form NAME=VALUE")
        if name not in known:
            raise UserError(f"{where}: {name!r} is none of {', '.join(known)}")
        if name in found:
            raise UserError(f"{where}: {name} is given twice")
        found[name] = value
    return found
