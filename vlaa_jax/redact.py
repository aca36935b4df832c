"""Keeps a key out of everything that is shown or written, however a server sends it back.

And out of settings, which are shown and written too: the rules here name what is wrong with one and
never repeat it.
"""

import base64
import logging
import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from vlaa_jax.schema import printable

PLACEHOLDER = "[key]"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
MIN_SECRET_CHARS = 8
"""Shorter keys (``EMPTY``, ``test``) are words: data that holds them is data."""
_GAP = r"[\s\x00-\x1f\x7f\u200b-\u200f\u2060\ufeff]*"
# These print answers of the server, and addresses, while they are set to talk.
_LOGGERS = (
    *("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy"),
    *("aiohttp.client", "aiohttp.internal"),
)


def check_address(url: str) -> None:
    """What may stand in a setting as the address of a server.

    Raises:
      ValueError: no http(s) address, or one with credentials, a query or a fragment.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.port != 0 and _is_host(parts.hostname)
    except ValueError:  # half an IPv6 address, a port that is none
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("the url is none: use http://host:port/path or https://host/path")
    if "@" in parts.netloc:
        raise ValueError("the url has credentials: put them into the environment")
    if "?" in url or "#" in url:
        raise ValueError(
            "the url has a query or fragment, which cannot be used; if it holds a key, put the key "
            "into the environment"
        )


def _is_host(name: str | None) -> bool:
    """Whether a name or an address may be looked up; raises ValueError for some that may not."""
    if not name:
        return False
    name.encode("idna").decode("idna")  # labels that are empty, too long or half of a foreign name
    if ":" in name or name.rpartition(".")[2].isdigit():
        ip_address(name.replace("%25", "%"))
    return True


def check_variable(name: str) -> None:
    """What may stand in a setting as the name of the variable with a key; ValueError otherwise."""
    if name and not _VARIABLE.fullmatch(name):
        raise ValueError("give the name of an environment variable, not the key itself")


class Redactor:
    """Replaces every spelling of a key that it knows.

    Known are: the key as it is, in small or large letters or with blanks and control characters
    within, characters of it percent-encoded or escaped as in JSON, Python or HTML; and the whole
    of it in base64 (at any place of a longer text) or hexadecimal.

    Args:
      secret: the key; empty leaves all texts as they are.
    """

    def __init__(self, secret: str) -> None:
        self._pattern = re.compile(_spellings(secret)) if secret else None
        self._is_word = len(secret) < MIN_SECRET_CHARS

    def text(self, text: str) -> str:
        """The text without the key."""
        return self._pattern.sub(PLACEHOLDER, text) if self._pattern else text

    def line(self, text: str, max_chars: int) -> str:
        """One printable line of a text without the key, for messages."""
        return printable(" ".join(self.text(text).split()))[:max_chars]

    def tree(self, value: Any) -> Any:
        """A parsed JSON value without the key, which is left where it is as short as a word."""
        return value if self._pattern is None or self._is_word else _mapped(value, self.text)

    def filter(self, record: logging.LogRecord) -> bool:
        """Takes the key out of a line of a log; see ``watch``."""
        try:
            said = record.getMessage()
        except (TypeError, ValueError):
            return True
        if (clean := self.text(said)) != said:
            record.msg, record.args = clean, ()
        return True

    def watch(self) -> None:
        """Keep the key out of what the HTTP libraries log, until ``unwatch``."""
        for name in _LOGGERS if self._pattern else ():
            logging.getLogger(name).addFilter(self.filter)

    def unwatch(self) -> None:
        """Leave the logs alone again."""
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self.filter)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    if isinstance(value, dict):
        return {change(key): _mapped(item, change) for key, item in value.items()}
    return value


def _spellings(secret: str) -> str:
    """A pattern of the key, longest spellings of its characters first."""
    characters = (
        rf"(?:{re.escape(c)}|%{ord(c):02x}|\\{{1,4}}u{ord(c):04x}|\\{{1,4}}x{ord(c):02x}"
        rf"|&\#0*{ord(c)};|&\#x0*{ord(c):x};)"
        for c in secret
    )
    data = secret.encode()
    parts = [f"(?i:{_GAP.join(characters)}|{data.hex()})", *_base64_parts(data)]
    return "|".join(parts)


def _base64_parts(data: bytes) -> list[str]:
    """What is the same in the base64 of every text that holds ``data``, at each of its places."""
    parts = set()
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(b"\0" * before + data).rstrip(b"=").decode()
            first = -(-before * 8 // 6)  # these characters hold bits of what stands before
            last = (before + len(data)) * 8 // 6  # and those from here on of what follows
            if last - first >= MIN_SECRET_CHARS:
                parts.add(re.escape(text[first:last]))
    return sorted(parts, key=len, reverse=True)
