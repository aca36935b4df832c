import math

import pytest

from vlaa_jax.rewards.open_ended import AnswerItem, TextSimilarityScorer, reference_reward
from vlaa_jax.rewards.similarity import BASELINE, SCALE, text_similarity

# gold, answers that know nothing of it (constant, evasive, echoing the question's subject)
UNINFORMED = [
    ("a red car parked beside a wooden fence", "The image shows an object."),
    ("a red car parked beside a wooden fence", "It is a picture of something in a place."),
    ("a red car parked beside a wooden fence", "I cannot tell from the image."),
    ("Wednesday 14 May", "The date is shown in the document."),
    ("Wednesday 14 May", "A date in the document"),
    ("ITC Limited", "The name of the company"),
    ("ITC Limited", "unanswerable"),
    ("unanswerable", "yes"),
    ("unanswerable", "The image shows a bottle."),
    ("no", "unknown"),
    ("no", "I cannot say"),
    ("yes", "not yes"),
    ("yes", "The answer is in the picture, a description of it follows."),
    ("coca cola", "This is a drink in a can, possibly a soft drink."),
    ("1,234.50", "1,234.60"),
    ("32 degrees", "30 degrees"),
    ("12", "13"),
    (
        "The photograph shows two children building a sandcastle on a beach while a dog watches "
        "them from under a striped umbrella.",
        "The image shows a scene with several objects and people. The scene is bright and clear.",
    ),
    (
        "The photograph shows two children building a sandcastle on a beach while a dog watches "
        "them from under a striped umbrella.",
        "The photograph shows a detailed view of a subject, with various elements that make up "
        "the composition, and it conveys a calm mood.",
    ),
    (
        "A bar chart of rainfall by month, highest in August and lowest in February.",
        "A chart with labels and values over several categories.",
    ),
]

# gold, better answer, worse answer
ORDERED = [
    ("a red car beside a fence", "a red car beside a fence", "a red car"),
    ("a red car beside a fence", "a red car by a fence", "a blue bus in a street"),
    ("Wednesday 14 May", "Wednesday, 14 May", "Wednesday 15 May"),
    ("ITC Limited", "ITC Limited", "ITC Limited and also Tata and Reliance and Infosys"),
    ("coca cola", "Coca Cola", "coca coal"),
    ("no", "No.", "not no"),
]


def reward(answer, gold):
    texts = [AnswerItem("", answer, reference=gold), AnswerItem("", gold)]
    response, reference = TextSimilarityScorer().score_answers(texts)
    return reference_reward(response.score, reference.score)


@pytest.mark.parametrize(("gold", "answer"), UNINFORMED)
def test_an_answer_without_knowledge_earns_nothing(gold, answer):
    assert text_similarity(answer, gold) < BASELINE
    assert reward(answer, gold) == 0.0


@pytest.mark.parametrize("gold", sorted({gold for gold, _ in UNINFORMED}))
def test_a_perfect_answer_earns_nine_tenths(gold):
    assert reward(gold, gold) == pytest.approx(0.9, abs=0.005)
    assert reward(f"  {gold.upper()}. ", gold) == pytest.approx(0.9, abs=0.005)
    assert reward(gold, gold) == 1 - math.exp(-0.2 * SCALE * (1 - BASELINE))


@pytest.mark.parametrize(("gold", "better", "worse"), ORDERED)
def test_better_answers_earn_more(gold, better, worse):
    assert reward(better, gold) > reward(worse, gold)


def test_listing_everything_does_not_pay():
    dump = " ".join(f"word{chr(97 + i)} car fence bus dog red blue" for i in range(20))
    assert reward(dump, "a red car beside a fence") == 0.0


@pytest.mark.parametrize("text", ["", "   ", "...", "?!"])
def test_empty_texts_are_like_nothing(text):
    assert text_similarity(text, "a car") == 0.0
    assert text_similarity("a car", text) == 0.0


def test_similarity_is_symmetric():
    for gold, answer in UNINFORMED:
        assert text_similarity(answer, gold) == text_similarity(gold, answer)


# S(response), S(reference), beta, worked by hand
FORMULA = [
    (2.0, 2.0, 0.2, 0.0),
    (1.0, 2.0, 0.2, 0.0),
    (-3.0, 5.0, 0.2, 0.0),
    (7.0, 2.0, 0.2, 1 - math.exp(-1)),
    (5.76, -2.84, 0.2, 1 - math.exp(-1.72)),  # the scores of the model's own example
    (3.0, 2.0, 1.0, 1 - math.exp(-1)),
    (1e9, 0.0, 0.2, 1.0),
    (1e-12, 0.0, 0.2, 2e-13),
]


@pytest.mark.parametrize(("response", "reference", "beta", "expected"), FORMULA)
def test_formula(response, reference, beta, expected):
    assert reference_reward(response, reference, beta) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_must_be_finite(bad):
    for pair in ((bad, 1.0), (1.0, bad)):
        with pytest.raises(ValueError, match="finite"):
            reference_reward(*pair)
