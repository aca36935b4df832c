import pytest

from vlaa_jax.rewards.extract import extract_answer, has_strict_structure, strip_answer_tags

ANSWERED = [
    ("<think>two and two</think><answer>4</answer>", "4"),
    ("<think>two and two</think>\n\n<answer>4</answer>\n", "4"),
    ("  <think>a</think> <answer>  padded  </answer>  ", "padded"),
    ("<think>a</think><answer>\n7\n</answer>", "7"),
    ("<answer>no thinking at all</answer>", "no thinking at all"),
    ("the opening tag was in the prompt </think><answer>9</answer>", "9"),
    ("<think>a</think> So I say <answer>blue</answer> and stop.", "blue"),
    ("<think>a</think><answer>4</answer><|im_end|>", "4"),
    ("<think>maybe <answer>3</answer>? no</think><answer>4</answer>", "4"),
    ("<think><think>nested</think></think><answer>4</answer>", "4"),
    ("<think>a</think><think>b</think><answer>4</answer>", "4"),
    ("<think>the tag <answer> is for later</think><answer>4</answer>", "4"),
    ("<think></think><answer>4</answer>", "4"),
    ("<think>a</think><answer>x < 5 and y > 3</answer>", "x < 5 and y > 3"),
    ("<think>a</think><answer><b>bold</b></answer>", "<b>bold</b>"),
]

UNANSWERED = [
    ("", "no answer block"),
    ("4", "no answer block"),
    ("<think>4</think>", "no answer block"),
    ("<think>4</think> The answer is 4.", "no answer block"),
    ("<think>is it <answer>4</answer>?</think>", "no answer block"),
    ("<think>a</think><answer></answer>", "the answer block is empty"),
    ("<think>a</think><answer> \n </answer>", "the answer block is empty"),
    ("<think>a</think><answer>4", "the answer block is not closed"),
    ("<think>a</think>4</answer>", "the answer block is not closed"),
    ("<think>a</think></answer>4<answer>", "the answer block is not closed"),
    ("<think>a</think><answer>4</answer><answer>5</answer>", "more than one answer block"),
    ("<think>a</think><answer>4<answer>5</answer></answer>", "more than one answer block"),
    ("<think>a</think><answer>4</answer></answer>", "more than one answer block"),
    ("<think>a<answer>4</answer>", "the think block is not closed"),
    ("<think>a</think><think>b<answer>4</answer>", "the think block is not closed"),
    (
        "<think>a</think><answer>4</answer><think>b</think><answer>5</answer>",
        "more than one answer block",
    ),
    ("<answer>4</answer><think>a</think><answer>5</answer>", "more than one answer block"),
    ("<think>a</think><answer>4</answer></think><answer>5</answer>", "more than one answer block"),
    ("<ANSWER>4</ANSWER>", "no answer block"),
    ("&lt;answer&gt;4&lt;/answer&gt;", "no answer block"),
]

STRUCTURE = [
    ("<think>a</think><answer>b</answer>", True),
    ("<think>a</think>\n<answer>b</answer>\n", True),
    (" <think>a</think> <answer>b</answer><|im_end|>\n", True),
    ("<think>a\n\nb</think><answer>c\nd</answer>", True),
    ("<think></think><answer></answer>", False),
    ("<think>a</think><answer></answer>", False),
    ("<think> </think><answer>b</answer>", False),
    ("<answer>b</answer>", False),
    ("a</think><answer>b</answer>", False),
    ("<think>a</think> b <answer>c</answer>", False),
    ("<think>a</think><answer>b</answer> thanks", False),
    ("<think>a</think><answer>b</answer><think>c</think><answer>d</answer>", False),
    ("<think><think>a</think></think><answer>b</answer>", False),
    ("<think>a<answer>b</answer>", False),
    ("<answer>b</answer><think>a</think>", False),
    ("", False),
]


@pytest.mark.parametrize(("response", "answer"), ANSWERED)
def test_finds_the_one_answer(response, answer):
    assert extract_answer(response).answer == answer
    assert extract_answer(response).reason is None


@pytest.mark.parametrize(("response", "reason"), UNANSWERED)
def test_finds_no_answer_and_says_why(response, reason):
    assert extract_answer(response).answer is None
    assert extract_answer(response).reason == reason


@pytest.mark.parametrize(("response", "strict"), STRUCTURE)
def test_strict_structure(response, strict):
    assert has_strict_structure(response) is strict


def test_answer_tags_of_a_gold_are_dropped():
    assert strip_answer_tags("<answer> 5 </answer>") == "5"
    assert strip_answer_tags(" 5 ") == "5"


def test_long_outputs_take_linear_time():
    # A quadratic scan of this would take minutes, not a blink.
    tags = "<think>a</think>" * 50_000
    assert extract_answer(tags + "<answer>1</answer>").answer == "1"
    assert extract_answer("<answer>" * 200_000).answer is None
