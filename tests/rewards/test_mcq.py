import pytest

from vlaa_jax.rewards.mcq import chosen_letter, listed_options, mcq_gold_problem, score_mcq

ANGLES = "How large is the angle?\nChoices:\nA: 27°\nB: 30°\nC: 45°\nD: 60°"
WORDS = "Which is shown? A) a cat B) a dog C) a cat and a dog D) none of these"

# answer, gold, expected; no options listed
PLAIN = [
    ("B", "B", 1),
    ("b", "B", 1),
    ("B.", "B", 1),
    ("B)", "B", 1),
    ("(B)", "B", 1),
    ("(b)", "B", 1),
    ("[B]", "B", 1),
    ("{B}", "B", 1),
    ("B:", "B", 1),
    (" B ", "B", 1),
    ("C", "B", 0),
    ("E", "E", 1),
    ("I", "I", 1),
    ("B: 42 cm", "B", 1),
    ("B. 42 cm", "B", 1),
    ("B) 42 cm", "B", 1),
    ("(B) 42 cm", "B", 1),
    ("b) 42 cm", "B", 1),
    ("B - 42 cm", "B", 1),
    ("B = 42 cm", "B", 1),
    ("Option B", "B", 1),
    ("option B.", "B", 1),
    ("Choice (B)", "B", 1),
    ("The answer is B", "B", 1),
    ("The answer is (B).", "B", 1),
    ("The correct answer is B: 42 cm", "B", 1),
    ("The correct option is B", "B", 1),
    ("the final answer is: B", "B", 1),
    ("Answer: B", "B", 1),
    ("So the answer is B.", "B", 1),
    ("I choose B", "B", 1),
    ("My choice is D", "D", 1),
    ("Choose B", "B", 1),
    ("E is the correct option", "E", 1),
    ("C is correct.", "C", 1),
    ("$B$", "B", 1),
    ("**B**", "B", 1),
    ("**B**: 42 cm", "B", 1),
    ("\\boxed{B}", "B", 1),
    ("$\\boxed{\\text{B}}$", "B", 1),
    ("\\boxed{\\text{(B)}}.", "B", 1),
    ("\\text{B}", "B", 1),
    ("`B`", "B", 1),
    ("A or B", "B", 0),
    ("A, B", "B", 0),
    ("A, B, C, D", "D", 0),
    ("A/B", "B", 0),
    ("A and B", "A", 0),
    ("AB", "A", 0),
    ("ABCD", "B", 0),
    ("A B C D", "B", 0),
    ("A or B or C or D", "D", 0),
    ("B, or maybe C", "B", 0),
    ("B: or C", "B", 0),
    ("B: 42 cm, C: 43 cm", "B", 0),
    ("(A) 41 (B) 42", "B", 0),
    ("A: 41\nB: 42\nC: 43", "B", 0),
    ("B. Not A.", "B", 0),
    ("The answer is B or C", "B", 0),
    ("not B", "B", 0),
    ("It is not B", "B", 0),
    ("B is wrong", "B", 0),
    ("Both", "B", 0),
    ("Because", "B", 0),
    ("A triangle", "A", 0),
    ("I think so", "I", 0),
    ("answering in detail", "I", 0),
    ("42 cm", "B", 0),
    ("?", "B", 0),
    ("2", "B", 0),
    ("(a) (b) (c) (d)", "A", 0),
    ("a) b) c) d)", "A", 0),
    ("a. b. c. d.", "A", 0),
    ("a: b c d", "A", 0),
    ("A: b c d", "A", 0),
    ("b. c", "B", 0),
    ("b) 41 c) 42", "B", 0),
    ("(b) and (a)", "B", 0),
    ("b) or a", "B", 0),
    ("B) or a", "B", 0),
    ("(a) abcd", "A", 0),
    ("d) a cat", "D", 1),  # an article is no letter
    ("d) a 45 degree angle", "D", 1),
    ("B: a bus and a car", "B", 1),
    ("B: a triangle with sides b and c", "B", 1),  # small letters beside a capital are names
    ("b) the side with c = 5", "B", 1),
    ("B. 45° since ad bisects abc", "B", 1),
    ("b. 45° since ad bisects abc", "B", 1),
    ("A, since ABCD is a square", "A", 1),
    ("C because point D lies on AB", "C", 1),
    ("C. option c fits", "C", 1),
    ("C. option d fits", "C", 0),
    ("b: 45°, e.g. half", "B", 1),
    ("b: 45°, i.e. half", "B", 1),
    ("A. b > 0", "A", 1),
    ("D. a triangle with sides a, b and c", "D", 1),
    ("D. since a, b, c, d > 0", "D", 1),
    ("D. all of a, b, c, d", "D", 0),
    ("A. the point (a, b)", "A", 1),
    ("d) the point (a, b)", "D", 1),
    ("d) (a + b)(c - d) = 0", "D", 1),
    ("b) f(a) = 2", "B", 1),
    ("b) 41 (or c)", "B", 0),
    ("b) 41 + c) 42", "B", 0),
    ("b) c/d", "B", 0),
    ("A. 1 b. 2 c. 3 d. 4", "A", 0),
    ("A. b, c, d", "A", 0),
    ("a, b, c, d", "A", 0),
    ("a and b", "A", 0),
    ("B: f(a) = 2", "B", 1),
    ("B" * 5000, "B", 0),
    ("B: " + "word " * 1000, "B", 0),  # an essay
    ("B", "(b)", 1),
    ("B", "B) 42 cm", 1),
    ("B", "<answer>B</answer>", 1),
]

