"""``show``: which record is meant."""

import json

import pytest

from vlaa_jax.data.commands.show import find_record
from vlaa_jax.data.sources.record_file import RecordFile
from vlaa_jax.schema import UserError

RAW = {"question": "How many?", "image": "a/b.png", "gt": 3, "verifier_type": "digit"}


@pytest.fixture
def file(tmp_path):
    ids = ["x", 7, "y", "5", "z", None, 'has "id": "2",', "3", "-1"]
    raw = [{**RAW, "id": i} for i in ids]
    raw.append({**RAW, "id": "bad", "question": ""})
    (tmp_path / "r.json").write_text(json.dumps(raw))
    return RecordFile(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("which", "index"),
    [
        ("3", 7),  # an id before a position
        ("#3", 3),
        ("7", 1),
        ("5", 3),
        ("#5", 5),
        ("r-000005", 5),
        ("2", 2),  # no such id
        ("-1", 8),
        ("#-2", 8),
        ("-2", 8),
        ("z", 4),
    ],
)
def test_an_id_goes_before_a_position(file, which, index):
    assert find_record(file, which) == file.read(index)


@pytest.mark.parametrize(
    "which", ["10", "#10", "-11", "#x", "", "no such", "9" * 30, "(", "é\ud800"]
)
def test_what_is_not_there_is_said(file, which):
    with pytest.raises(UserError, match="no record at position or with id"):
        find_record(file, which)


def test_a_record_that_cannot_be_used_says_why(file):
    with pytest.raises(UserError, match=r"\(id 'bad'\): field 'question': empty"):
        find_record(file, "bad")
