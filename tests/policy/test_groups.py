"""Groups of completions: which teach something, choosing, and putting together."""

import math

import numpy as np

from vlaa_jax.policy.groups import Groups, concatenate, varied
from vlaa_jax.rollout.engine import Rollout
from vlaa_jax.schema import Score


def groups(raw_PG, length):
    raw = np.array(raw_PG, float)
    shape = (*raw.shape, length)
    rollout = Rollout(
        np.full(shape, length, np.int32),
        np.full(shape, -0.5, np.float32),
        np.ones(shape, bool),
        np.full(raw.shape, length),
        np.zeros(raw.shape, bool),
    )
    scores = [Score(v, "digit", None, {"raw": v, "format": 1.0}) for v in raw.reshape(-1)]
    names = [f"{length}-{p}" for p in range(len(raw))]
    return Groups(names, rollout, [[n] * raw.shape[1] for n in names], scores)


def test_a_group_teaches_when_two_valid_rewards_differ():
    nan = math.nan
    raw = np.array(
        [[1, 1, 1], [0, 0, 0], [0, 1, 0], [nan, 1, 1], [nan, 1, 0], [nan, nan, 1], [nan] * 3]
    )
    assert varied(raw).tolist() == [False, False, True, False, True, False, False]


def test_the_unshaped_reward_decides():
    shaped = groups([[1, 1]], 3)
    scores = [s for s in shaped.scores]
    scores[0] = Score(0.4, "digit", None, {"raw": 1.0, "format": 1.0, "overlong": -0.6})
    assert not varied(shaped._replace(scores=scores).raw_PG).any()


def test_taking_and_putting_together_keeps_everything_in_line():
    both = concatenate(groups([[0, 1], [1, 1]], 3), groups([[1, 0], [0, 0]], 5))
    assert both.prompts == ["3-0", "3-1", "5-0", "5-1"]
    assert both.rollout.tokens_PGT.shape == (4, 2, 5)
    assert not both.rollout.mask_PGT[:2, :, 3:].any()
    taken = both.take([2, 0])
    assert taken.prompts == ["5-0", "3-0"]
    assert taken.raw_PG.tolist() == [[1, 0], [0, 1]]
    assert taken.texts == [["5-0"] * 2, ["3-0"] * 2]
    assert taken.rollout.length_PG.tolist() == [[5, 5], [3, 3]]