ROOTS = "Solve.\nA: $x=2$ or $x=3$\nB: $x=-2$\nC: $\\frac{1}{2}$\nD: $\\sqrt{3}$ cm"
YES_NO = "Is b positive?\nA: Yes\nB: No"
THREE = "Which kind of triangle is it?\nA: Right\nB: Acute\nC: Obtuse"

# question, answer, gold, expected; options listed
LISTED = [
    (ANGLES, "30°", "B", 1),
    (ANGLES, "30^\\circ", "B", 1),
    (ANGLES, "$30^{\\circ}$", "B", 1),
    (ANGLES, "27°", "B", 0),
    (ANGLES, "B: 30°", "B", 1),
    (ANGLES, "B: 27°", "B", 0),  # letter and text disagree
    (ANGLES, "B: 27°", "A", 0),
    (ANGLES, "The answer is 30°", "B", 1),
    (ANGLES, "30", "B", 1),
    (ANGLES, "30° or 45°", "B", 0),
    (ANGLES, "27° 30° 45° 60°", "B", 0),
    (ANGLES, "B: 30° 45°", "B", 0),
    (ANGLES, "B", "30°", 1),
    (ANGLES, "A: 27°\nB: 30°\nC: 45°\nD: 60°", "B", 0),
    (WORDS, "a dog", "B", 1),
    (WORDS, "A dog.", "B", 1),
    (WORDS, "dog", "B", 0),
    (WORDS, "a cat", "C", 0),
    (WORDS, "a cat and a dog", "C", 1),
    (WORDS, "C) a cat and a dog", "C", 1),
    (WORDS, "B) a cat", "B", 0),
    (WORDS, "a cat, a dog", "A", 0),
    (WORDS, "none of these", "D", 1),
    (WORDS, "F", "B", 0),
    # Few options, so that the variables of an explanation are soon all of their letters.
    (YES_NO, "A. Yes, since b > 0", "A", 1),
    (YES_NO, "B. No, since a = 3", "B", 1),
    (YES_NO, "A. b > 0", "A", 1),
    (YES_NO, "a, b", "A", 0),
    (YES_NO, "a. b", "A", 0),
    (YES_NO, "(A) and b", "A", 0),
    (THREE, "A. because a^2 + b^2 = c^2", "A", 1),
    (THREE, "a. because a^2 + b^2 = c^2", "A", 1),
    (THREE, "A. as the sides b and c meet", "A", 1),
    (THREE, "A. b c", "A", 0),
    (THREE, "a) bc", "A", 0),
    (ANGLES, "C. 45° since ad bisects abc", "C", 1),
    (ANGLES, "30 cm", "B", 0),
    (ANGLES, "30 rad", "B", 0),
    (ROOTS, "sqrt(3)", "D", 1),
    (ROOTS, "√3 cm", "D", 1),
    (ROOTS, "√3 m", "D", 0),
    (ROOTS, "-2", "B", 1),
    (ROOTS, "A: x = 2 or x = 3", "A", 1),
    (ROOTS, "x = 2", "A", 0),
]


@pytest.mark.parametrize(("answer", "gold", "expected"), PLAIN)
def test_letters(answer, gold, expected):
    assert score_mcq(answer, gold) == expected


@pytest.mark.parametrize(("question", "answer", "gold", "expected"), LISTED)
def test_listed_options(question, answer, gold, expected):
    assert score_mcq(answer, gold, question) == expected


def test_options_are_read_from_lines_and_rows():
    assert listed_options(ANGLES) == {"A": "27°", "B": "30°", "C": "45°", "D": "60°"}
    assert listed_options(WORDS) == {
        "A": "a cat",
        "B": "a dog",
        "C": "a cat and a dog",
        "D": "none of these",
    }
    assert listed_options("Pick.\n(A) 1\n(B) 2") == {"A": "1", "B": "2"}
    assert listed_options("Plan B. is here") == {}
    assert listed_options("") == {}


def test_a_repeated_list_counts_once():
    assert listed_options("A) 1 B) 2\nAgain:\nA) 1\nB) 2\nC) 3") == {"A": "1", "B": "2", "C": "3"}


@pytest.mark.parametrize("gold", ["", "A or B", "42 cm", "yes"])
def test_a_gold_without_one_option_is_refused(gold):
    assert mcq_gold_problem(gold)
    with pytest.raises(ValueError, match="gold"):
        score_mcq("A", gold)


def test_a_gold_outside_the_list_is_a_problem():
    assert "not among" in mcq_gold_problem("F", ANGLES)
    assert mcq_gold_problem("D", ANGLES) is None


def test_every_option_at_once_never_pays():
    for joiner in (" ", ", ", " or ", "/", "\n", "; ", " and ", "|", ""):
        for letters in ("ABCD", "abcd"):
            for mark in ("{}", "({})", "{})", "{}.", "{}:", "[{}]"):
                said = joiner.join(mark.format(letter) for letter in letters)
                assert chosen_letter(said) is None, said
