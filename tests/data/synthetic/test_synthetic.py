"""The embedded data: golds agree with what is drawn, files have the released form."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vlaa_jax.data.sources.record_file import load_records
from vlaa_jax.data.synthetic import TASKS, draw_sample
from vlaa_jax.data.synthetic.baseline import constant_baseline
from vlaa_jax.data.synthetic.canvas import COLORS, SIZES
from vlaa_jax.data.synthetic.dataset import image_digest, samples, write_dataset
from vlaa_jax.schema import VERIFIER_TYPES, UserError


def draw(task, count, seed=0):
    rng = np.random.default_rng([seed, 7])
    return [draw_sample(task, rng) for _ in range(count)]


def box_of(text):
    return [float(x) for x in text.strip("[]").split(",")]


def iou(a, b):
    """Intersection over union, from the definition."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return width * height / (sum(area) - width * height)


def mask(image, color):
    """Pixels close to one of the named colours."""
    pixels = np.asarray(image, np.int32)
    return np.abs(pixels - COLORS[color]).max(-1) < 40


def pieces(mask_HW):
    """Boxes (x1, y1, x2, y2) of connected pieces of more than 20 pixels; 4-neighbour flood fill."""
    left = mask_HW.copy()
    found = []
    while left.any():
        y, x = map(int, np.argwhere(left)[0])
        stack, ys, xs = [(y, x)], [], []
        left[y, x] = False
        while stack:
            y, x = stack.pop()
            ys.append(y)
            xs.append(x)
            for ny, nx in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if 0 <= ny < left.shape[0] and 0 <= nx < left.shape[1] and left[ny, nx]:
                    left[ny, nx] = False
                    stack.append((ny, nx))
        if len(ys) > 20:
            found.append((min(xs), min(ys), max(xs) + 1, max(ys) + 1))
    return found


def test_one_task_per_verifier():
    assert set(TASKS) <= set(VERIFIER_TYPES)


@pytest.mark.parametrize("task", TASKS)
def test_samples_are_small_and_repeatable(task):
    first, again, other = draw(task, 30), draw(task, 30), draw(task, 30, seed=1)
    assert [s.target for s in first] == [s.target for s in again]
    assert [image_digest(s.image) for s in first] == [image_digest(s.image) for s in again]
    assert [image_digest(s.image) for s in first] != [image_digest(s.image) for s in other]
    assert len({s.image.size for s in first}) >= 4
    for sample in first:
        assert sample.image.mode == "RGB" and sample.verifier_type == task
        assert all(84 <= side <= 168 for side in sample.image.size)
        assert 4 <= len(sample.reasoning.split()) <= 20
        assert sample.target.startswith("<think> ") and sample.target.endswith(" </answer>")


def test_counting_counts_what_is_drawn():
    for sample in draw("digit", 40):
        drawn = sum(len(pieces(mask(sample.image, color))) for color in COLORS)
        objects = sample.facts["objects"]
        assert drawn == len(objects)
        subject = sample.question.removeprefix("How many ").removesuffix(" are there?")
        wanted = subject.removesuffix(" objects").rstrip("s")
        count = drawn if subject == "objects" else sum(wanted in kind for kind in objects)
        assert sample.gt == sample.answer == str(count)


def test_counting_answers_are_spread_evenly():
    counts = Counter(s.gt for s in draw("digit", 1200))
    assert set(counts) == set("123456")
    assert max(counts.values()) / 1200 < 0.21


def test_boxes_fit_the_pixels_of_the_named_object():
    for sample in draw("iou", 60):
        color, shape = sample.question.removesuffix(".").split()[-2:]
        assert [tuple(k) for k in sample.facts["objects"]].count((color, shape)) == 1
        width, height = sample.image.size
        scaled = [
            (a / width, b / height, c / width, d / height)
            for a, b, c, d in pieces(mask(sample.image, color))
        ]
        assert max(iou(box, box_of(sample.gt)) for box in scaled) > (
            0.82 if shape == "triangle" else 0.9
        )
        assert sample.box_space == "normalized"


def test_choices_name_the_right_letter():
    letters = Counter()
    for sample in draw("mcq", 400):
        options = dict(line.split(": ") for line in sample.question.splitlines()[2:])
        assert list(options) == ["A", "B", "C", "D"] and len(set(options.values())) == 4
        assert options[sample.gt] == sample.facts["right"]
        letters[sample.gt] += 1
        if "bar" in sample.question:
            heights = {color: mask(sample.image, color).sum() for color in options.values()}
            heights.pop("black", None)  # the base line is black as well
            extreme = max if "tallest" in sample.question else min
            if sample.facts["right"] != "black" and "black" not in options.values():
                assert extreme(heights, key=heights.get) == sample.facts["right"]
    assert max(letters.values()) / 400 < 0.33


