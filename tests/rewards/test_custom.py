"""A reward of the user's own, by real files in real processes."""

import json
import subprocess
import sys
import textwrap

import pytest

from vlaa_jax.rewards.custom import MAX_FILE_BYTES
from vlaa_jax.rewards.mixed import MixedReward, RewardSettings
from vlaa_jax.schema import ScoreRequest, UserError

FILE = """
    import os
    import time

    import beside

    def score(batch):
        return [one(row) for row in batch]

    def one(row):
        if row["answer"] == "hang":
            time.sleep(60)
        if row["answer"] == "die":
            os._exit(3)
        if row["answer"] == "raise":
            raise KeyError("weight")
        return {"unsure": None, "large": 7, "text": "1"}.get(
            row["answer"], row.get("weight", 1.0) * (row["answer"] == row["gt"]) * beside.ONE
        )

    def short(batch):
        return [1.0]
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "beside.py").write_text("ONE = 1.0\n")
    (folder / "own.py").write_text(textwrap.dedent(FILE))
    return folder / "own.py"


def request(answer, **extra):
    return ScoreRequest("custom", "4", f"<answer>{answer}</answer>", extra=extra)


def test_it_sees_the_record_and_fails_by_name(file):
    settings = RewardSettings(custom=f"{file}:score", custom_batch=1, custom_timeout_s=1.0)
    answers = ["4", "5", "unsure", "large", "text", "raise", "die", "hang", "4"]
    with MixedReward(settings) as mixed:
        scores = mixed.score([request(answer, weight=0.5) for answer in answers])
        assert mixed.gold_problems([request("4")]) == [None]
    assert [score.reward for score in scores[:2]] == [0.5, 0.0]
    assert scores[-1].reward == 0.5
    reasons = ["no score", "'7' is not a number from 0 to 1", "'1' is not", "KeyError", "died",
               "timed out after 1 s"]  # fmt: skip
    for score, reason in zip(scores[2:-1], reasons, strict=True):
        assert score.failed
        assert score.error.startswith("score: ")
        assert reason in score.error


def test_a_wrong_number_of_scores_fails_the_batch(file):
    with MixedReward(RewardSettings(custom=f"{file}:short")) as mixed:
        scores = mixed.score([request("4"), request("5")])
    assert [score.error for score in scores] == [
        "short: 2 answers were sent, 1 scores came back"
    ] * 2


def test_without_a_function_there_is_no_score(mixed):
    (score,) = mixed.score([request("4")])
    assert score.error == "no reward of one's own: set rewards.custom=FILE.py:function"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("own", "use FILE.py:function"),
        ("os:system", "use FILE.py:function"),
        ("{file}", "use FILE.py:function"),
        ("{file}:missing", "has no function 'missing' (functions: score, one, short)"),
        ("/no/such/file.py:score", "No such file"),
        ("{broken}:score", "is not Python"),
        ("{folder}:score", "Is a directory"),
        ("{large}:score", "larger than"),
    ],
)
def test_a_bad_path_is_refused_at_the_door(file, tmp_path, path, reason):
    broken, folder, large = (tmp_path / f"{name}.py" for name in ("broken", "folder", "large"))
    broken.write_text("def score(:\n")
    folder.mkdir()
    large.write_text("#" * (MAX_FILE_BYTES + 1))
    path = path.format(file=file, broken=broken, folder=folder, large=large)
    with pytest.raises(UserError) as caught:
        MixedReward(RewardSettings(custom=path))
    assert str(caught.value).startswith("rewards.custom") and reason in str(caught.value)


def test_the_command_hands_over_further_fields(file):
    row = {"verifier_type": "custom", "gt": "4", "response": "<answer>4</answer>", "weight": 0.25}
    done = subprocess.run(
        [sys.executable, "-m", "vlaa_jax.rewards", "-", "--custom", f"{file}:score"],
        input=json.dumps(row).encode(), capture_output=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["reward"] == 0.25
    assert "ignored" not in done.stderr.decode()
