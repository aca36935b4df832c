"""From a config file's nested mapping to a dataclass of settings."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from vlaa_jax.schema import UserError

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Builds a nested dataclass; lists become tuples and whole numbers floats where it wants them.

    Args:
        cls: a dataclass whose groups are `Group`s.
        values: of its fields, by name; groups are mappings.
        where: name of the whole in messages.

    Raises:
        UserError: an unknown or missing key, or a value that its group refuses.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    known = [field.name for field in fields]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
            raise UserError(f"{where}.{key}: unknown key; {hint}")
    for f in fields:
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in values:
            raise UserError(f"{where}.{f.name}: missing; the config must set it")
    hints = typing.get_type_hints(cls)
    return cls(**{k: _value(hints[k], v, f"{where}.{k}") for k, v in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: expected a group of settings, got {value!r}")
        return build(hint, value, where)
    kinds = (
        typing.get_args(hint)
        if typing.get_origin(hint) in (typing.Union, types.UnionType)
        else (hint,)
    )
    if any(typing.get_origin(kind) is tuple for kind in kinds) and isinstance(value, list | tuple):
        item = typing.get_args(next(k for k in kinds if typing.get_origin(k) is tuple))[0]
        return tuple(_value(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value