def test_plots_pass_through_the_points_of_their_equation():
    golds = Counter()
    for sample in draw("math", 120):
        facts, (width, height) = sample.facts, sample.image.size
        colored = np.zeros((height, width), bool)
        for color in ("red", "blue", "green"):
            colored |= mask(sample.image, color)
        hits = []
        for x in np.linspace(-1, 1, 9):
            y = facts["slope"] * x ** (2 if facts["parabola"] else 1) + facts["intercept"]
            if abs(y) < 3.8 and abs(x) > 0.3:
                row, column = int(height * (0.5 - y / 8)), int(width * (0.5 + x / 8))
                hits.append(
                    colored[max(0, row - 3) : row + 4, max(0, column - 3) : column + 4].any()
                )
        assert hits and all(hits)
        golds[sample.gt] += 1
        assert sample.gt.startswith("$y = ") and "1x" not in sample.gt and "+ 0" not in sample.gt
    assert len(golds) >= 25


def test_descriptions_differ_when_the_scene_does():
    described = draw("open_ended", 100)
    assert len({s.gt for s in described}) > 75
    for sample in described:
        assert all(f"{color} {shape}" in sample.gt for color, shape in sample.facts["objects"])
        drawn = sum(len(pieces(mask(sample.image, color))) for color in COLORS)
        assert drawn == len(sample.facts["objects"])


def test_no_constant_answer_does_well():
    records = [s.record(str(i), "a/b.png") for i, s in enumerate(samples("heldout", 500, 3))]

    def score(record, answer):
        if record.verifier_type == "iou":
            return iou(box_of(record.gt), box_of(answer))
        return float(record.gt == answer)

    best = {kind: b.score for kind, b in constant_baseline(records, score).items()}
    assert best["iou"] < 0.25
    assert best["digit"] < 0.27 and best["mcq"] < 0.36 and best["math"] < 0.16
    assert best["open_ended"] < 0.05


def test_files_have_the_released_form(tmp_path):
    paths = write_dataset(tmp_path / "d", n_train=35, n_heldout=15, n_sft=20, seed=1)
    raw = json.loads(paths.grpo.read_text())
    assert {type(r["gt"]) for r in raw} == {int, str}
    assert {type(r["meta"]) for r in raw} == {dict, str}
    assert any(r["image"].startswith("/") for r in raw)
    sft = [json.loads(line) for line in paths.sft.read_text().splitlines()]
    assert len(sft) == 20 and any("gt" not in r for r in sft)

    train = load_records(paths.grpo, kind="grpo")
    heldout = load_records(paths.heldout, kind="grpo")
    parts = [train, heldout, load_records(paths.sft, kind="sft")]
    assert Counter(r.verifier_type for r in train) == dict.fromkeys(TASKS, 7)
    assert Counter(r.verifier_type for r in heldout) == dict.fromkeys(TASKS, 3)
    assert all(r.box_space == "normalized" for r in train if r.verifier_type == "iou")
    digests = []
    for record in (r for part in parts for r in part):
        with Image.open(paths.images / record.images[0]) as image:
            assert image.size in SIZES or record.source == "synthesis"
            digests.append(image_digest(image))
    assert len(set(digests)) == len(digests)


def test_writing_twice_gives_the_same_bytes_and_leaves_a_whole_set_alone(tmp_path):
    a = write_dataset(tmp_path / "a", n_train=10, n_heldout=5, n_sft=5)
    b = write_dataset(tmp_path / "b", n_train=10, n_heldout=5, n_sft=5)
    files = sorted(p.relative_to(a.root) for p in a.root.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(b.root) for p in b.root.rglob("*") if p.is_file())
    assert all((a.root / f).read_bytes() == (b.root / f).read_bytes() for f in files)
    before = a.grpo.stat().st_mtime_ns
    write_dataset(tmp_path / "a", n_train=10, n_heldout=5, n_sft=5)
    assert a.grpo.stat().st_mtime_ns == before
    write_dataset(tmp_path / "a", n_train=10, n_heldout=5, n_sft=5, seed=9)
    assert a.grpo.stat().st_mtime_ns != before


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_dataset(tmp_path / "file" / "d", n_train=5, n_heldout=5, n_sft=5)
