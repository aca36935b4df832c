import itertools
import random

import pytest

from vlaa_jax.rewards.iou import (
    Frame,
    iou,
    iou_gold_problem,
    match_boxes,
    native_box_space,
    parse_boxes,
    score_iou,
)
from vlaa_jax.schema import UserError

UNIT = "[0.2, 0.2, 0.6, 0.6]"
PIXEL = "[20, 20, 60, 60]"

# answer, gold, expected (worked by hand)
ROWS = [
    ("[0.2, 0.2, 0.6, 0.6]", UNIT, 1.0),
    ("(0.2, 0.2, 0.6, 0.6)", UNIT, 1.0),
    ("0.2, 0.2, 0.6, 0.6", UNIT, 1.0),
    ("[0.2 0.2 0.6 0.6]", UNIT, 1.0),
    ("[[0.2, 0.2, 0.6, 0.6]]", UNIT, 1.0),
    ("[.2, .2, .6, .6]", UNIT, 1.0),
    ("[2e-1, 0.2, 6E-1, 0.6]", UNIT, 1.0),
    ("The box is [0.2, 0.2, 0.6, 0.6].", UNIT, 1.0),
    ('{"bbox_2d": [0.2, 0.2, 0.6, 0.6]}', UNIT, 1.0),
    ('[{"bbox_2d": [0.2, 0.2, 0.6, 0.6], "label": "cup"}]', UNIT, 1.0),
    ("[{'bbox_2d': [0.2, 0.2, 0.6, 0.6], 'label': \"child's cup\"}]", UNIT, 1.0),
    ('```json\n{"bbox": [0.2, 0.2, 0.6, 0.6]}\n```', UNIT, 1.0),
    ('{"x1": 0.2, "y1": 0.2, "x2": 0.6, "y2": 0.6}', UNIT, 1.0),
    ("{'xmin': 0.2, 'ymin': 0.2, 'xmax': 0.6, 'ymax': 0.6}", UNIT, 1.0),
    ("[0.2, 0.2, 0.4, 0.6]", UNIT, 0.5),
    ("[0.4, 0.4, 0.8, 0.8]", UNIT, 1 / 7),
    ("[0.6, 0.2, 0.9, 0.6]", UNIT, 0.0),  # touching
    ("[0.7, 0.7, 0.9, 0.9]", UNIT, 0.0),
    ("[0, 0, 1, 1]", UNIT, 0.16),
    ("[-5, -5, 5, 5]", UNIT, 0.16),  # clipped to the image
    ("[0, 0, 999999, 999999]", UNIT, 0.16),
    ("[20, 20, 60, 60]", UNIT, 0.0),  # pixels where fractions are asked for
    ("[0.6, 0.6, 0.2, 0.2]", UNIT, 0.0),  # inverted
    ("[0.6, 0.2, 0.2, 0.6]", UNIT, 0.0),
    ("[0.2, 0.2, 0.2, 0.6]", UNIT, 0.0),  # no width
    ("[nan, 0.2, 0.6, 0.6]", UNIT, 0.0),
    ("[0.2, 0.2, inf, 0.6]", UNIT, 0.0),
    ("[-inf, -inf, inf, inf]", UNIT, 0.0),
    ("[0.2, 0.2, 1e300, 0.6]", UNIT, 0.0),
    ("[0.2, 0.2, 0.6]", UNIT, 0.0),
    ("[0.2, 0.2, 0.6, 0.6, 0.9]", UNIT, 0.0),
    ("[]", UNIT, 0.0),
    ("", UNIT, 0.0),
    ("no box here", UNIT, 0.0),
    ("[a, b, c, d]", UNIT, 0.0),
    ("[0.2, 0.2, 0.6, 0.6] or [0.1, 0.1, 0.6, 0.6]", UNIT, 0.0),
    ("[0.2, 0.2, 0.6, 0.6][0.2, 0.2, 0.6, 0.6]", UNIT, 0.0),
    ("[0.2, 0.2, 0.6, 0.6] with confidence [0.9]", UNIT, 0.0),
    ("0.2, 0.2, 0.6", UNIT, 0.0),
    ("__import__('os').system('true')", UNIT, 0.0),
    ("[" * 5000 + "]" * 5000, UNIT, 0.0),
    ("[20, 20, 60, 60]", PIXEL, 1.0),
    # the models' own formats
    ("(20,20),(60,60)", PIXEL, 1.0),
    ("<|box_start|>(20,20),(60,60)<|box_end|>", PIXEL, 1.0),
    (
        "<|object_ref_start|>the dog [1]<|object_ref_end|><|box_start|>(20,20),(60,60)<|box_end|>",
        PIXEL,
        1.0,
    ),
    ('[\n\t{"bbox_2d": [20, 20, 60, 60], "label": "dog (2)"}\n]', PIXEL, 1.0),
    ('{"bbox_2d": [20, 20, 60, 60], "label": "person [1]", "score": 0.9}', PIXEL, 1.0),
    ('{"bbox_2d": ["20", "20", "60", "60"]}', PIXEL, 1.0),
    ("[[20, 20], [60, 60]]", PIXEL, 1.0),
    ("［20，20，60，60］", PIXEL, 1.0),
    ("【20, 20, 60, 60】", PIXEL, 1.0),
    ("20 20 60 60", PIXEL, 1.0),
    ("\\boxed{20, 20, 60, 60}", PIXEL, 1.0),
    # brackets that do not close, points that do not pair, denials
    ("[[20, 20, 60, 60]", PIXEL, 0.0),
    ("[20, 20, 60, 60", PIXEL, 0.0),
    ("[20, 20, 60, 60)", PIXEL, 0.0),
    ('{"bbox_2d": [20, 20, 60, 60]', PIXEL, 0.0),
    ("(20,20),(60,60),(70,70)", PIXEL, 0.0),
    ("not [20, 20, 60, 60]", PIXEL, 0.0),
    ("[20, 20, 60, 60]?", PIXEL, 0.0),
    ("half of [20, 20, 60, 60]", PIXEL, 0.0),
    ("[20, 20, 40, 60]", PIXEL, 0.5),
    ("[20.0, 20.0, 60.0, 60.0]", PIXEL, 1.0),
    ("[0.2, 0.2, 0.6, 0.6]", "<answer>[0.2, 0.2, 0.6, 0.6]</answer>", 1.0),
    ("[10, 10, 20, 20]", "[19, 19, 29, 29]", 1 / 199),  # a corner of one pixel counts
    # several gold boxes: one-to-one, divided by the larger count
    ("[[0,0,10,10],[20,20,30,30]]", "[[0,0,10,10],[20,20,30,30]]", 1.0),
    ("[[20,20,30,30],[0,0,10,10]]", "[[0,0,10,10],[20,20,30,30]]", 1.0),
    ("[0,0,10,10]", "[[0,0,10,10],[20,20,30,30]]", 0.5),
    ("[[0,0,10,10],[0,0,10,10]]", "[[0,0,10,10],[20,20,30,30]]", 0.5),
    ("[[0,0,10,10],[20,20,30,30],[20,20,30,30]]", "[[0,0,10,10],[20,20,30,30]]", 2 / 3),
    ("[[0,0,10,10],[30,30,20,20]]", "[[0,0,10,10],[20,20,30,30]]", 0.0),  # one is inverted
]


