"""What is no sample is left out with its reason: images, rows and fields of every kind."""

import json

import pytest

from source_files import arxiv, collected, picture, put
from vlaa_jax.pipeline.collect import collect
from vlaa_jax.pipeline.embedded import draw, write_sources
from vlaa_jax.pipeline.sources import SOURCES
from vlaa_jax.pipeline.sources.formats import Unusable
from vlaa_jax.schema import UserError
from vlaa_jax.settings.pipeline import CollectSettings


def test_a_row_that_no_file_can_hold_is_left_out_and_null_is_missing(tmp_path):
    row = {"image": "images/a.jpg", "question": "Which?", "label": "A"}
    bad = [
        row | {"id": "long" * 90, "options": ["x", "y"]},
        row | {"id": "half", "options": ["x\ud800", "y"]},
    ]
    good = row | {"id": None, "options": ["x", "y"], "rationale": None}
    files = {"arxivqa.jsonl": [*bad, good], "images/a.jpg": picture(0, "JPEG")}
    (sample,), rejects = collected(tmp_path, "arxivqa", files)
    assert sample.meta["rationale"] == ""
    assert set(rejects.values()) == {"image name too long", "field options is not Unicode text"}


def test_images_that_are_links_out_of_the_folder_are_named_as_such(tmp_path):
    elsewhere = tmp_path / "another disk"
    elsewhere.mkdir()
    (elsewhere / "a.jpg").write_bytes(picture(0, "JPEG"))
    row = {"id": "a", "image": "images/a.jpg", "question": "?", "options": ["x", "y"], "label": "A"}
    folder = put(tmp_path / "in" / "arxivqa", {"arxivqa.jsonl": [row]})
    (folder / "images").symlink_to(elsewhere)
    samples, rejects = collected(tmp_path, "arxivqa", {})
    assert not samples
    assert set(rejects.values()) == {"image is a link out of the source's folder"}


def test_an_image_is_taken_once_whatever_its_name(tmp_path):
    files = arxiv(4) | {"images/3.png": picture(1)}
    samples, rejects = collected(tmp_path, "arxivqa", files)
    assert [sample.id for sample in samples] == ["arxivqa-0", "arxivqa-1", "arxivqa-2"]
    assert rejects == {"arxivqa.jsonl#3": "image used before"}


def test_bad_images_are_rejected_with_a_reason(tmp_path):
    files = arxiv(6) | {
        "images/0.png": b"",
        "images/1.png": picture(1)[:60],
        "images/2.png": b"<html>gone</html>",
        "images/3.png": picture(3, size=(1, 300)),
    }
    files["arxivqa.jsonl"][4]["image"] = "../../../etc/passwd"
    samples, rejects = collected(tmp_path, "arxivqa", files)
    assert [sample.id for sample in samples] == ["arxivqa-5"]
    assert list(rejects.values()) == [
        "image of unknown format",
        "image corrupt",
        "image of unknown format",
        "image too narrow",
        "image missing",
    ]


def test_broken_rows_are_rejected_and_the_others_taken(tmp_path):
    files = arxiv(2)
    good = [json.dumps(row).encode() for row in files["arxivqa.jsonl"]]
    deep = b'{"id": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    lines = [
        good[0],
        b'{"id": "x", "image"',
        b'{"id": "\xff"}',
        deep,
        b'{"id": 1}',
        good[0],
        good[1],
    ]
    files["arxivqa.jsonl"] = b"\n".join(lines)
    samples, rejects = collected(tmp_path, "arxivqa", files, unique_images=False)
    assert [sample.id for sample in samples] == ["arxivqa-0", "arxivqa-1"]
    assert sorted(rejects.values())[-3:] == ["row is not JSON"] * 3
    assert "id used before" in rejects.values()


def test_limits_draw_by_seed(tmp_path):
    def drawn(seed):
        folder = tmp_path / str(seed)
        samples, _ = collected(folder, "arxivqa", arxiv(12), limits="arxivqa=4", seed=seed)
        return [sample.id for sample in samples]

    assert len(drawn(0)) == 4
    assert drawn(0) != drawn(1)


@pytest.mark.parametrize("name", SOURCES)
def test_a_folder_without_the_files_is_one_line(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / "work").mkdir()
    with pytest.raises(UserError, match=r"holds no"):
        collect(
            CollectSettings(f"{name}={tmp_path / name}"), tmp_path / "work", tmp_path / "images"
        )


WEIRD = (
    None,
    7,
    True,
    "",
    "x" * 200_000,
    "\ud800",
    [],
    {},
    ["a"],
    [[1], [2]],
    1e300,
    "a\0b",
    "../x",
)


@pytest.mark.parametrize("name", SOURCES)
def test_no_field_of_another_form_gets_past_an_adapter(tmp_path, name):
    drawn = [one for one in draw(40, 0) if one.source == name]
    if not drawn:
        drawn = draw(40, 0)[:1]
        files = {
            "docvqa": {
                "train.jsonl": [
                    {"questionId": 1, "question": "?", "image": "a.png", "answers": ["b"]}
                ]
            },
            "vizwiz": {
                "train.json": [{"image": "a.png", "question": "?", "answers": [{"answer": "b"}]}]
            },
        }[name]
        put(tmp_path / name, files)
    else:
        write_sources(tmp_path, drawn[:1])
    folder = tmp_path / name
    assert all(make().gt for _, make in SOURCES[name].adapter(folder))
    for path in folder.glob("*.json*"):
        (row,) = [json.loads(line) for line in path.read_text().splitlines()]
        changed = [row | {field: value} for field in row for value in WEIRD]
        changed += [{k: v for k, v in row.items() if k != field} for field in row]
        path.write_text("\n".join(json.dumps(x) for x in [*changed, *WEIRD, [row]]))
        for _, make in SOURCES[name].adapter(folder):
            try:
                make().image.read()
            except Unusable as refused:
                assert refused.reason and len(refused.reason) < 60
        path.write_text(json.dumps(row))
