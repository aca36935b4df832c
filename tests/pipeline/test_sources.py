"""Adapters read small files in the public forms of their sources."""

import json

import pytest

from source_files import collected, picture, put, talk
from vlaa_jax.pipeline.sources import SOURCES
from vlaa_jax.pipeline.sources.arxivqa import letters_of
from vlaa_jax.pipeline.sources.formats import Unusable
from vlaa_jax.pipeline.sources.math_puma import gold_of
from vlaa_jax.schema import VERIFIER_TYPES, UserError


def test_clevr_math_with_its_scenes(tmp_path):
    rows = [
        {
            "id": "CLEVR_train_000007",
            "image": "a.png",
            "conversations": talk("<image>\nHow many?", "5"),
        },
        {"id": "x", "image": "b.png", "conversations": talk("How many?", "The answer is 2.")},
        {"id": "y", "image": "c.png", "conversations": talk("How many?", "2 or 3")},
    ]
    thing = {"size": "small", "color": "cyan", "material": "rubber", "shape": "sphere"}
    scenes = [{"image_filename": "CLEVR_train_000007.png", "objects": [thing]}]
    files = {"train.jsonl": rows, "scenes.jsonl": scenes}
    files |= {f"images/{name}.png": picture(i) for i, name in enumerate("abc")}
    (first, second), rejects = collected(tmp_path, "clevr_math", files)
    assert (first.question, first.gt, first.verifier_type) == ("How many?", "5", "digit")
    assert first.context == "The scene holds 1 objects: small cyan rubber sphere."
    assert (second.gt, second.context) == ("2", "")
    assert rejects == {"train.jsonl#2": "gold is not one number"}
    assert (tmp_path / "work" / "images" / first.image).read_bytes() == files["images/a.png"]
    assert first.image == "clevr_math/images/CLEVR_train_000007.png"


def test_parquet_with_the_images_inside(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = [{"bytes": picture(i), "path": f"{i}.png"} for i in range(4)] + [None]
    conversations = [talk(f"How many, {i}?", str(i)) for i in range(5)]
    table = pa.table(
        {"id": [str(i) for i in range(5)], "image": images, "conversations": conversations}
    )
    (tmp_path / "in" / "clevr_math").mkdir(parents=True)
    pq.write_table(table, tmp_path / "in" / "clevr_math" / "0000.parquet", row_group_size=2)
    samples, rejects = collected(tmp_path, "clevr_math", {})
    assert [sample.gt for sample in samples] == ["0", "1", "2", "3"]
    assert [sample.origin for sample in samples][2] == "0000.parquet#1.0"
    assert rejects == {"0000.parquet#2.0": "image missing"}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"", "cannot be read as Parquet"),
        (lambda data: data[:-20], "cannot be read as Parquet"),
        (lambda data: data[:4] + b"\xff" * 4000 + data[4004:], "cannot be read as Parquet"),
        (None, "no column 'image'"),
    ],
)
def test_a_parquet_file_that_is_damaged_or_of_another_kind_is_told_in_one_line(
    tmp_path, damage, said
):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = put(tmp_path / "in" / "clevr_math", {})
    folder.mkdir(parents=True)
    columns = {"id": ["a"], "conversations": [talk("How many?", "3")]}
    if damage:
        columns["image"] = [{"bytes": picture(0, size=(60, 50)), "path": "a.png"}]
    path = folder / "0000.parquet"
    pq.write_table(pa.table(columns), path)
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=said):
        collected(tmp_path, "clevr_math", {})


def test_geoqa_is_explored_only_and_loses_its_instruction(tmp_path):
    asked = "How large is it?\nChoices:\nA:80°\nB:70°"
    question = f"<image>\nFirst reason, then answer like Answer: x.\nQuestion:{asked}"
    rows = [
        {
            "id": "geoqa_plus-1-2",
            "image": "a.png",
            "conversations": talk(question, "So 70. Answer:B"),
        },
        {"id": "geoqa_plus-1-3", "image": "b.png", "conversations": talk(question, "No idea")},
    ]
    files = {"train.jsonl": rows, "a.png": picture(0), "b.png": picture(1)}
    (sample,), rejects = collected(tmp_path, "geoqa170k", files)
    assert sample.question == asked
    assert (sample.gt, sample.uses, sample.verifier_type) == ("B", ("rl",), "mcq")
    assert list(rejects.values()) == ["gold is no option letter"]


