"""Which groups are computed together, and in what shape: the same in scoring and in updates."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from vlaa_jax.data.rows.lengths import Shape, micro_batches, micro_shapes
from vlaa_jax.policy.prompts import Prompt

TPU_LANES = 128


class Micro(NamedTuple):
    """Some groups of a step.

    Attributes:
        index_P: their places.
        shape: positions of a prompt and of a completion; None leaves them as they come.
    """

    index_P: np.ndarray
    shape: Shape | None

    @property
    def tokens(self) -> int | None:
        """Positions of a prompt, or None."""
        return None if self.shape is None else self.shape.prompt

    def cut(self, array_PGT: np.ndarray) -> np.ndarray:
        """These groups of an array, with the shape's positions of a completion."""
        own = array_PGT[self.index_P]
        if self.shape is None or own.ndim < 3:
            return own
        missing = max(self.shape.answer - own.shape[2], 0)
        return np.pad(own[:, :, : self.shape.answer], ((0, 0), (0, 0), (0, missing)))


@dataclass(frozen=True)
class MicroPlan:
    """Deals the groups of a step to updates, and those of an update to micro-batches.

    Groups of like lengths come together, in one of a few shapes that were fixed at the start; all
    hosts know all lengths, so all run the same programs. An update that is one micro-batch keeps
    its order and takes the sizes of the ladder.

    Attributes:
        per_update: groups of an update.
        micro: groups of a micro-batch.
        shapes: from `micro_shapes`.
    """

    per_update: int
    micro: int
    shapes: tuple[Shape, ...]

    @classmethod
    def of(cls, per_update: int, micro: int, *, prompt: int, answer: int) -> "MicroPlan":
        """For prompts and completions of at most so many positions."""
        lanes = TPU_LANES if jax.default_backend() == "tpu" else 1
        return cls(per_update, micro, micro_shapes(prompt, answer, lanes))

    def __call__(self, prompts: Sequence[Prompt], length_PG: np.ndarray) -> Iterator[list[Micro]]:
        """The micro-batches of each update, updates in the order of the groups."""
        prompt_P = np.array([prompt.encoded.length for prompt in prompts])
        answer_P = length_PG.max(axis=1)
        completions = length_PG.shape[1]
        for start in range(0, len(prompts), self.per_update):
            share = slice(start, start + self.per_update)
            places = np.arange(len(prompts))[share]
            if len(places) == self.micro:
                yield [Micro(places, None)]
                continue
            found = micro_batches(
                prompt_P[share],
                answer_P[share],
                self.shapes,
                self.micro,
                completions=completions,
            )
            yield [Micro(places[batch.index_P], batch.shape) for batch in found]
