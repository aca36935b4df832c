"""Public tables and hub originals, as files on disk."""

import base64
import csv
import io
import json

import pytest
from PIL import Image

from vlaa_jax.evaluate.benchmarks import LEADERBOARD, benchmark_named
from vlaa_jax.evaluate.miniature.tables import picture, write_tables
from vlaa_jax.evaluate.opening import open_all
from vlaa_jax.evaluate.questions import md5_of, open_questions, plain_index
from vlaa_jax.evaluate.score import stored_row
from vlaa_jax.evaluate.scoring.profiles import PROFILES
from vlaa_jax.parallel import hosts
from vlaa_jax.schema import UserError
from vlaa_jax.settings.build import build
from vlaa_jax.settings.evaluate import EvaluateSettings

LOGIC = benchmark_named("logicvista")


def _table(path, rows, header=("index", "image", "question", "answer", "skill")):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(header)
        writer.writerows(rows)
    return path


def _open(root, benchmark=LOGIC):
    return open_questions(benchmark, root, check_digest=False)


def test_the_miniature_is_read_as_it_was_written(tmp_path):
    write_tables(tmp_path)
    for benchmark in LEADERBOARD:
        questions = _open(tmp_path, benchmark)
        assert len(questions.rows) in (5, 6, 8, 10, 20)
        for place in (0, len(questions.rows) - 1):
            (data,) = questions.images(place)
            assert Image.open(io.BytesIO(data)).size == (168, 56)
            assert benchmark.prompt(
                stored_row(benchmark, questions.rows[place], PROFILES["2025-04"])
            )
    before = {path.name: md5_of(path) for path in tmp_path.iterdir()}
    write_tables(tmp_path)
    assert {path.name: md5_of(path) for path in tmp_path.iterdir()} == before


