"""Reading Python literals that other people's files hold as text, without ever running them.

The released GRPO file stores ``meta`` as the text of a Python dict (single quotes).
"""

import ast
import json
import re
from typing import Any

MAX_LITERAL_CHARS = 1 << 20
MAX_PYTHON_CHARS = 1 << 18
"""Of what is no JSON: Python's parser takes half a kilobyte for a character of it."""
MAX_DEPTH = 50
_MAX_INT_BITS = 1024
_MAX_SIGNS = 1000
_PREFIXES = frozenset(("r", "b", "u", "rb", "br"))
_WORD = re.compile(r"(?<![\w.])[^\W\d]\w*")
_STRINGS = re.compile(r"'(?:[^'\\]|\\.)*+'|\"(?:[^\"\\]|\\.)*+\"", re.DOTALL)
_CONSTANTS = frozenset(("None", "True", "False", "set"))
_NAMES = {
    "nan": float("nan"),
    "NaN": float("nan"),
    "inf": float("inf"),
    "Infinity": float("inf"),
    "null": None,
    "true": True,
    "false": False,
}


def parse_literal(text: str) -> Any:
    """Parse JSON or a Python literal (dict, list, str, numbers; also bare nan, inf, null, true).

    Raises:
      ValueError: not a literal, longer than MAX_LITERAL_CHARS (MAX_PYTHON_CHARS where it is no
        JSON), or nested too deeply; the message is a short reason.
    """
    if len(text) > MAX_LITERAL_CHARS:
        raise ValueError(f"{len(text):,} characters long, more than {MAX_LITERAL_CHARS:,}")
    _check_nesting(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    _check_python(text)
    try:
        tree = _Names().visit(ast.parse(text.strip(), mode="eval"))
        return ast.literal_eval(tree)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError("neither JSON nor a Python literal") from error


def as_json(value: Any, depth: int = 0) -> Any:
    """The value with tuples as lists and keys as text, so that JSON holds it and gives it back.

    Raises:
      ValueError: bytes, sets, complex numbers, huge integers, keys that are no text or number, text
        with a lone surrogate, or more than MAX_DEPTH levels; the message is a short reason.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        return {_json_key(key): as_json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item, depth + 1) for item in value]
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        if value.bit_length() > _MAX_INT_BITS:
            raise ValueError("holds an integer of hundreds of digits")
        return value
    if isinstance(value, str):
        return _encodable(value)
    raise ValueError(f"holds a value of type {type(value).__name__}, which JSON cannot hold")


def _json_key(key: Any) -> str:
    if isinstance(key, tuple | frozenset | bytes | complex) or key is ...:
        raise ValueError(f"holds a key of type {type(key).__name__}, which JSON cannot hold")
    return _encodable(str(as_json(key)))


def _encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"holds a lone surrogate at character {error.start} of a text") from error
    return text


def _check_nesting(text: str) -> None:
    """Refuse what could exhaust the parser's stack: it looks at the text outside strings only."""
    bare = _STRINGS.sub("", text)
    depth = deepest = 0
    for bracket in re.findall(r"[\[\](){}]", bare):
        depth += 1 if bracket in "[({" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH or len(re.findall(r"[+\-~]|\bnot\b|\blambda\b", bare)) > _MAX_SIGNS:
        raise ValueError("nested too deeply")


def _check_python(text: str) -> None:
    """Refuse what no literal holds before the parser sees it: names, f-strings, comments.

    Nested in an f-string, a megabyte of ``{1}`` takes a minute to parse.
    """
    if len(text) > MAX_PYTHON_CHARS:
        raise ValueError(f"no JSON, and {len(text):,} characters long, more than is read as Python")
    bare = _STRINGS.sub("", text)
    words = {word.lower() if len(word) < 3 else word for word in _WORD.findall(bare)}
    if re.search(r"['\"#\\]", bare) or words - _NAMES.keys() - _PREFIXES - _CONSTANTS:
        raise ValueError("neither JSON nor a Python literal")


class _Names(ast.NodeTransformer):
    """Turns the few bare names that printed dicts hold into constants; others stay and fail."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in _NAMES:
            return ast.copy_location(ast.Constant(_NAMES[node.id]), node)
        return node
