"""The one way a setting is checked: its type and its bounds stand at the field itself.

A group is a frozen dataclass that derives from `Group`. Whoever makes one, a config file or a test,
gets a sound one or a `UserError` of one line that names the setting as it is written on the command
line.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

from vlaa_jax.redact import check_address, check_variable
from vlaa_jax.schema import UserError

Rule = Callable[[Any], str | None]
"""What is wrong with a value, or None."""

_RULES, _HARMLESS, _PATH = "rules", "harmless", "path"


def setting(default: Any, *rules: Rule, harmless: bool = False, path: bool = False) -> Any:
    """A field with a default and what must hold of it.

    Args:
        default: its default.
        rules: what must hold; of a tuple, for each item.
        harmless: it changes no number, so a run may be resumed with another value.
        path: it names a file or folder, so another spelling of the same place is no other value.
    """
    metadata = {_RULES: rules, _HARMLESS: harmless, _PATH: path}
    return dataclasses.field(default=default, metadata=metadata)


def at_least(least: float) -> Rule:
    """The value is `least` or more."""
    return lambda v: None if v >= least else f"{v} is too small; it must be at least {least}"


def at_most(most: float) -> Rule:
    """The value is `most` or less."""
    return lambda v: None if v <= most else f"{v} is too large; it must be at most {most}"


def above(bound: float) -> Rule:
    """The value is larger than `bound`."""
    return lambda v: None if v > bound else f"{v} is not allowed; it must be above {bound}"


def below(bound: float) -> Rule:
    """The value is smaller than `bound`."""
    return lambda v: None if v < bound else f"{v} is not allowed; it must be below {bound}"


def within(least: float, most: float) -> Rule:
    """The value lies in [least, most]."""
    return lambda v: None if least <= v <= most else f"{v} is not within {least} and {most}"


def one_of(*allowed: str) -> Rule:
    """The value is one of some words."""
    return lambda v: None if v in allowed else f"{v!r} is not one of {', '.join(allowed)}"


def reads_as(parse: Callable[[str], Any]) -> Rule:
    """The text is one that `parse` takes; the message of its ValueError says why not."""

    def rule(value: str) -> str | None:
        try:
            parse(value)
        except ValueError as error:
            return str(error)
        return None

    return rule


def _address(url: str) -> None:
    if url not in ("", "embedded"):
        check_address(url)


ADDRESS = reads_as(_address)
"""The text is empty, "embedded", or the address of a server without a key in it."""
VARIABLE = reads_as(check_variable)
"""The text is empty, or the name of an environment variable."""


class Group:
    """Base of a group of settings, which are checked whenever one is made.

    ``class RunSettings(Group, name="run")`` names its settings ``run.steps`` and so on.

    Raises:
        UserError: a value has the wrong type or breaks a rule, or `check` refuses it.
    """

    group: ClassVar[str] = ""

    def __init_subclass__(cls, name: str | None = None) -> None:
        if name is not None:
            cls.group = name

    def __post_init__(self) -> None:
        hints = _hints(type(self))  # type: ignore[arg-type]
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            problem = wrong_type(hints[field.name], value)
            for rule in field.metadata.get(_RULES, ()):
                for item in value if isinstance(value, tuple) else (value,):
                    problem = problem or (None if item is None else rule(item))
            if problem:
                raise UserError(f"{self.name_of(field.name)}: {problem}")
        self.check()

    def check(self) -> None:
        """What must hold between the fields of a group; for subclasses.

        Raises:
            UserError: it does not hold.
        """

    @classmethod
    def name_of(cls, field: str) -> str:
        """The setting's whole name."""
        return f"{cls.group}.{field}" if cls.group else field


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def wrong_type(hint: Any, value: Any) -> str | None:
    """Why a value is no `hint`; a whole number is no bool, and a float must be finite."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = typing.get_args(hint)
        return None if any(wrong_type(h, value) is None for h in parts) else _expected(hint, value)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return _expected(hint, value)
        problems = (wrong_type(typing.get_args(hint)[0], item) for item in value)
        return next((problem for problem in problems if problem), None)
    kind = typing.get_origin(hint) or hint
    if kind is Any:
        return None
    number = kind is float and isinstance(value, int) and not isinstance(value, bool)
    if not (number or isinstance(value, kind)) or (isinstance(value, bool) and kind is not bool):
        return _expected(hint, value)
    if kind is float and not math.isfinite(value):
        return f"{value} is not a finite number"
    return None


def _expected(hint: Any, value: Any) -> str:
    name = hint.__name__ if isinstance(hint, type) else str(hint)
    name = {"tuple[str, ...]": "a list of texts"}.get(str(hint), name)
    return f"expected {name}, got {type(value).__name__} {value!r}"


def harmless_names(cls: type) -> frozenset[str]:
    """Dotted names, below a (nested) dataclass of settings, of those that change no number."""
    return _marked(cls, _HARMLESS)


def path_names(cls: type) -> frozenset[str]:
    """The same of those that name a file or folder."""
    return _marked(cls, _PATH)


def _marked(cls: type, mark: str, prefix: str = "") -> frozenset[str]:
    found: set[str] = set()
    hints = _hints(cls)
    for field in dataclasses.fields(cls):
        name, hint = prefix + field.name, hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            found |= _marked(hint, mark, f"{name}.")
        elif field.metadata.get(mark):
            found.add(name)
    return frozenset(found)
