"""The page of held-out samples: shows what was said, runs nothing of it, reads no foreign file."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vlaa_jax.policy.gallery import write_gallery
from vlaa_jax.policy.groups import Groups
from vlaa_jax.rollout.engine import Rollout
from vlaa_jax.schema import Record, Score, UserError


def groups(records, texts, rewards):
    shape = (len(records), len(texts[0]))
    rollout = Rollout(*(np.zeros((*shape, 1)) for _ in range(3)), np.ones(shape), np.zeros(shape))
    scores = [Score(value, "digit", None, {"raw": value, "format": 1.0}) for value in rewards]
    prompts = [SimpleNamespace(record=record) for record in records]
    return Groups(prompts, rollout, texts, scores)


def record(number, image="a.png", kind="digit"):
    return Record(
        f"id-{number}", f"How many? <b>{number}</b>", (image,), gt="3", verifier_type=kind
    )


@pytest.fixture
def root(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    return tmp_path


def test_the_page_shows_answers_and_escapes_them(root):
    said = [["<script>alert(1)</script> 3", "4"]]
    write_gallery(root / "out" / "page.html", "run", groups([record(1)], said, [1.0, 0.0]), root)
    page = (root / "out" / "page.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; 3" in page
    assert "<b>1</b>" not in page
    assert "src='data:image/png;base64," in page
    assert page.count("class='paid'") == 1
    assert page.count("class='unpaid'") == 1


def test_a_few_of_every_kind(root):
    records = [record(n) for n in range(5)] + [record(9, kind="mcq")]
    write_gallery(root / "page.html", "run", groups(records, [["3"]] * 6, [1.0] * 6), root)
    page = (root / "page.html").read_text(encoding="utf-8")
    assert [f"id-{n}" in page for n in (0, 1, 2, 3, 4, 9)] == [True] * 3 + [False] * 2 + [True]


def test_an_image_outside_of_the_root_is_refused(root):
    with pytest.raises(UserError):
        write_gallery(
            root / "page.html", "x", groups([record(1, "../b.png")], [["3"]], [1.0]), root
        )