def test_math_puma_reads_the_poorer_form_and_knows_the_richer(tmp_path):
    def row(image, gold, question="Find it."):
        rich = f"A square has side 2. {question}"
        pair = {"image_url": "", "instruction": rich, "output": f"So.\n†Answer: {gold}"}
        return pair | {
            "image_url_2": image,
            "instruction_2": question,
            "output_2": f"So.\n†Answer: {gold}",
        }

    rows = [
        row("gen_plane/1.png", "$4$"),
        row("gen_func/2.png", "a=3", "Give the function expression."),
        row("3.png", ""),
    ]
    files = {"train.json": json.dumps(rows).encode()}
    files |= {f"images/{r['image_url_2']}": picture(i) for i, r in enumerate(rows)}
    (first, second), rejects = collected(tmp_path, "math_puma", files)
    assert (first.question, first.gt) == ("Find it.", "$4$")
    assert first.context == "A square has side 2. Find it." == first.meta["text_question"]
    assert first.image.startswith("synthesis/")
    assert first.uses == ("sft", "rl") and second.uses == ("sft",)
    assert list(rejects.values()) == ["gold is not marked"]
    assert gold_of("x\n† answer：$\\frac{1}{2}$ ") == "$\\frac{1}{2}$"


@pytest.mark.parametrize(
    ("options", "label", "gold"),
    [
        (["A) x", "B) y"], "B", "B"),
        (["A) x", "B) y"], "B)", "B"),
        (["A) x", "B) y"], "B) y", "B"),
        (["(A) x", "(B) y"], "(A)", "A"),
        (["A. x", "B. y"], "y", "B"),
        (["A: x", "B: y"], " A: x", "A"),
        (["x", "y"], "y", "B"),
        (["Apples", "Bread"], "Bread", "B"),
        (["A) A", "B) B", "C) C"], "C", "C"),
    ],
)
def test_arxivqa_letters(options, label, gold):
    texts, letter = letters_of(options, label)
    assert letter == gold
    assert not any(text.startswith(("A)", "(A", "A.", "A:")) for text in texts)


@pytest.mark.parametrize(
    ("options", "label"),
    [
        (["A) x"], "A"),
        (["A) x", "C) y"], "A"),
        (["A) x", "B) y"], "C"),
        (["A) x", "B) y"], "B) x"),
        (["A) x", "B) y"], "none"),
        (["A) x", ""], "A"),
        ("A) x B) y", "A"),
        ([1, 2], "A"),
    ],
)
def test_arxivqa_labels_that_name_nothing_are_refused(options, label):
    with pytest.raises(Unusable):
        letters_of(options, label)


def test_arxivqa(tmp_path):
    row = {"id": "arxiv-1", "image": "images/1_2.jpg", "question": "Which?", "rationale": "r"}
    rows = [row | {"options": ["A) x", "B) y"], "label": "B) y"}]
    files = {"arxivqa.jsonl": rows, "images/1_2.jpg": picture(0, "JPEG")}
    (sample,), _ = collected(tmp_path, "arxivqa", files)
    assert (sample.question, sample.gt) == ("Which?\nA) x\nB) y", "B")
    assert sample.image.endswith(".jpg") and sample.license == "CC-BY-SA-4.0"


def test_docvqa_in_its_official_form(tmp_path):
    row = {"questionId": 3, "question": "What date?", "image": "documents/ffbf_1.png"}
    whole = {
        "data": [row | {"answers": ["May 1", "1 May"]}, row | {"questionId": 4, "answers": []}]
    }
    files = {"train_v1.0.json": json.dumps(whole).encode(), "documents/ffbf_1.png": picture(0)}
    (sample,), rejects = collected(tmp_path, "docvqa", files)
    assert (sample.id, sample.gt) == ("docvqa-3", "May 1")
    assert sample.meta["answers"] == ["May 1", "1 May"]
    assert list(rejects.values()) == ["field answers missing"]


