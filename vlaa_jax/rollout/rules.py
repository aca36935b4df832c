"""How tokens are drawn and when a completion ends: one rule for all, or a rule for every row.

One rule is part of the program, so training pays for nothing that it does not use. Rules by row are
arrays: requests with different settings share one burst, and other settings compile nothing.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlaa_jax.algos.logprobs import masked_logits
from vlaa_jax.rollout.sampling import RowSampling, Sampling, sample_rows, sample_tokens

Array = jax.Array

MAX_STOPS = 16
"""Most tokens that end a row's completion."""
NO_ID = -1


@dataclass(frozen=True)
class OneRule:
    """The same for all completions. Static under jit.

    Attributes:
        sampling: how to draw.
        stop_ids: tokens that end a completion.
        max_tokens: limit of a completion.
    """

    sampling: Sampling
    stop_ids: tuple[int, ...]
    max_tokens: int

    def draw(self, logits_BV: Array, keys_B: Array, allowed_V: Array | None) -> tuple[Array, Array]:
        """Tokens and their log-probabilities; see `sample_tokens`."""
        return sample_tokens(logits_BV, keys_B, allowed_V, self.sampling)

    def ends(self, tokens_PG: Array) -> Array:
        """Whether these tokens end their completions."""
        return jnp.isin(tokens_PG, jnp.array(self.stop_ids, jnp.int32))

    def within(self, step_P: Array) -> Array:
        """Whether completions of so many tokens may have another, [P, 1]."""
        return (step_P < self.max_tokens)[:, None]


class RowRules(NamedTuple):
    """A rule for each of P slots with G rows: arrays under jit.

    Attributes:
        sampling: how to draw; [P, G] each.
        limit_PG: int32, most tokens.
        stop_PGN: int32, tokens that end a completion; the rest is `NO_ID`.
        growing_PG: False for rows without a completion, or with one that nobody wants any more.
        likeliest_PG: whose likeliest tokens are wanted.
    """

    sampling: RowSampling
    limit_PG: Array
    stop_PGN: Array
    growing_PG: Array
    likeliest_PG: Array

    @classmethod
    def empty(cls, slots: int, rows: int) -> "RowRules":
        """Rules of rows without a completion, as NumPy arrays to be filled in."""
        host: Any = np  # its arrays stand in for the device's
        ones, zeros = partial(host.ones, (slots, rows)), partial(host.zeros, (slots, rows))
        return cls(
            RowSampling(
                ones(np.float32), zeros(np.int32), ones(np.float32), zeros(np.float32), ones(bool)
            ),
            zeros(np.int32),
            host.full((slots, rows, MAX_STOPS), NO_ID, np.int32),
            zeros(bool),
            zeros(bool),
        )

    def draw(self, logits_BV: Array, keys_B: Array, allowed_V: Array | None) -> tuple[Array, Array]:
        """Tokens and their log-probabilities; see `sample_rows`."""
        rows = RowSampling(*(a.reshape(-1) for a in self.sampling))
        return sample_rows(logits_BV, keys_B, allowed_V, rows)

    def ends(self, tokens_PG: Array) -> Array:
        """Whether these tokens end their completions."""
        return jnp.any(tokens_PG[..., None] == self.stop_PGN, axis=-1)

    def within(self, step_P: Array) -> Array:
        """Whether completions of so many tokens may have another, [P, G]."""
        return step_P[:, None] < self.limit_PG

    def likeliest(
        self, logits_BV: Array, allowed_V: Array | None, count: int
    ) -> tuple[Array, Array]:
        """Ids and log-probabilities of the likeliest tokens, [B, count]; zeros if nobody asks."""

        def find(logits_BV: Array) -> tuple[Array, Array]:
            temperature_B1 = self.sampling.temperature_B.reshape(-1, 1)
            policy_BV = masked_logits(logits_BV, temperature=temperature_B1, allowed_V=allowed_V)
            best_BK, ids_BK = jax.lax.top_k(jax.nn.log_softmax(policy_BV, axis=-1), count)
            return ids_BK.astype(jnp.int32), best_BK

        def nothing(logits_BV: Array) -> tuple[Array, Array]:
            shape = (logits_BV.shape[0], count)
            return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)

        asked = jnp.any(self.likeliest_PG & self.growing_PG)
        return jax.lax.cond(asked, find, nothing, logits_BV)
