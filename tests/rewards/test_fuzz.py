"""Properties that hold for whatever a model may write.

Each Hypothesis example is scored in many ways, so that VLAA_FUZZ_CASES scorings (default 100,000)
fit into seconds. Symbolic comparison is fuzzed apart, through the pool.
"""

import itertools
import math
import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlaa_jax.rewards.digit import score_digit
from vlaa_jax.rewards.extract import extract_answer, has_strict_structure
from vlaa_jax.rewards.iou import iou, match_boxes, score_iou
from vlaa_jax.rewards.math import MathVerifier, prepare_case
from vlaa_jax.rewards.mcq import chosen_letter, score_mcq
from vlaa_jax.rewards.mixed import MixedReward, RewardSettings
from vlaa_jax.rewards.similarity import text_similarity
from vlaa_jax.rewards.verifier import Verdict
from vlaa_jax.schema import ScoreRequest

CASES = int(os.environ.get("VLAA_FUZZ_CASES", "100000"))

ANGLES = "How large?\nA: 27°\nB: 30°\nC: 45°\nD: 60°"
PIECES = [
    "<think>", "</think>", "<answer>", "</answer>", "<answer>4</answer>", "<think>4</think>",
    "4", "-4", "4.0", "5", "four", "2 or 4", "1,000", "1/2", "1e9", "٤", "²", "½", "9" * 60,
    "A", "B", "(B)", "B:", "C.", " or ", " and ", ", ", "option ", "the answer is ", "is correct",
    "27°", "30°", "45°", "[0.1, 0.1, 0.5, 0.5]", "[0.5,0.5,0.1,0.1]", "[nan,0,1,1]",
    "[1e308,0,1,1]",
    '{"bbox_2d": [0.1, 0.1, 0.4, 0.5]}', "[[", "]]", "(", ")", "{", "}", "[1,2,3]",
    "x1: 0.1, y1: 0.2",
    "$", "$$", "\\boxed{", "\\boxed{4}", "\\frac{1}{2}", "\\sqrt{", "\\(", "\\)", "^", "_", "\\",
    "%",
    "\\%", "x+1", "y=", "|", "cm", "\\text{B}", "yes", "no", "None", "nan", "inf", "null", " ",
    "\n",
    "\t", "\x00", "\ud800", "\u202e", "é", "中", "\U0001f600", "<", ">", "&lt;", "<|im_end|>", "`",
    "**",
    "red", "car", "a red car", "not", "the", "'", '"', "#", ";", "/", "=", "-", "+", ".",
]  # fmt: skip
GOLDS = {
    "digit": ["4", "-4", "1000", "many"],
    "mcq": ["B", "(C)", "30°", "A or B"],
    "iou": ["[0.1, 0.1, 0.5, 0.5]", "[10, 10, 50, 50]", "[[0,0,1,1],[2,2,3,3]]", "none"],
    "math": ["4", "x+1", "B", "\\frac{1}{2}", "the side"],
    "open_ended": ["a red car", "no", "4 cars", ""],
}
FRAMES = (
    "{}",
    "<think>t</think><answer>{}</answer>",
    "t</think>{}",
    "<answer>{}</answer>{}",
)
PER_EXAMPLE = sum(map(len, GOLDS.values())) * len(FRAMES)

