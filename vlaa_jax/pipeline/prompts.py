"""Prompt texts are files; only whole ``$names`` in them are filled in."""

import re
from collections.abc import Collection
from pathlib import Path

from vlaa_jax.foreign import local_path, read_text
from vlaa_jax.schema import UserError

_FOLDER = Path(__file__).parent / "prompts"
_MAX_BYTES = 1 << 20
_NAME = re.compile(r"\$([a-z]+)\b")


def load_prompt(name: str, own: str, wanted: Collection[str] = ()) -> str:
    """The text of a prompt.

    Args:
        name: of the file in ``prompts/`` without suffix.
        own: a file to use instead; empty for none.
        wanted: names that the text must contain, since what they stand for would be lost.

    Raises:
        UserError: the file cannot be read, is empty or too large, or lacks a name.
    """
    path = local_path(own) if own else _FOLDER / f"{name}.txt"
    try:
        text = read_text(path, _MAX_BYTES)
    except (FileNotFoundError, UserError) as error:
        raise UserError(f"prompt {path}: cannot be read ({error})") from error
    if not text.strip():
        raise UserError(f"prompt {path}: is empty")
    present = set(_NAME.findall(text))
    if missing := [name for name in wanted if name not in present]:
        raise UserError(f"prompt {path}: ${missing[0]} must stand somewhere in it")
    return text.rstrip("\n")


def fill(prompt: str, **values: str) -> str:
    """Put values in place of their names; a value that looks like a name is left alone."""
    return _NAME.sub(lambda match: values.get(match[1], match[0]), prompt)
