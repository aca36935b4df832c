"""From completions to rewards: texts, score requests, and scores as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlaa_jax.data.images.files import resolve_inside
from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.text.chat import Chat
from vlaa_jax.policy.prompts import Prompt
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.rollout.engine import Rollout
from vlaa_jax.schema import Score, ScoreRequest


@dataclass(frozen=True)
class CompletionScorer:
    """Reads completions as text and has them scored beside the records they answer.

    Attributes:
        reward: scores them.
        chat: decodes them.
        processor: knows the size of the image that the model saw.
        image_root: folder that image paths are relative to; None shows scorers no images.
        max_new_tokens: longest completion.
    """

    reward: MixedReward
    chat: Chat
    processor: ImageProcessor
    image_root: Path | None
    max_new_tokens: int

    def texts(self, rollout: Rollout) -> list[list[str]]:
        """Decoded completions, [P][G], special tokens left out."""
        prompts, groups = rollout.length_PG.shape
        flat = self.chat.decode_batch(_tokens(rollout))
        return [flat[p * groups : (p + 1) * groups] for p in range(prompts)]

    def request(self, prompt: Prompt, text: str) -> ScoreRequest:
        """The score request for one answer to a prompt."""
        record, size, root = prompt.record, prompt.image_size, self.image_root
        return ScoreRequest(
            verifier_type=record.verifier_type or "",
            gt=record.gt or "",
            response=text,
            id=record.id,
            question=record.question,
            image_size=size,
            resized_size=self.processor.resized(*size) if size else None,
            box_space=record.box_space,
            images=tuple(str(resolve_inside(root, path)) for path in record.images if root),
            extra=record.meta,
        )

    def score(
        self, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]], rollout: Rollout
    ) -> list[Score]:
        """Scores of all completions, prompt by prompt; blocks, so run it in a thread."""
        pairs = zip(prompts, texts, strict=True)
        requests = [self.request(prompt, text) for prompt, group in pairs for text in group]
        return self.reward.score(
            requests,
            lengths=rollout.length_PG.reshape(-1).tolist(),
            max_length=self.max_new_tokens,
            tokens=_tokens(rollout),
        )


def _tokens(rollout: Rollout) -> list[list[int]]:
    """Tokens of every completion, prompt by prompt, without what follows its end."""
    prompts, groups = rollout.length_PG.shape
    return [
        rollout.tokens_PGT[p, g, : rollout.length_PG[p, g]].tolist()
        for p in range(prompts)
        for g in range(groups)
    ]


def rewards_array(scores: Sequence[Score], shape: tuple[int, int]) -> np.ndarray:
    """Rewards as float32 [P, G]; NaN where the scorer failed."""
    return np.array([score.reward for score in scores], np.float32).reshape(shape)
