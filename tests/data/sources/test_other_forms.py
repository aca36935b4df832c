"""Conversations and Parquet: read in place, written as records, and both the same."""

import io
import json
import threading

import pytest
from PIL import Image

from vlaa_jax.data.commands.cli import run
from vlaa_jax.data.judging.judge import Judge, examine
from vlaa_jax.data.sources.conversations import Conversations
from vlaa_jax.data.sources.parquet import ParquetRecords
from vlaa_jax.data.sources.record_file import RecordFile
from vlaa_jax.data.sources.source import Reject
from vlaa_jax.data.sources.table import open_source
from vlaa_jax.schema import Record, UserError
from vlaa_jax.settings import by_source


def talk(*turns, field="conversations", names=("from", "value"), **rest):
    return {field: [dict(zip(names, turn, strict=True)) for turn in turns], **rest}


ASKED, SAID = ("human", "<image>\nHow many?"), ("gpt", "Two.")
LLAVA = talk(ASKED, SAID, id=7, image="a/b.png", weight=2)
CHAT = talk(
    ("user", [{"type": "image"}, {"type": "text", "text": "How many?"}]),
    ("assistant", "Two."),
    field="messages",
    names=("role", "content"),
    images=["a/b.png"],
)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images/a").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "images/a/b.png")
    return tmp_path


def write(root, *raw, lines=False):
    path = root / "talk.json"
    path.write_text("\n".join(map(json.dumps, raw)) if lines else json.dumps(raw))
    return path


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("raw", [LLAVA, CHAT], ids=["llava", "chat"])
def test_one_round_is_one_record(root, raw, lines):
    source = open_source(write(root, raw, raw, lines=lines), root / "images", kind="sft")
    assert type(source) is Conversations and len(source) == 2
    first = source[0]
    assert (first.question, first.answer, first.images) == ("How many?", "Two.", ("a/b.png",))
    assert first.id == str(raw.get("id", "talk-000000")) and first.source == "a"
    assert first.meta == ({"weight": 2} if raw is LLAVA else {})
    assert source.images(first)[0].size == (40, 30)


def test_what_is_said_is_a_gold_where_a_verifier_scores_it(root):
    columns = by_source.columns("verifier_type:=open_ended")
    for kind in ("grpo", None):
        record = open_source(write(root, LLAVA), kind=kind, columns=columns)[0]
        assert (record.gt, record.answer, record.verifier_type) == ("Two.", None, "open_ended")
    with pytest.raises(UserError, match="field 'verifier_type': missing"):
        open_source(write(root, LLAVA), kind="grpo")[0]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (talk(ASKED, SAID, ASKED, SAID), "4 turns, 2 of them answers; a record is one question"),
        (talk(SAID, ASKED), "2 turns, 1 of them answers"),
        (talk(("system", "Be brief."), ASKED, SAID), "begins with a system prompt"),
        (talk(ASKED, ("gpt", None)), "no object with the texts 'from' and 'value'"),
        (talk(ASKED, SAID), "has 1 marks like <image> for 0 images"),
        (talk(("human", "Is <image> <image>?"), SAID, image=["a", "b"]), "puts its 2 images"),
        ({"conversations": [1, 2]}, "no object with the texts"),
        ({"conversations": []}, "0 turns"),
        ({"x": 1}, "field 'conversations': missing"),
    ],
)
def test_nothing_is_left_out_of_a_conversation(root, raw, words):
    found = open_source(write(root, LLAVA, raw), kind="sft").read(1)
    assert isinstance(found, Reject) and words in str(found) and "record 1" in str(found)


def test_a_conversation_may_name_its_image_otherwise(root):
    raw = talk(ASKED, SAID, picture="a/b.png")
    columns = by_source.columns("image=picture")
    record = open_source(write(root, raw), kind="sft", columns=columns)[0]
    assert (record.images, record.question, record.meta) == (("a/b.png",), "How many?", {})


def test_a_mark_behind_the_only_question_is_taken_out_too(root):
    raw = talk(("human", "How many?\n<image>"), SAID, image="a/b.png")
    assert open_source(write(root, raw), kind="sft")[0].question == "How many?"


def png(size, form="PNG"):
    data = io.BytesIO()
    Image.new("RGB", size, "blue").save(data, form)
    return {"bytes": data.getvalue(), "path": None}


ROWS = [
    {"uid": f"u{i}", "picture": png((40 + i, 30), "JPEG" if i % 2 else "PNG"), "problem": "How?"}
    | {"solution": i, "level": i % 3}
    for i in range(7)
]
COLUMNS = "id=uid,image=picture,question=problem,gt=solution,verifier_type:=digit"


def table(path, rows, groups=3):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=groups)
    return path


def test_rows_are_records_by_a_mapping_of_columns(root):
    columns = by_source.columns(COLUMNS)
    (root / "set").mkdir()
    table(root / "set/train-0.parquet", ROWS[:4])
    table(root / "set/train-1.parquet", ROWS[4:])
    source = open_source(root / "set", kind="grpo", columns=columns)
    assert type(source) is ParquetRecords and len(source) == 7
    for i, record in enumerate(source):
        assert record == Record(
            f"u{i}",
            "How?",
            (f"set/{i:06d}-0.{'jpg' if i % 2 else 'png'}",),
            str(i),
            "digit",
            source="set",
            meta={"level": i % 3},
        )
    sizes = []
    threads = [  # row groups are read again and again
        threading.Thread(target=lambda i=i: sizes.append((i, source.images(source[i])[0].size)))
        for i in [*range(7), *reversed(range(7))]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(sizes)) == [(i, (40 + i, 30)) for i in range(7)]


