"""Prediction files of every kind: there and back, and bad ones."""

import pytest

from vlaa_jax.evaluate.benchmarks import benchmark_named
from vlaa_jax.evaluate.predictions import SUFFIXES, read_predictions, write_predictions
from vlaa_jax.evaluate.scoring_run import rows_of_file
from vlaa_jax.schema import UserError

TEXTS = [
    "plain",
    'tab\tand "quotes"',
    "two\nlines",
    "=1+1",
    "é 😀",
    "<think>a</think><answer>b</answer>",
]


def _rows():
    return [
        {"index": place, "question": "q", "prediction": text} for place, text in enumerate(TEXTS)
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read_back(tmp_path, suffix):
    path = tmp_path / f"model_MathVista_MINI{suffix}"
    write_predictions(path, _rows())
    file = read_predictions(path)
    assert [one.text for one in file.predictions] == TEXTS
    assert [one.index for one in file.predictions] == [str(place) for place in range(len(TEXTS))]
    assert file.columns[0]["question"] == "q"


def test_a_spreadsheet_cuts_long_cells_and_the_other_kinds_do_not(tmp_path):
    rows = [{"index": 1, "prediction": "x" * 40_000}]
    for suffix, length in ((".xlsx", 32_767), (".tsv", 40_000), (".json", 40_000)):
        write_predictions(tmp_path / f"p{suffix}", rows)
        assert len(read_predictions(tmp_path / f"p{suffix}").predictions[0].text) == length


def test_samples_are_told_apart(tmp_path):
    path = tmp_path / "p.jsonl"
    write_predictions(path, [{"index": 1, "prediction": text} for text in "abc"])
    assert [one.sample for one in read_predictions(path).predictions] == [0, 1, 2]
    write_predictions(
        path, [{"index": 1, "prediction": "a", "sample": 4, "finish_reason": "length"}]
    )
    (one,) = read_predictions(path).predictions
    assert one.sample == 4 and one.truncated


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.csv", b"", "is none of"),
        ("p.jsonl", b'{"index": 1}\n', "row 1 has no 'prediction'"),
        ("p.jsonl", b'{"prediction": "a"}\n', "row 1 has no 'index'"),
        ("p.jsonl", b"{", "line 1"),
        ("p.jsonl", b"[1]\n", "line 1"),
        ("p.jsonl", b'{"index": 1, "prediction": "a", "sample": "x"}\n', "whole numbers"),
        ("p.jsonl", b'{"index": 1, "prediction": "a", "tokens": Infinity}\n', "whole numbers"),
        ("p.jsonl", b"", "no predictions"),
        ("p.json", b'{"index": {"0": 1}, "prediction": {"0": "a"}}', "a record per row"),
        ("p.tsv", b"index\tprediction\n1\ta\n2\n", "row 2 has 1 cells, not 2"),
        ("p.json", b"[" * 5000, "nested"),
        ("p.json", b'"text"', "no object"),
        ("p.tsv", b"\xff\xff\n", "UTF-8"),
        ("p.xlsx", b"PK\x03\x04 no", "spreadsheet"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        read_predictions(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        read_predictions(tmp_path / "gone.tsv")


def test_a_question_that_comes_again_is_a_sample_only_where_all_do(tmp_path):
    path = tmp_path / "p.jsonl"
    write_predictions(path, [{"index": index, "prediction": "a"} for index in (1, 2, 2)])
    with pytest.raises(UserError, match="index '2' has 2 predictions and index '1' 1"):
        read_predictions(path)


def test_a_lone_surrogate_becomes_a_question_mark(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"index": "\\ud800", "prediction": "A \\udc00"}\n')
    (one,) = read_predictions(path).predictions
    assert (one.index, one.text) == ("?", "A ?")


def test_a_file_without_the_columns_of_the_questions_says_what_to_give(tmp_path):
    path = tmp_path / "p.jsonl"
    write_predictions(path, [{"index": 1, "prediction": "a"}])
    with pytest.raises(UserError, match="--data"):
        rows_of_file(benchmark_named("mathvista"), read_predictions(path))
    whole = {"question": "q", "answer": "A", "skill": "x", "prediction": "a"}
    write_predictions(
        path, [{"index": 1, **whole}, {"index": 2, "question": "q"} | {"prediction": "a"}]
    )
    with pytest.raises(UserError, match=r"row 2 .* 'answer'"):
        rows_of_file(benchmark_named("logicvista"), read_predictions(path))
