"""One maths pool for the whole room: its start costs seconds, its use milliseconds."""

import errno
import itertools
import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from vlaa_jax.rewards.mixed import MixedReward, RewardSettings
from vlaa_jax.schema import Score, ScoreRequest


@pytest.fixture(scope="session")
def mixed() -> Iterator[MixedReward]:
    with MixedReward(RewardSettings(open_ended="text_similarity", math_timeout_s=20.0)) as reward:
        yield reward


@pytest.fixture(scope="session")
def score_answer(mixed: MixedReward) -> Callable[..., Score]:
    """Scores an answer text in a well-formed output."""

    def score(verifier_type: str, answer: str, gt: str, **fields: object) -> Score:
        response = f"<think>Let me look.</think>\n<answer>{answer}</answer>"
        return mixed.score([ScoreRequest(verifier_type, gt, response, **fields)])[0]

    return score


@pytest.fixture
def scarce_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other process cannot be started, as on a machine short of them."""
    start, attempts = subprocess.Popen, itertools.count(1)

    def scarce(*args: object, **kwargs: object) -> object:
        if next(attempts) % 2 == 0:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return start(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", scarce)
