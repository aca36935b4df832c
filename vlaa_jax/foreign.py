"""Files and JSON that others wrote, read with bounds on size, nesting and numbers.

Every JSON text from outside goes through ``parse_json``: the configuration and headers of a
checkpoint, records, replies of a server. What it refuses is told in a few words.
"""

import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlaa_jax.schema import UserError

MAX_DEPTH = 64
"""Levels of arrays and objects; a ``config.json`` has three or four."""
MAX_INT_DIGITS = 19
"""Whole numbers have to fit into 64 bits."""
MAX_CONFIG_BYTES = 4 << 20
"""Of a configuration, an index of weights or a header; the largest released ones have 0.3 MB. JSON
may take thirty times its length when it is parsed."""
MAX_IMAGE_BYTES = 256 << 20
"""Of one encoded image; the largest one that is decoded has as much without compression."""
_IMAGE_KINDS = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"RIFF": "webp", b"GIF8": "gif"}
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def parse_json(text: str | bytes, *, finite: bool = True, max_depth: int = MAX_DEPTH) -> Any:
    """The value of a JSON text.

    Args:
      text: bytes are UTF-8, with or without a byte order mark.
      finite: refuse NaN and Infinity, which are no JSON, and numbers like 1e999 that become one.
      max_depth: levels of arrays and objects.

    Raises:
      ValueError: a short reason: not UTF-8, not JSON, nested too deeply, an integer of more than
        MAX_INT_DIGITS digits, a number that is not finite, or a key that comes twice in one object.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 at byte {error.start}") from None
    strict: dict[str, Any] = {"parse_float": _finite, "parse_constant": _constant}
    hooks = {"object_pairs_hook": _object, "parse_int": _integer, **(strict if finite else {})}
    try:
        value = json.loads(text, **hooks)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos:,})") from None
    except RecursionError:
        raise _too_deep(max_depth) from None
    _check_depth(value, max_depth)
    return value


def without_surrogates(text: str) -> str:
    """The text with a question mark for each lone surrogate: JSON may hold them, no file can."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def local_path(path: str | os.PathLike[str]) -> Path:
    """A path as a person may write it: with ``~`` for the home folder, which no shell has seen."""
    return Path(os.path.expanduser(path))


def read_bytes(file: Path, max_bytes: int) -> bytes:
    """The content of a regular file.

    Raises:
      FileNotFoundError: there is nothing of that name.
      UserError: a link to nothing, no regular file, larger than ``max_bytes`` (of which no more is
        read), a pointer of git-lfs in place of the file, or unreadable.
    """
    try:
        # A pipe that nobody writes to would hold us in open() for ever.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError(f"{file} is not a regular file")
            data = stream.read(max_bytes + 1)
    except FileNotFoundError:
        refuse_dangling(file)
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise UserError(f"{file} cannot be read: {getattr(error, 'strerror', error)}") from None
    if len(data) > max_bytes:
        raise UserError(f"{file} is larger than {max_bytes:,} bytes; is it the right file?")
    refuse_pointer(file, data)
    return data


def refuse_dangling(file: Path) -> None:
    """Raises UserError where ``file`` is a link whose target is not there."""
    if file.is_symlink() and not file.exists():
        raise UserError(f"{file} is a link to {os.readlink(file)}, which does not exist")


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file that starts like this is a git-lfs pointer to the real one."""
    return start.startswith(_LFS_POINTER)


def refuse_pointer(file: Path, start: bytes) -> None:
    """Raises UserError where a file that starts like this is a git-lfs pointer to the real one."""
    if is_lfs_pointer(start):
        raise UserError(
            f"{file} is a git-lfs pointer, not the file itself; run `git lfs pull` in "
            f"{file.parent}, or download it again"
        )


def image_kind(start: bytes) -> str | None:
    """jpeg, png, webp or gif: what an encoded image is that starts like this; None for others."""
    return next((kind for magic, kind in _IMAGE_KINDS.items() if start.startswith(magic)), None)


def image_suffix(start: bytes) -> str | None:
    """What the name of such a file ends with."""
    kind = image_kind(start)
    return "jpg" if kind == "jpeg" else kind


def read_text(file: Path, max_bytes: int = MAX_CONFIG_BYTES) -> str:
    """The UTF-8 text of a file; errors as ``read_bytes``, and UserError where it is not UTF-8."""
    try:
        return read_bytes(file, max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start})") from None


def read_object(
    file: Path, max_bytes: int = MAX_CONFIG_BYTES, *, finite: bool = True
) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      FileNotFoundError: there is nothing of that name.
      UserError: as ``read_bytes``; or not what ``parse_json`` takes, or no object.
    """
    data = read_bytes(file, max_bytes)
    try:
        value = parse_json(data, finite=finite)
    except ValueError as error:
        raise UserError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{file} is not a JSON object")
    return value


@contextmanager
def own_file(file: Path) -> Iterator[None]:
    """Inside, a file that we wrote is read: where it is something else, it was damaged since.

    Raises:
      UserError: names the file.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{file} is damaged ({type(error).__name__}: {reason})") from error


def shown(value: Any) -> str:
    """A value of a JSON file as a message quotes it: short."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of too many digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_depth(value: Any, max_depth: int) -> None:
    level = [value]
    for _ in range(max_depth + 1):
        level = [inner for item in level for inner in _items(item)]
        if not level:
            return
    raise _too_deep(max_depth)


def _too_deep(levels: int) -> ValueError:
    return ValueError(f"nested too deeply: more than {levels} levels deep")


def _items(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:60]!r} comes twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > MAX_INT_DIGITS + digits.startswith("-"):
        raise ValueError(f"holds an integer of {len(digits):,} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"holds {name}, which is not a finite number")
