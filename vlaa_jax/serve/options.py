"""Settings as options of a command line: names, types and help come from the groups themselves."""

import argparse
import ast
import dataclasses
import inspect
import itertools
import typing
from collections.abc import Mapping
from typing import Any

from vlaa_jax.settings.fields import Group


def add_options(parser: argparse.ArgumentParser, groups: Mapping[str, type[Group]]) -> None:
    """An option for every setting of some groups; the prefix of a group may be empty."""
    for prefix, group in groups.items():
        said, hints = _docs(group), typing.get_type_hints(group)
        for field in dataclasses.fields(group):  # type: ignore[arg-type]
            default: Any = field.default
            kind = hints[field.name]
            parser.add_argument(
                f"--{_name(prefix, field.name)}",
                type=_words if typing.get_origin(kind) is tuple else kind,
                default=argparse.SUPPRESS,
                metavar=field.name.rpartition("_")[2].upper(),
                help=f"{said.get(field.name, '')} [{default!r}]".replace("%", "%%"),
            )


def given(args: argparse.Namespace, prefix: str, group: type[Group]) -> dict[str, Any]:
    """The settings of a group that the command line gives."""
    names = [field.name for field in dataclasses.fields(group)]  # type: ignore[arg-type]
    found = vars(args)
    return {n: found[_name(prefix, n)] for n in names if _name(prefix, n) in found}


def _name(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _docs(group: type[Group]) -> dict[str, str]:
    """What stands below each field in the source."""
    body = ast.parse(inspect.getsource(group)).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: " ".join(str(below.value.value).split())
        for field, below in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }
