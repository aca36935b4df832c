"""From a rollout to scores: what the options are given."""

import numpy as np

from vlaa_jax.policy.prompts import Prompt
from vlaa_jax.policy.scoring import CompletionScorer
from vlaa_jax.rewards.mixed import MixedReward, RewardSettings
from vlaa_jax.rollout.engine import Rollout
from vlaa_jax.schema import Record


def test_penalties_count_the_tokens_of_each_completion(tmp_path):
    tokens_PGT = np.array([[[7, 7, 7, 7, 0, 0], [1, 2, 3, 4, 5, 6]]], np.int32)
    length_PG = np.array([[4, 6]])
    rollout = Rollout(
        tokens_PGT,
        np.zeros(tokens_PGT.shape, np.float32),
        np.arange(6) < length_PG[..., None],
        length_PG,
        np.zeros(length_PG.shape, bool),
    )
    record = Record("r", "How many?", (), gt="4", verifier_type="digit")
    prompt = Prompt(record, None, None)
    texts = [["<answer>4</answer>"] * 2]
    settings = RewardSettings(
        repetition_weight=1.0, repetition_ngram=2, overlong_weight=1.0, overlong_buffer=4
    )
    with MixedReward(settings) as reward:
        scorer = CompletionScorer(reward, None, None, tmp_path, 8)
        scores = scorer.score([prompt], texts, rollout)
    # "7 7" three times: two of three repeat. The text is one word and repeats nothing.
    assert [score.parts["repetition"] for score in scores] == [1 / 3 - 1, 0.0]
    assert [score.parts["overlong"] for score in scores] == [0.0, -0.5]