def test_vizwiz_takes_the_majority_and_leaves_out_what_nobody_could_answer(tmp_path):
    def row(name, *said, answerable=1):
        answers = [{"answer": word, "answer_confidence": sure} for word, sure in said]
        return {
            "image": name,
            "question": "What is it?",
            "answers": answers,
            "answerable": answerable,
        }

    rows = [
        row("VizWiz_train_0.jpg", ("milk", "no"), ("Milk", "yes"), ("water", "yes")),
        row("VizWiz_train_1.jpg", ("a", "no"), ("b", "yes")),
        row("VizWiz_train_2.jpg", ("unanswerable", "yes"), ("unanswerable", "yes"), ("x", "yes")),
        row("VizWiz_train_3.jpg", ("x", "yes"), answerable=0),
    ]
    files = {"train.json": json.dumps(rows).encode()}
    files |= {f"train/VizWiz_train_{i}.jpg": picture(i, "JPEG") for i in range(4)}
    samples, rejects = collected(tmp_path, "vizwiz", files)
    assert [sample.gt for sample in samples] == ["milk", "b"]
    assert list(rejects.values()) == ["unanswerable"] * 2


def test_allava_joins_its_captions(tmp_path):
    def row(kind, number, *said):
        image = {"image": f"/allava_laion/images/{number}.jpeg", "url": "https://example.org/a"}
        return {"id": f"allava_laion_{kind}_{number}", "conversations": talk(*said), **image}

    files = {
        "ALLaVA-Instruct-LAION-4V.json": json.dumps(
            [row("inst", 7, "<image>\nWhy?", "So."), row("inst", 8, "?", "!")]
        ).encode(),
        "ALLaVA-Caption-LAION-4V.json": json.dumps(
            [row("cap", 9, "?", "other"), row("cap", 7, "?", "A cat.")]
        ).encode(),
        "images/7.jpeg": picture(0, "JPEG"),
        "images/8.jpeg": picture(1, "JPEG"),
    }
    (sample,), rejects = collected(tmp_path, "allava_laion", files)
    assert (sample.caption, sample.caption_model) == ("A cat.", "gpt-1106-preview")
    assert sample.image == "allava_laion/images/7.jpeg"
    assert list(rejects.values()) == ["caption missing"]


def sections(conclusion):
    parts = {"SUMMARY": "s", "CAPTION": "c", "REASONING": "r", "CONCLUSION": conclusion}
    return "\n".join(f"<{name}> {text} </{name}>" for name, text in parts.items())


def test_llava_cot_boxes_are_explored_and_the_rest_imitated(tmp_path):
    said = [
        ("coco/train2017/1.jpg", "Where? Give a bounding box.", sections("[0.1, 0.2, 0.5, 1].")),
        ("coco/train2017/2.jpg", "What is it?", sections("A dog.")),
        ("vg/VG_100K/3.jpg", "What?", sections("A cat.")),
        ("coco/train2017/4.jpg", "What?", "A cat."),
    ]
    rows = [
        {"id": str(i), "image": image, "conversations": talk(*words)}
        for i, (image, *words) in enumerate(said)
    ]
    files = {"train.jsonl": rows} | {
        f"image/{r['image']}": picture(i, "JPEG") for i, r in enumerate(rows)
    }
    (box, said), rejects = collected(tmp_path, "coco", files)
    assert (box.gt, box.verifier_type, box.uses) == ("[0.1, 0.2, 0.5, 1]", "iou", ("rl",))
    assert (said.thought, said.answer, said.uses) == ("s\n\nc\n\nr", "A dog.", ("sft",))
    assert box.image == "coco/train2017/1.jpg"
    assert list(rejects.values()) == ["trace without its four sections"]


def test_a_gold_that_cannot_be_scored_is_imitated_only(tmp_path):
    output = "So.\n†Answer: it rises on the left and falls on the right"
    row = {"image_url": "1.png", "instruction": "How does it run?", "output": output}
    files = {"train.json": [row | {"instruction_2": "How?", "output_2": ""}], "1.png": picture(0)}
    (sample,), _ = collected(tmp_path, "math_puma", files)
    assert sample.uses == ("sft",)


def test_the_table_of_sources_is_sound():
    for source in SOURCES.values():
        assert source.verifier_type in VERIFIER_TYPES and source.license
    totals = [
        sum(filter(None, column))
        for column in zip(*(s.published for s in SOURCES.values()), strict=True)
    ]
    assert totals == [203_182, 144_895, 126_413, 25_195]  # arXiv 2504.11468, table 1
