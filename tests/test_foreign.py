"""Bounds on what is read from outside, file by file and value by value."""

import json
import os
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlaa_jax.foreign import MAX_DEPTH, parse_json, read_bytes, read_object, read_text
from vlaa_jax.schema import UserError, printable

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False,
    allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)  # fmt: skip


@given(values)
def test_what_json_can_hold_is_read_as_the_library_reads_it(value):
    text = json.dumps(value)
    assert parse_json(text) == parse_json(text.encode()) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ('{"a": 1', "not JSON"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8 at byte 0"),
        ("[NaN]", "holds NaN, which is not a finite number"),
        ("[-Infinity]", "holds -Infinity"),
        ("[1e999]", "the number 1e999 is too large"),
        (f"[{2**70}]", "holds an integer of 22 digits"),
        (f"[{'9' * 100_000}]", "holds an integer of 100,000 digits"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "nested too deeply"),
        ("[" * 2_000_000, "nested too deeply"),
        ('{"a":' * 2_000_000, "nested too deeply"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' comes twice"),
    ],
)
def test_what_is_refused_is_told_in_a_few_words(text, reason):
    start = os.times().user
    with pytest.raises(ValueError, match=reason) as caught:
        parse_json(text)
    assert os.times().user - start < 2.0 and len(str(caught.value)) < 120


def test_the_deepest_that_is_allowed():
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_json(text) is not None
    assert parse_json("[" * 500 + "]" * 500, max_depth=500) is not None
    assert parse_json(str(-(2**63))) == -(2**63)
    assert parse_json("\ufeff[]".encode()) == []


def test_numbers_that_are_not_finite_where_they_are_wanted():
    assert str(parse_json("[NaN, -Infinity, 1e999]", finite=False)) == "[nan, -inf, inf]"


def write(path, data):
    path.write_bytes(data)
    return path


def test_files_that_are_no_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none", 10)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"is a link to .*gone, which does not exist"):
        read_bytes(tmp_path / "link", 10)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        read_bytes(tmp_path / "pipe", 10)
    with pytest.raises(UserError, match=r"not a regular file|cannot be read"):
        read_bytes(tmp_path, 10)
    with pytest.raises(UserError, match="not a regular file"):
        read_bytes(tmp_path / "/dev/zero", 10)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="cannot be read"):
        read_bytes(tmp_path / "loop", 10)
    with pytest.raises(UserError, match="cannot be read"):
        read_bytes(tmp_path / "null\0", 10)


def test_a_file_is_read_to_its_limit_and_no_further(tmp_path):
    file = write(tmp_path / "a", b"x" * 10)
    assert read_bytes(file, 10) == b"x" * 10
    with pytest.raises(UserError, match="larger than 9 bytes"):
        read_bytes(file, 9)
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 40)
    start = time.monotonic()
    with pytest.raises(UserError, match="larger than 1,000 bytes"):
        read_bytes(tmp_path / "sparse", 1000)
    assert time.monotonic() - start < 1.0


def test_a_pointer_of_git_lfs_is_named_as_such(tmp_path):
    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    file = write(tmp_path / "config.json", text)
    for read in (read_object, read_text):
        with pytest.raises(UserError, match=r"is a git-lfs pointer.* run `git lfs pull` in"):
            read(file)


@pytest.mark.parametrize("data", [b"[]", b"3", b"{", b"\xff", b""])
def test_what_is_no_object_is_refused_by_its_file(tmp_path, data):
    file = write(tmp_path / "config.json", data)
    with pytest.raises(UserError, match=r"^[^\n]*config\.json (cannot be read|is not a JSON)"):
        read_object(file)


@given(st.text())
def test_user_errors_are_printable(text):
    said = str(UserError(text))
    assert said == printable(said) == printable(text)
    assert all(c.isprintable() or c == "\n" for c in said)
    said.encode(sys.getfilesystemencoding())


def test_letters_of_any_script_stay_and_marks_of_direction_go():
    assert str(UserError("é 中 \u202e\x1b[2J\r\ud800")) == r"é 中 \u202e\x1b[2J\r\ud800"