@pytest.mark.parametrize(("answer", "gold", "expected"), ROWS)
def test_iou(answer, gold, expected):
    assert score_iou(answer, gold) == pytest.approx(expected, abs=1e-12)


# A 400 x 200 picture: padded to a square, 100 pixels lie above and below; resized to 200 x 100.
SIZES = {"image_size": (400, 200), "resized_size": (200, 100)}
SAME_BOX = {
    "original_pixels": "[100, 50, 300, 150]",
    "normalized": "[0.25, 0.25, 0.75, 0.75]",
    "normalized_1000": "[250, 250, 750, 750]",
    "normalized_square": "[0.25, 0.375, 0.75, 0.625]",
    "resized_pixels": "[50, 25, 150, 75]",
}


@pytest.mark.parametrize("gold_space", SAME_BOX)
@pytest.mark.parametrize("answer_space", SAME_BOX)
def test_one_box_in_any_two_spaces_is_one_box(gold_space, answer_space):
    value = score_iou(
        SAME_BOX[answer_space],
        SAME_BOX[gold_space],
        Frame(gold_space, **SIZES),
        answer_space,
    )
    assert value == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("space", SAME_BOX)
def test_a_box_past_the_image_is_clipped_in_every_space(space):
    value = score_iou("[-9999, -9999, 9999, 9999]", SAME_BOX[space], Frame(space, **SIZES))
    assert value == pytest.approx(0.25, abs=1e-12)  # a quarter of the whole picture


@pytest.mark.parametrize(
    ("space", "missing"),
    [
        ("original_pixels", "image_size"),
        ("normalized_square", "image_size"),
        ("resized_pixels", "resized_size"),
    ],
)
def test_a_missing_size_is_a_failure_not_a_zero(space, missing):
    with pytest.raises(ValueError, match=missing):
        score_iou("[0.1, 0.1, 0.5, 0.5]", SAME_BOX[space], Frame(space), "normalized")


