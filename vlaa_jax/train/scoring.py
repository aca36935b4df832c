"""From completions to rewards: texts, score requests, and scores as arrays."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlaa_jax.data.chat import Chat
from vlaa_jax.data.images import ImageProcessor, resolve_inside
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.rollout.engine import Rollout
from vlaa_jax.schema import Score, ScoreRequest
from vlaa_jax.train.prompts import Prompt


def texts_of(chat: Chat, rollout: Rollout) -> list[list[str]]:
    """Decoded completions, [P][G], special tokens left out."""
    prompts, groups = rollout.length_PG.shape
    flat = chat.decode_batch(_tokens(rollout))
    return [flat[p * groups : (p + 1) * groups] for p in range(prompts)]


def _tokens(rollout: Rollout) -> list[list[int]]:
    """Tokens of every completion, prompt by prompt, without what follows its end."""
    prompts, groups = rollout.length_PG.shape
    return [
        rollout.tokens_PGT[p, g, : rollout.length_PG[p, g]].tolist()
        for p in range(prompts)
        for g in range(groups)
    ]


def requests_for(
    prompts: Sequence[Prompt],
    texts: Sequence[Sequence[str]],
    processor: ImageProcessor,
    image_root: Path,
) -> list[ScoreRequest]:
    """One score request per completion, prompt by prompt; image paths lie below `image_root`."""
    requests = []
    for prompt, group in zip(prompts, texts, strict=True):
        record, size = prompt.record, prompt.image_size
        resized = processor.resized(*size) if size else None
        images = tuple(str(resolve_inside(image_root, path)) for path in record.images)
        requests += [
            ScoreRequest(
                verifier_type=record.verifier_type or "",
                gt=record.gt or "",
                response=text,
                id=record.id,
                question=record.question,
                image_size=size,
                resized_size=resized,
                box_space=record.box_space,
                images=images,
            )
            for text in group
        ]
    return requests


def score_completions(
    reward: MixedReward,
    requests: Sequence[ScoreRequest],
    rollout: Rollout,
    max_new_tokens: int,
) -> list[Score]:
    """Scores of all completions, prompt by prompt; blocks, so run it in a thread."""
    return reward.score(
        requests,
        lengths=rollout.length_PG.reshape(-1).tolist(),
        max_length=max_new_tokens,
        tokens=_tokens(rollout),
    )


def rewards_array(scores: Sequence[Score], shape: tuple[int, int]) -> np.ndarray:
    """Rewards as float32 [P, G]; NaN where the scorer failed."""
    return np.array([score.reward for score in scores], np.float32).reshape(shape)