def test_heldout_records_beside_mapped_ones_may_have_fields_of_their_own(root):
    raw = {"id": "h", "question": "How?", "image": "a/b.png", "gt": "A", "verifier_type": "mcq"}
    columns = by_source.columns(COLUMNS)
    record = open_source(write(root, raw), kind="grpo", columns=columns)[0]
    assert (record.id, record.gt, record.verifier_type) == ("h", "A", "mcq")
    rows = [{"id": "p", "question": "q", "gt": "1", "image": png((9, 9))}]
    source = open_source(table(root / "h.parquet", rows), kind="grpo", columns=columns)
    assert (source[0].verifier_type, source.images(source[0])[0].size) == ("digit", (9, 9))


def test_images_may_be_lists_or_missing(root):
    base = {"question": "q", "answer": "a"}
    rows = [{**base, "images": [png((9, 9)), png((8, 8))]}, {**base, "images": []}]
    source = open_source(table(root / "t.parquet", rows), kind="sft")
    assert [image.size for image in source.images(source[0])] == [(9, 9), (8, 8)]
    assert source[1].images == () and source[1].id == "t-000001"


@pytest.mark.parametrize(
    ("change", "columns", "words"),
    [
        ({}, "question=prompt", "has no column prompt; there are uid, picture, problem"),
        ({"picture": {"bytes": None, "path": "x.png"}}, COLUMNS, "holds only a path, no bytes"),
        ({"problem": ""}, COLUMNS, "field 'question': empty"),
        ({}, "image=picture", "field 'question': missing; .*question=problem"),
    ],
)
def test_what_is_missing_is_named(root, change, columns, words):
    path = table(root / "t.parquet", [{**ROWS[0], **change}])
    with pytest.raises(UserError, match=words):
        open_source(path, kind="grpo", columns=by_source.columns(columns))[0]


def test_a_damaged_file_is_one_line(root):
    path = table(root / "t.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="is no sound Parquet file"):
        open_source(path)
    path.write_bytes(b"PAR1" + bytes(100))
    assert run(["check", str(path)]) == 2


def test_values_that_are_none_are_one_line(root):
    """Texts that are no UTF-8 and times beyond the calendar, in a file that is whole."""
    pyarrow = pytest.importorskip("pyarrow")
    texts = pyarrow.array([b"ok", b"\xff"], pyarrow.binary()).view(pyarrow.string())
    times = pyarrow.array([0, 2**62], pyarrow.timestamp("us"))
    for name, column in (("texts", texts), ("times", times)):
        path = root / f"{name}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"question": ["a", "b"], name: column}), path)
        with pytest.raises(UserError, match=rf"{name}\.parquet: cannot be read: ") as refused:
            open_source(path)
        assert str(refused.value).isprintable()


def test_a_file_without_the_images_of_the_first_is_named(root):
    (root / "set").mkdir()
    table(root / "set/0.parquet", ROWS[:2])
    table(root / "set/1.parquet", [{"uid": "u", "problem": "How?", "solution": 1}])
    with pytest.raises(UserError, match=r"1\.parquet: has no column picture"):
        open_source(root / "set", columns=by_source.columns(COLUMNS))


@pytest.mark.parametrize("form", ["parquet", "talk", "columns"])
def test_converted_records_are_those_read_in_place(root, form, capsys):
    images, out = root / "images", root / "mine.jsonl"
    if form == "parquet":
        path, mapping = table(root / "t.parquet", ROWS), COLUMNS
    elif form == "talk":
        path, mapping = write(root, LLAVA, {**CHAT, "id": "c"}, talk(SAID)), ""
    else:
        path, mapping = root / "r.json", "question=problem,verifier_type:=mcq"
        path.write_text(json.dumps([{"id": "x", "problem": "?", "image": "a/b.png", "gt": "A"}]))
    argv = [f"--columns={mapping}", f"--images={images}", "--quiet"]
    status = int(form == "talk")  # one of them is refused, and said to be
    assert run(["convert", str(path), *argv, f"--out={out}"]) == status
    assert ("talk.json: record 2" in capsys.readouterr().out) == bool(status)
    assert run(["convert", str(path), *argv, f"--out={out}"]) == 2  # it is there already
    before = open_source(path, images, kind=None, columns=by_source.columns(mapping))
    after = RecordFile(out, images)
    kept = [one.record for one in examine(before, Judge(), whole=True) if not one.rejects]
    assert kept == list(after)
    for old, new in zip(kept, after, strict=True):
        assert [i.tobytes() for i in before.images(old)] == [i.tobytes() for i in after.images(new)]
    assert run(["check", str(out), f"--images={images}", "--quiet"]) == 0


def test_a_folder_of_nothing_and_a_path_to_nothing_are_said(root):
    with pytest.raises(UserError, match=r"holds no finished build .*, TFDS set or Parquet"):
        open_source(root / "images")
    with pytest.raises(UserError, match="does not exist"):
        open_source(root / "nowhere.json")
    with pytest.raises(UserError, match="no such image folder"):
        open_source(write(root, LLAVA), root / "nowhere")