def test_padding_of_a_tall_image_is_left_and_right():
    box = Frame("normalized_square", (200, 400)).normalized((0.25, 0.0, 0.75, 1.0))
    assert box == pytest.approx((0.0, 0.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("gold", "space"),
    [
        ("", None),
        ("a cup", None),
        ("[1, 2, 3]", None),
        ("[0.6, 0.6, 0.2, 0.2]", None),
        ("[nan, 0, 1, 1]", None),
        ("[20, 20, 60, 60]", "normalized"),
        (UNIT, "furlongs"),
        ("[0,0,1,1]" * 101, None),
    ],
)
def test_a_bad_gold_is_refused(gold, space):
    assert iou_gold_problem(gold, Frame(space))
    with pytest.raises(ValueError):
        score_iou(UNIT, gold, Frame(space))


@pytest.mark.parametrize(
    ("gold", "space", "sizes"),
    [
        ("[1.1, 0.2, 1.4, 0.6]", "normalized", {}),  # within what rounding excuses, yet outside
        ("[-0.4, 0.2, -0.1, 0.6]", "normalized", {}),
        ("[500, 20, 600, 60]", "original_pixels", {"image_size": (400, 200)}),
        ("[500, 20, 600, 60]", None, {"image_size": (400, 200)}),
        ("[[20, 20, 60, 60], [20, 250, 60, 260]]", None, {"image_size": (400, 200)}),
        ("[0.2, 0.0, 0.6, 0.2]", "normalized_square", {"image_size": (400, 200)}),  # in the padding
        ("[20, 120, 60, 130]", "resized_pixels", {"resized_size": (200, 100)}),
    ],
)
def test_a_gold_outside_the_image_is_refused_before_any_answer(gold, space, sizes):
    assert "outside the image" in iou_gold_problem(gold, Frame(space, **sizes))
    with pytest.raises(ValueError, match="outside the image"):
        score_iou(UNIT, gold, Frame(space, **sizes))


def test_an_image_without_extent_is_a_problem_not_an_error():
    for space in ("normalized_square", "original_pixels"):
        assert iou_gold_problem(UNIT, Frame(space, (0, 200)))


@pytest.mark.parametrize(
    ("gold", "space", "sizes"),
    [
        ("[0.9, 0.2, 1.4, 0.6]", "normalized", {}),  # a part of it is inside
        ("[300, 20, 600, 60]", "original_pixels", {"image_size": (400, 200)}),
        ("[500, 20, 600, 60]", "original_pixels", {}),  # nobody knows how large the image is
        ("[0.2, 0.0, 0.6, 0.2]", "normalized_square", {}),
        ("[500, 20, 600, 60]", "resized_pixels", {"image_size": (400, 200)}),
    ],
)
def test_a_gold_that_reaches_into_the_image_is_fine(gold, space, sizes):
    assert iou_gold_problem(gold, Frame(space, **sizes)) is None


def test_each_family_has_its_own_space():
    assert native_box_space("qwen2_vl") == "normalized_1000"
    assert native_box_space("qwen2_5_vl") == "resized_pixels"
    with pytest.raises(UserError, match="'gpt' has no known box space"):
        native_box_space("gpt")


def test_the_matching_is_that_of_all_permutations():
    rng = random.Random(5)

    def boxes(count):
        corners = [(rng.uniform(0, 50), rng.uniform(0, 50)) for _ in range(count)]
        return [(x, y, x + rng.uniform(5, 40), y + rng.uniform(5, 40)) for x, y in corners]

    for _ in range(60):
        few, many = boxes(rng.randint(1, 4)), boxes(rng.randint(4, 5))
        totals = (
            sum(iou(a, b) for a, b in zip(few, order, strict=False))
            for order in itertools.permutations(many, len(few))
        )
        expected = pytest.approx(max(totals) / len(many), abs=1e-12)
        assert match_boxes(few, many) == expected
        assert match_boxes(many, few) == expected
    assert match_boxes(boxes(100), boxes(100)) > 0


def test_parsing_keeps_order_and_counts():
    assert parse_boxes("[1,2,3,4] and (5,6,7,8)") == [(1, 2, 3, 4), (5, 6, 7, 8)]
    assert parse_boxes("[4, 3, 2, 1]") == [(4, 3, 2, 1)]
    assert parse_boxes("9" * 20_000) is None


def test_matching_is_the_best_one_not_the_greedy_one():
    # Greedy takes (a, x) = 0.6 first and is left with (b, y) = 0; the best total is 0.5 + 0.5.
    a, b = (0.0, 0.0, 4.0, 1.0), (3.0, 0.0, 7.0, 1.0)
    x, y = (1.0, 0.0, 5.0, 1.0), (-2.0, 0.0, 2.0, 1.0)
    pairs = {(p, q): iou(p, q) for p in (a, b) for q in (x, y)}
    best = max(pairs[a, x] + pairs[b, y], pairs[a, y] + pairs[b, x]) / 2
    assert match_boxes([a, b], [x, y]) == pytest.approx(best)
    assert best > (max(pairs.values()) + pairs[b, y]) / 2
