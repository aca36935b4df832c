"""Files and records of other forms: named in the refusal, with the way to ours."""

import gzip
import json
import pickle
import re

import pytest
from PIL import Image

from vlaa_jax.data.commands.cli import run
from vlaa_jax.data.judging.check import check
from vlaa_jax.data.judging.judge import MAX_KINDS, Findings, Judge
from vlaa_jax.data.records.foreign_forms import remarks
from vlaa_jax.data.sources.record_file import RecordFile
from vlaa_jax.data.sources.source import Reject
from vlaa_jax.data.sources.table import open_source
from vlaa_jax.schema import Record, UserError

OTHERS = {
    "viewer": ({"row_idx": 0, "row": {"question": "q"}}, "the record is in 'row'"),
    "R1-V": ({"image": "a.png", "problem": "?", "solution": "<answer> 3 </answer>"}, "R1-V"),
    "query": ({"image": "a.png", "query": "?", "label": 3}, "question=query"),
    "capitals": ({"Image": "a.png", "Prompt": "?"}, "question=Prompt"),
    "among records": ({"image": "a.png", "question": None, "messages": []}, "a conversation"),
}


@pytest.fixture
def images(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    return tmp_path


@pytest.mark.parametrize("name", OTHERS)
def test_a_record_of_another_form_is_said_to_be_one(images, capsys, name):
    raw, what = OTHERS[name]
    (images / "r.json").write_text(json.dumps([raw, raw]))
    assert run(["check", str(images / "r.json"), f"--images={images}"]) == 2
    said = capsys.readouterr().err
    assert re.search(f"record 0.*field 'question': missing; .*{what}.*docs/data.md", said)
    assert run(["check", str(images / "r.json"), f"--images={images}", "--kind=sft"]) == 1
    said = capsys.readouterr().out
    assert re.search(f"record 0.*{what}.* \\(2 like this\\)", said) and "record 1" not in said


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"PAR1\x15\x04", "a Parquet table"),
        (gzip.compress(b"[]", mtime=0), "compressed by gzip"),
        (b"PK\x03\x04rest", "a zip archive"),
        (pickle.dumps([{"question": "q"}], 4), "a pickle, which is never read"),
        (b"<!DOCTYPE html><html>", "a web page; was the download refused"),
        (b"id,question,image\n1,q,a.png\n", "a table as text"),
    ],
)
def test_a_file_that_is_no_json_is_said_to_be_what_it_is(tmp_path, data, what):
    (tmp_path / "r.json").write_bytes(data)
    with pytest.raises(
        UserError, match=rf"r\.json: begins with .*this looks like {what}.*data\.md"
    ):
        RecordFile(tmp_path / "r.json")


QUESTIONS = {
    "mark": ("<image>\nHow many?", 1, "holds <image>, which is read as text: take it out"),
    "numbered": ("<image 1> How many?", 1, "holds <image>"),
    "too many": ("<image><image> How many?", 1, "has 2 marks like <image> for 1 images"),
    "too few": ("<image> How many?", 2, "has 1 marks like <image> for 2 images"),
    "between": ("Is <image> larger than <image>?", 2, "puts its 2 images between its words"),
    "swapped": ("<image 2> or <image 1>?", 2, "puts its 2 images between its words"),
    "in front": ("<image>\n<image> Which?", 2, "holds <image>"),
    "token": ("<|im_end|> How many?", 1, "holds '<|im_end|>', a token of a chat format"),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_what_is_hardly_meant_is_remarked(name):
    question, count, what = QUESTIONS[name]
    found = list(remarks(Record("1", question, ("a.png",) * count)))
    assert [(field, what in text) for field, text in found] == [("question", True)]


def test_an_answer_is_looked_at_too_and_plain_text_has_no_remark():
    answer = "<think> <image> </think>\n\n<answer> </answer>"
    found = [text for _, text in remarks(Record("1", "How many?", ("a.png",), answer=answer))]
    assert len(found) == 2 and "learnt as text" in found[0] and "empty <answer>" in found[1]
    assert not list(remarks(Record("1", "Is 1 < 2 > 0? <b>image</b>", ("a.png",))))


def test_check_counts_remarks_and_names_the_first(images, capsys):
    base = {"question": "<image> q", "gt": "1", "verifier_type": "digit", "image": "a.png"}
    lines = [{**base, "id": f"r{i}", **({"question": "q"} if i < 2 else {})} for i in range(9)]
    lines.append({**base, "id": "blank", "question": " <image>\n"})
    file = images / "r.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = check(open_source(file, images, kind="grpo"), Judge(kind="grpo"))
    assert report.problems == 1 and report.remarks.total() == 7
    assert run(["check", str(file), f"--images={images}", "--quiet"]) == 1
    said = capsys.readouterr().out
    assert "note: " in said and "line 3 (id 'r2'): field 'question': holds <image>" in said
    assert "(7 like this)" in said and "read as grpo, a guess" in said
    assert "line 10 (id 'blank'): field 'question': empty but for '<image>'" in said


def test_problems_are_shown_by_kind_with_the_first_and_the_count(images, capsys):
    base = {"question": "q", "gt": "1", "verifier_type": "digit", "image": "a.png"}
    raw = [{**base, "id": str(i)} for i in range(30)]
    for i in range(3, 20):
        raw[i]["image"] = f"gone/{i}.png"
    raw[25]["gt"] = ""
    (images / "r.json").write_text(json.dumps(raw))
    assert run(["check", str(images / "r.json"), f"--images={images}", "--quiet"]) == 1
    said = capsys.readouterr().out
    assert "record 3 (id '3'): field 'image'" in said and "(17 like this)" in said
    assert "record 4 " not in said and "record 25 (id '25'): field 'gt': empty" in said
    assert "18 problems in all; list them with --rejects FILE" in said


def test_published_counts_stand_beside_sources_of_vlaa_only(images, capsys):
    base = {"question": "q", "gt": "1", "verifier_type": "digit"}
    (images / "mine").mkdir()
    (images / "a.png").rename(images / "mine/a.png")
    (images / "r.json").write_text(json.dumps([{**base, "image": "mine/a.png"}]))
    assert run(["check", str(images / "r.json"), f"--images={images}", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "clevr_math" not in said and "25,195" not in said and "mine" in said


def test_kinds_are_bounded():
    findings = Findings()
    for number in range(5000):
        name = "".join(chr(97 + int(d)) for d in str(number))
        findings.add(Reject("f", number, None, "", "gt", f"odd {name}"))
    assert len(findings) <= MAX_KINDS + 1 and findings.total() == 5000
