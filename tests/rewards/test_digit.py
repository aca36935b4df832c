import pytest

from vlaa_jax.rewards.digit import digit_gold_problem, score_digit

# answer, gold, expected
ROWS = [
    ("3", "3", 1),
    ("4", "3", 0),
    (" 12 ", "12", 1),
    ("1", "12", 0),
    ("12", "1", 0),
    ("0", "0", 1),
    ("007", "7", 1),
    ("8.", "8", 1),
    ("8.0", "8", 1),
    ("8.5", "8", 0),
    ("2.5", "25", 0),
    ("-6", "6", 0),
    ("6", "-6", 0),
    ("-6", "-6", 1),
    ("\u22126", "-6", 1),  # minus sign
    ("+6", "6", 1),
    ("minus six", "-6", 1),
    ("negative 6", "-6", 1),
    ("minus 6", "-6", 1),
    ("minus 6", "6", 0),
    ("negative 6", "6", 0),
    ("Minus  6.5", "-6.5", 1),
    ("minus $6$", "-6", 1),
    ("negative six", "-6", 1),
    ("plus 6", "6", 1),
    ("minus -6", "6", 0),  # a sign too many
    ("minus -6", "-6", 0),
    ("minus minus 5", "-5", 0),
    ("minus minus five", "-5", 0),
    ("positive or negative 5", "-5", 0),
    ("plus or minus 5", "-5", 0),
    ("plus or minus five", "-5", 0),
    ("plus/minus 5", "-5", 0),
    ("plus-minus 5", "-5", 0),
    ("\u00b15", "5", 0),  # plus-minus sign
    ("$\\pm 5$", "5", 0),
    ("+/- five", "5", 0),
    ("+- 5", "5", 0),
    ("-five", "-5", 1),
    ("-five", "5", 0),
    ("- five", "-5", 1),
    ("-twenty-five", "-25", 1),
    ("Answer: -five", "-5", 1),
    ("Answer - five", "5", 1),  # a dash
    ("negative-five", "-5", 1),
    ("--five", "5", 0),
    ("minus -five", "5", 0),
    ("minus -five", "-5", 0),
    ("4 minus 1", "4", 0),
    ("minus 6", "minus six", 1),
    ("The score is 6, a negative result", "6", 1),
    ("2,048", "2048", 1),
    ("2{,}048", "2048", 1),
    ("2048", "2,048", 1),
    ("2,04", "204", 0),
    ("2,0480", "20480", 0),
    ("three", "3", 1),
    ("Three", "3", 1),
    ("THREE.", "3", 1),
    ("thirteen", "13", 1),
    ("twenty-four", "24", 1),
    ("twenty four", "24", 1),
    ("two hundred and six", "206", 1),
    ("one thousand two hundred", "1200", 1),
    ("a dozen", "12", 1),
    ("two dozen", "24", 1),
    ("zero", "0", 1),
    ("none", "0", 1),
    ("three four", "34", 0),
    ("three four", "3", 0),
    ("There are 9 red balls.", "9", 1),
    ("There are nine red balls.", "9", 1),
    ("nine (9)", "9", 1),  # a figure with its own word
    ("9 balls and 2 cubes", "9", 0),
    ("3 cubes (2 red, 1 blue)", "3", 1),
    ("3 (2 red + 1 blue)", "3", 1),
    ("3 (2 red, 2 blue)", "3", 0),
    ("3 (2 or 1)", "3", 0),
    ("None are left.", "0", 1),
    ("There is nothing left", "0", 1),
    ("None of the above", "0", 0),
    ("7, as 2 + 5 = 7", "7", 1),
    ("2 or 3", "3", 0),
    ("2, 3", "3", 0),
    ("2-3", "3", 0),
    ("2 to 3", "3", 0),
    ("1 2 3 4 5 6 7 8 9", "5", 0),
    ("between two and four", "2", 0),
    ("4 - 1 = 3", "3", 0),
    ("4/2", "2", 1),
    ("1/2", "0.5", 1),
    ("1/2", "1", 0),
    ("1/0", "1", 0),
    ("two thirds", "2", 0),
    ("2 thirds", "2", 0),
    ("2 and a half", "2", 0),
    ("2 and one half", "2", 0),
    ("2 and a third", "2", 0),
    ("two and a half", "2", 0),
    ("two and three quarters", "2", 0),
    ("two-and-a-half", "2", 0),
    ("2.0 halves", "2", 0),
    ("two point five", "2", 0),
    ("half a dozen", "12", 0),
    ("half of 6", "6", 0),
    ("a third of nine", "9", 0),
    ("3 in the third row", "3", 1),
    ("half of them, so 4", "4", 1),
    ("50%", "50", 0),
    ("50 percent", "50", 0),
    ("2x", "2", 0),
    ("x2", "2", 0),
    ("A4", "4", 0),
    ("3rd", "3", 0),
    ("2^3", "2", 0),
    ("2*3", "2", 0),
    ("5\u00b2", "52", 0),  # superscript two is not a digit
    ("5\u00b2", "5", 0),
    ("\u2462", "3", 0),  # circled three
    ("\uff13", "3", 1),  # full-width three
    ("$3$", "3", 1),
    ("\\boxed{3}", "3", 1),
    ("$\\boxed{3}$", "3", 1),
    ("\\(3\\)", "3", 1),
    ("**3**", "3", 1),
    ("**3** cubes", "3", 1),
    ("\\text{three}", "3", 1),
    ("30^\\circ", "30", 1),
    ("30 degrees", "30", 1),
    ("7cm", "7", 1),
    ("= 3", "3", 1),
    ("x = 3", "3", 1),
    ("Answer: 3", "3", 1),
    ("Answer - 3", "3", 1),  # a dash, not a sign
    ("Answer: -3", "3", 0),
    ("#3", "3", 1),
    ("1e3", "1000", 0),
    ("0x3", "3", 0),
    ("3:00", "3", 0),
    ("1.2.3", "1.2", 0),
    ("inf", "3", 0),
    ("nan", "3", 0),
    ("many", "3", 0),
    ("no one knows, 3", "3", 0),  # "one" is a number word
    ("9" * 400, "9", 0),
    ("9" * 60_000, "9", 0),
    ("<b>3</b>", "3", 1),
    ("3", "<answer> 3 </answer>", 1),
    ("3", "three", 1),
    ("3", "3.0", 1),
]

BAD_GOLDS = ["", "many", "2 or 3", "50%", "[1, 2]", "9" * 500]


@pytest.mark.parametrize(("answer", "gold", "expected"), ROWS)
def test_digit(answer, gold, expected):
    assert score_digit(answer, gold) == expected


@pytest.mark.parametrize("gold", BAD_GOLDS)
def test_a_gold_that_is_not_one_number_is_refused(gold):
    assert digit_gold_problem(gold)
    with pytest.raises(ValueError, match="gold"):
        score_digit("3", gold)


@pytest.mark.parametrize("value", range(0, 1000, 7))
def test_spelled_numbers_round_trip(value):
    """Spelling by the rules of English, written here independently, reads back to the value."""
    small = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    ones = [*small.split(), "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
    large = "- - twenty thirty forty fifty sixty seventy eighty ninety"
    tens = large.split()

    def below_hundred(n):
        return ones[n] if n < 20 else tens[n // 10] + (f"-{ones[n % 10]}" if n % 10 else "")

    words = below_hundred(value % 100)
    if value >= 100:
        head = f"{ones[value // 100]} hundred"
        words = head if value % 100 == 0 else f"{head} and {words}"
    assert score_digit(words, str(value)) == 1
    assert score_digit(f"There are {words} of them.", str(value)) == 1