texts = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=10).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=10).map(" ".join),
    st.text(max_size=40),
)
settled = settings(
    max_examples=max(1, CASES // PER_EXAMPLE),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
brief = settings(max_examples=300, deadline=None, database=None)


class HostMath(MathVerifier):
    """Maths with symbolic comparison left out: undecided pairs count as wrong."""

    def begin(self, items):
        def verdict(item):
            try:
                return Verdict(float(bool(prepare_case(item.answer, item.request.gt).verdict)))
            except ValueError as error:
                return Verdict(error=str(error))

        return lambda: list(map(verdict, items))


HOST = MixedReward(RewardSettings(open_ended="text_similarity"))
HOST._verifiers["math"] = HostMath(1, 1.0)


@settled
@given(texts)
def test_nothing_raises_and_every_value_is_a_reward(text):
    requests = [
        ScoreRequest(name, gold, frame.replace("{}", text), question=ANGLES)
        for name, golds in GOLDS.items()
        for gold in golds
        for frame in FRAMES
    ]
    for request, score in zip(requests, HOST.score(requests), strict=True):
        if math.isnan(score.reward):
            assert score.error
            assert math.isnan(score.parts["raw"])
        else:
            assert score.error is None
            assert 0.0 <= score.reward <= 1.0
        if score.extracted is None:
            assert not score.reward > 0
        else:
            assert score.extracted.strip() == score.extracted != ""
        if "<answer>" not in request.response or "</answer>" not in request.response:
            assert score.extracted is None


@brief
@given(texts)
def test_structure_implies_an_answer(text):
    for frame in FRAMES:
        response = frame.replace("{}", text)
        if has_strict_structure(response):
            assert extract_answer(response).answer


@brief
@given(
    st.permutations("ABCD").flatmap(
        lambda p: st.tuples(*(st.sampled_from([c, c.lower()]) for c in p))
    ),
    st.sampled_from(["{}", "({})", "{})", "{}.", "{}:", "[{}]", "**{}**"]),
    st.lists(
        st.sampled_from(
            [" ", ", ", " or ", "/", ": ", ") ", ". ", "\n", " and ", "", "; ", "=", "-", ",", "|"]
        ),
        min_size=5,
        max_size=5,
    ),
    st.sampled_from(["", "The answer is ", "(", "Option ", "I choose ", "**", "$"]),
    st.booleans(),
)
def test_an_answer_with_every_option_never_pays(letters, mark, joins, lead, with_question):
    marked = [mark.format(letter) for letter in letters]
    said = lead + "".join(itertools.chain(*zip(marked, joins, strict=False)))
    question = ANGLES if with_question else ""
    for gold in "ABCD":
        assert score_mcq(said, gold, question) == 0.0, said


@brief
@given(
    st.permutations(["27°", "30°", "45°", "60°"]), st.sampled_from([" ", ", ", " or ", "\n", "/"])
)
def test_an_answer_with_every_option_text_never_pays(options, join):
    for gold in "ABCD":
        assert score_mcq(join.join(options), gold, ANGLES) == 0.0
        assert score_mcq(f"{gold}: " + join.join(options), gold, ANGLES) == 0.0


@brief
@given(st.lists(st.integers(-99, 99), min_size=2, max_size=12, unique=True))
def test_several_numbers_never_pay(numbers):
    for join in (" ", ", ", " or ", "; ", " and ", "\n"):
        said = join.join(map(str, numbers))
        for number in numbers:
            assert score_digit(said, str(number)) == 0.0


@brief
@given(st.integers(-(10**15), 10**15), st.integers(-(10**15), 10**15))
def test_digit_is_equality(left, right):
    assert score_digit(str(left), str(right)) == float(left == right)
    assert score_digit(f"{left:,}", str(left)) == 1.0
    assert score_digit(f"There are {left}.", str(left)) == 1.0


@brief
@given(st.sampled_from("ABCDEFGH"), st.sampled_from("ABCDEFGH"))
def test_mcq_is_equality(left, right):
    for spelling in ("{}", "({})", "{}.", "{}: text", "The answer is {}", "**{}**"):
        assert score_mcq(spelling.format(left), right) == float(left == right)
        assert chosen_letter(spelling.format(left)) == left


numbers = st.floats(0, 1, width=32)
boxes = (
    st.tuples(numbers, numbers, numbers, numbers)
    .map(lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3])))
    .filter(lambda b: b[2] - b[0] > 1e-3 and b[3] - b[1] > 1e-3)
)


@brief
@given(boxes, boxes)
def test_iou_is_symmetric_and_one_only_for_itself(left, right):
    value = iou(left, right)
    assert 0.0 <= value <= 1.0
    assert value == iou(right, left)
    assert math.isclose(iou(left, left), 1.0)
    if left != right:
        assert value <= 1.0
    assert math.isclose(match_boxes([left, right], [right, left]), 1.0)
    assert match_boxes([left], [left, right]) == match_boxes([left, right], [left])


@brief
@given(boxes, boxes, st.floats(0, 1), st.floats(0, 1))
def test_iou_grows_on_the_way_to_the_gold(start, gold, t, u):
    """Moving a nested box's corners towards the gold's never lowers the IoU."""
    inside = tuple(g + (s - g) * 0.999 for s, g in zip(_nest(start, gold), gold, strict=True))
    early, late = sorted((t, u))
    steps = [
        tuple(a + (b - a) * where for a, b in zip(inside, gold, strict=True))
        for where in (early, late)
    ]
    assert iou(steps[0], gold) <= iou(steps[1], gold) + 1e-9


def _nest(box, gold):
    """The box scaled into the gold."""
    wide, high = gold[2] - gold[0], gold[3] - gold[1]
    return (
        gold[0] + box[0] * wide,
        gold[1] + box[1] * high,
        gold[0] + box[2] * wide,
        gold[1] + box[3] * high,
    )


@brief
@given(st.lists(st.floats(), min_size=4, max_size=4))
def test_any_four_floats_make_a_reward(values):
    reward = score_iou(str(values), "[0.1, 0.1, 0.5, 0.5]")
    assert 0.0 <= reward <= 1.0
    if not all(map(math.isfinite, values)):
        assert reward == 0.0


@brief
@given(texts, texts)
def test_similarity_is_symmetric_and_bounded(left, right):
    value = text_similarity(left, right)
    assert 0.0 <= value <= 1.0
    assert value == text_similarity(right, left)


@settings(max_examples=250, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(text=texts, gold=st.sampled_from(["4", "x+1", "\\frac{1}{2}", "y=2x", "(1,2)", "\\{1,2\\}"]))
def test_the_parser_may_meet_anything(mixed, text, gold):
    response = f"<think>t</think><answer>{text}</answer>"
    (score,) = mixed.score([ScoreRequest("math", gold, response)])
    assert score.failed == (score.error is not None)
    assert score.failed or score.reward in (0.0, 1.0)
