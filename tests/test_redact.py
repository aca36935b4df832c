"""The key is found in every spelling a server may send it back in, and nothing else is touched."""

import base64
import html
import json
import logging
import os
import urllib.parse

import pytest

from vlaa_jax.redact import Redactor

KEY = "sk-S+cr/t=12.3"
SPELLINGS = {
    "as it is": KEY,
    "small letters": KEY.lower(),
    "blanks within": " ".join(KEY),
    "cut by a line end": KEY[:5] + "\r\n\t" + KEY[5:],
    "cut by zero-width marks": KEY[:3] + "\u200b\x00" + KEY[3:],
    "percent": urllib.parse.quote(KEY, safe=""),
    "all percent": "".join(f"%{ord(c):02X}" for c in KEY),
    "json": json.dumps(KEY).replace("-", "\\u002d"),
    "json in json": json.dumps(json.dumps("".join(f"\\u{ord(c):04x}" for c in KEY))),
    "python": "".join(f"\\x{ord(c):02x}" for c in KEY),
    "html": html.escape(KEY).replace("/", "&#x2F;").replace("=", "&#61;"),
    "hexadecimal": KEY.encode().hex().upper(),
    **{
        f"base64 after {before!r}": base64.b64encode(f"{before}{KEY}".encode()).decode()
        for before in ("", "u:", "Bearer ")
    },
    "url-safe base64": base64.urlsafe_b64encode(KEY.encode()).decode(),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_of_the_key_is_taken_out(name):
    clean = Redactor(KEY).text(f"you sent {SPELLINGS[name]} to us")
    assert clean.startswith("you sent ") and "[key]" in clean
    # At the ends of a base64 text a character or two share bits with what stands beside the key.
    assert len(clean.replace("[key]", "")) <= len("you sent  to us") + 12
    for start in range(12 * name.startswith("base64"), len(SPELLINGS[name]) - 8):
        assert SPELLINGS[name][start : start + 9] not in clean


@pytest.mark.parametrize("text", ["", "sk-", "sk-S+cr/t=12", "a normal reply: 12.3 = 4/t", "é中\n"])
def test_other_texts_stay(text):
    assert Redactor(KEY).text(text) == text
    assert Redactor("").text(text + KEY) == text + KEY


def test_a_tree_is_cleaned_in_values_and_names():
    tree = {"a": [KEY, 1, None, {KEY: f"x{KEY}y"}]}
    assert Redactor(KEY).tree(tree) == {"a": ["[key]", 1, None, {"[key]": "x[key]y"}]}


def test_a_key_that_is_a_word_leaves_data_alone_but_no_message():
    redactor = Redactor("EMPTY")
    assert redactor.tree(["EMPTY"]) == ["EMPTY"]
    assert redactor.line("Bearer EMPTY", 100) == "Bearer [key]"


def test_a_line_is_one_printable_line():
    said = Redactor(KEY).line(f"a\r\n\x1b[31mred\x07 \u202e{KEY}\x9b é 中 \ud800", 200)
    assert said == "a \\x1b[31mred\\x07 \\u202e[key]\\x9b é 中 \\ud800"


@pytest.mark.parametrize("text", ["s" * 10**6, "s" + " " * 10**6, "\\" * 10**6, "&#" + "0" * 10**6])
def test_long_texts_of_beginnings_take_time_linear_in_their_length(text):
    start = os.times().user
    assert Redactor("ssk" + KEY).text(text) == text
    assert os.times().user - start < 5.0


def test_logs_of_the_http_library_are_cleaned_while_watched(caplog):
    redactor = Redactor(KEY)
    with caplog.at_level(logging.INFO, "httpx"):
        redactor.watch()
        logging.getLogger("httpx").info("HTTP Request: %s %d", f"Bearer {KEY}", 5)
        redactor.unwatch()
        logging.getLogger("httpx").info("HTTP Request: %s", "later")
    assert [record.getMessage() for record in caplog.records] == [
        "HTTP Request: Bearer [key] 5",
        "HTTP Request: later",
    ]