def test_images_are_shared_listed_and_left_out(tmp_path):
    one, two = picture(1, "red"), picture(2, "blue")
    _table(
        tmp_path / "LogicVista.tsv",
        [
            ["7", one, 'said "so"\nover\ttwo lines', "A", "inductive"],
            ["8", "7", "shares", "B", "inductive"],
            ["9", f"['{one}', '{two}']", "two images", "C", "spatial"],
            ["10", "", "no image", "D", "spatial"],
            ["11", two, "é last", "nan", "deductive"],
        ],
    )
    questions = _open(tmp_path)
    assert [row["index"] for row in questions.rows] == ["7", "8", "9", "11"]
    assert questions.without_image == 1
    assert questions.rows[0]["question"] == 'said "so"\nover\ttwo lines'
    assert questions.rows[3]["answer"] is None
    images = [questions.images(place) for place in range(4)]
    assert images[1] == images[0] == [base64.b64decode(one)]
    assert images[2] == [base64.b64decode(one), base64.b64decode(two)]
    assert images[3] == [base64.b64decode(two)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["1", "abc!", "q", "A", "spatial"]], "unknown"),
        ([["1", "!" * 100, "q", "A", "spatial"]], "not base64"),
        ([["1", "99", "q", "A", "spatial"]], "row '99'"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(tmp_path, rows, message):
    _table(tmp_path / "LogicVista.tsv", rows)
    questions = _open(tmp_path)
    with pytest.raises(UserError, match=f"image of row 1.*{message}"):
        questions.images(0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no questions"),
        ([["1", "x" * 80, "q", "A"]], "row 1 has 4 cells, not 5"),
        ([["1", "x" * 80, "q", "A", "s"]] * 2, "row 2 repeats index 1"),
        ([["", "x" * 80, "q", "A", "s"]], "row 1 has no index"),
        ([["1", "x" * 80, "q", "", "s"]], "column 'answer'"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_line(tmp_path, rows, message):
    _table(tmp_path / "LogicVista.tsv", rows)
    with pytest.raises(UserError, match=message) as caught:
        _open(tmp_path)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_table_are_refused(tmp_path):
    path = tmp_path / "LogicVista.tsv"
    for data, message in (
        (b"index\timage\n\xff\xfe\t1\n", "not UTF-8"),
        (b"a\tb\n1\t2\n", "no column 'index'"),
        (b"", "no column 'index'"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=message):
            _open(tmp_path)
    with pytest.raises(UserError, match="MD5 is"):
        open_questions(LOGIC, tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="neither"):
        _open(tmp_path)


def _records(tmp_path, name, records, suffix="jsonl"):
    folder = tmp_path / name
    folder.mkdir()
    if suffix == "jsonl":
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "data.jsonl").write_text(text)
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pytest.importorskip("pyarrow").Table.from_pylist(records)
        parquet.write_table(table, folder / "testmini-0.parquet")
    return folder


def test_an_original_in_parquet_becomes_the_public_columns(tmp_path):
    image = {"bytes": base64.b64decode(picture(3, "green")), "path": None}
    record = {
        "pid": "5",
        "question": "Which?",
        "query": "Hint: the letter.\nQuestion: Which?",
        "image": "images/5.jpg",
        "decoded_image": image,
        "choices": ["cat", "dog"],
        "answer": "dog",
        "question_type": "multi_choice",
        "answer_type": "text",
        "metadata": {"task": "figure", "skills": ["logic"]},
    }
    _records(tmp_path, "MathVista_MINI", [record], "parquet")
    questions = _open(tmp_path, benchmark_named("mathvista"))
    assert questions.rows[0]["answer_option"] == "B"
    assert questions.rows[0]["question"].startswith("Hint")
    assert questions.rows[0]["skills"] == "['logic']"
    assert questions.images(0) == [image["bytes"]]


def test_an_original_in_json_lines_reads_images_inside_its_folder_only(tmp_path):
    base = {"question": "q", "answer": ["A", "C"], "skill": ["spatial"]}
    folder = _records(
        tmp_path,
        "LogicVista",
        [{**base, "image": "a.png"}, {**base, "image": "../b.png"}, {**base, "image": "gone.png"}],
    )
    (folder / "a.png").write_bytes(b"data")
    (tmp_path / "b.png").write_bytes(b"secret")
    questions = _open(tmp_path)
    assert questions.rows[0]["answer"] == "A, C"
    assert questions.images(0) == [b"data"]
    for place in (1, 2):
        with pytest.raises(UserError):
            questions.images(place)


def test_options_of_the_wemath_original_are_taken_apart(tmp_path):
    record = {"ID": "p1", "key": "2steps_1", "question": "q", "answer": "B"}
    record |= {"option": "A. 5 cm; B. 6: one; C. No correct answer", "image_path": "x.png"}
    _records(tmp_path, "WeMath", [record])
    row = _open(tmp_path, benchmark_named("wemath")).rows[0]
    assert [row.get(letter) for letter in "ABCD"] == ["5 cm", "6: one", "No correct answer", None]


def test_an_index_is_the_same_however_it_is_written():
    assert [plain_index(value) for value in (7, 7.0, "7", " 7 ", "7.0")] == ["7"] * 5
    assert plain_index("a.0") == "a.0"


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("mathvista", {"metadata": "text"}),
        ("mathvista", {"choices": 5}),
        ("mathvision", {"options": 5}),
    ],
)
def test_a_field_of_another_kind_is_told_with_its_record(tmp_path, name, record):
    benchmark = benchmark_named(name)
    folder = tmp_path / benchmark.dataset
    folder.mkdir()
    (folder / "a.jsonl").write_text(json.dumps({"image": "a.png", **record}))
    with pytest.raises(UserError, match="record 1 has a field"):
        open_questions(benchmark, tmp_path)
    (folder / "a.jsonl").write_text(json.dumps({"image": {"bytes": 5}}))
    with pytest.raises(UserError, match="no questions with an image"):
        open_questions(benchmark, tmp_path)


def test_options_in_one_text_are_read_at_once_however_they_are_spaced():
    record = {"option": " A. one ; B : two;  C.x" + " " * 100_000 + "y;"}
    row = benchmark_named("wemath").from_hub(record, 0)
    assert (row["A"], row["B"], row["C"][-2:]) == ("one", "two", " y")


def test_a_host_that_does_not_write_leaves_the_miniature_alone(tmp_path, monkeypatch):
    write_tables(tmp_path)
    before = [path.stat().st_mtime_ns for path in tmp_path.iterdir()]
    monkeypatch.setattr(hosts, "_link", hosts._Link(index=1, count=2))
    settings = build(EvaluateSettings, {"data": {"root": "embedded"}})
    assert len(open_all(settings, tmp_path)) == len(LEADERBOARD)
    assert [path.stat().st_mtime_ns for path in tmp_path.iterdir()] == before
