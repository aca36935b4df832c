"""Who sits where in the decoding buffers: host bookkeeping of the engine, in NumPy alone.

The device decodes a buffer of P slots with G rows each. A *slot* holds one prompt's prefix, and its
rows all stand at the same token. This file remembers which prompt and
which completion every slot and row belongs to, takes in the tokens of each burst, and decides when
slots can be filled anew and when the rest fits a smaller buffer.

With several data shards the slots of a shard serve the prompts of that shard, so nothing here ever
asks for a prefix to move between devices. Shards do not wait for each other: each seats its prompts
when it has room.
"""

from typing import NamedTuple

import numpy as np

NOWHERE = 2**30
"""The place of a prompt that is not seated: beyond every slot, where a write goes nowhere."""

MOST_HELD = 2
"""Parts of computed prefixes that wait for slots: so far a shard may be ahead of another."""


class Regroup(NamedTuple):
    """A move to a smaller buffer of P' slots and G' rows, everything counted within its shard.

    Attributes:
        slot_SP: int [shards, P'/shards], the old slot whose prefix a new slot takes.
        row_SPG: int [shards, P'/shards, G'], which of the old slot's rows it takes.
        alive_SPG: bool, False where a new row is padding.
    """

    slot_SP: np.ndarray
    row_SPG: np.ndarray
    alive_SPG: np.ndarray


class Results:
    """Completions as they grow: tokens and log-probabilities by prompt and completion."""

    def __init__(self, prompts: int, completions: int, limit: int) -> None:
        shape = (prompts, completions)
        self.tokens_PGT = np.zeros((*shape, limit), np.int32)
        self.logprobs_PGT = np.zeros((*shape, limit), np.float32)
        self.length_PG = np.zeros(shape, np.int32)
        self.ended_PG = np.zeros(shape, bool)

    @property
    def finished_P(self) -> np.ndarray:
        """Which prompts have no completion that still grows, bool [P]."""
        limit = self.tokens_PGT.shape[-1]
        return (self.ended_PG | (self.length_PG == limit)).all(axis=-1)


def layouts(slots: int, completions: int) -> list[tuple[int, int]]:
    """Buffer shapes (slots, rows per slot) of one shard, from the full one to the smallest.

    Few on purpose, since every shape is a compiled program. Splitting a slot repeats its prefix, so
    halving rows first and then going to single rows keeps the number of prefixes at its maximum.
    """
    shapes = [(slots, completions)]
    for shape in (
        (slots, max(completions // 2, 1)),
        (slots, 1),
        (max(slots // 4, 1), 1),
    ):
        if shape[0] * shape[1] < shapes[-1][0] * shapes[-1][1]:
            shapes.append(shape)
    return shapes


class Slots:
    """Occupation of the buffers.

    Args:
        shards: data shards.
        per_shard: slots of each shard.
        completions: G of a full slot.
        limit: most tokens of a completion.
        stop_ids: the tokens that end one.
    """

    def __init__(
        self,
        shards: int,
        per_shard: int,
        completions: int,
        *,
        limit: int,
        stop_ids: tuple[int, ...],
    ) -> None:
        self._limit, self._stop_ids = limit, stop_ids
        self._slots, self._full = per_shard, completions
        self.prompt_SP = np.full((shards, per_shard), -1)
        self.row_SPG = np.zeros((shards, per_shard, completions), int)
        self.alive_SPG = np.zeros(self.row_SPG.shape, bool)
        self.step_SP = np.zeros(self.prompt_SP.shape, int)

    @property
    def shape(self) -> tuple[int, int]:
        """Slots and rows per slot of a shard now."""
        return self.alive_SPG.shape[1:]

    @property
    def busy(self) -> bool:
        """Whether a completion is still growing."""
        return bool(self.alive_SPG.any())

    @property
    def longest(self) -> int:
        """Tokens that the longest growing completion has."""
        return int(self.step_SP[self.alive_SPG.any(-1)].max(initial=0))

    @property
    def has_room(self) -> bool:
        """Whether a shard has a free slot."""
        return not self.alive_SPG.any(axis=-1).all()

    def seat(self, prompts_SU: np.ndarray) -> np.ndarray:
        """Gives prompts the free slots of their shards, the first ones first.

        Args:
            prompts_SU: places of prompts in the results, by shard; -1 marks one that needs none.

        Returns:
            The slot of each, counted within its shard; NOWHERE where none was free or needed.
        """
        slots_SU = np.full(prompts_SU.shape, NOWHERE, np.int32)
        for shard, alive_PG in enumerate(self.alive_SPG):
            free, waiting = (
                np.flatnonzero(~alive_PG.any(axis=-1)),
                np.flatnonzero(prompts_SU[shard] >= 0),
            )
            slots, who = free[: len(waiting)], waiting[: len(free)]
            slots_SU[shard, who] = slots
            self.prompt_SP[shard, slots] = prompts_SU[shard, who]
            self.row_SPG[shard, slots] = np.arange(self._full)
            self.alive_SPG[shard, slots] = True
            self.step_SP[shard, slots] = 0
        return slots_SU

    def take_in(self, tokens_PGC: np.ndarray, logprobs_PGC: np.ndarray, into: Results) -> None:
        """Books the C tokens a burst has added to every row."""
        shape = (*self.alive_SPG.shape, tokens_PGC.shape[-1])
        tokens, logprobs = tokens_PGC.reshape(shape), logprobs_PGC.reshape(shape)
        time = self.step_SP[..., None, None] + np.arange(shape[-1])
        ends: np.ndarray = np.isin(tokens, self._stop_ids)
        before = np.cumsum(ends, axis=-1) - ends
        real = self.alive_SPG[..., None] & (before == 0) & (time < self._limit)
        s, p, g, c = np.nonzero(real)
        place = self.prompt_SP[s, p], self.row_SPG[s, p, g]
        into.tokens_PGT[*place, time[s, p, 0, c]] = tokens[s, p, g, c]
        into.logprobs_PGT[*place, time[s, p, 0, c]] = logprobs[s, p, g, c]
        np.add.at(into.length_PG, place, 1)
        ended = (real & ends).any(-1)
        s, p, g = np.nonzero(ended)
        into.ended_PG[self.prompt_SP[s, p], self.row_SPG[s, p, g]] = True
        self.step_SP += shape[-1]
        self.alive_SPG &= ~ended & (self.step_SP < self._limit)[..., None]

    def shrink(self) -> Regroup | None:
        """The smallest layout that holds what is still growing, or None to stay."""
        fitting = [s for s in layouts(self._slots, self._full) if self._fits(*s)]
        slots, rows = min(fitting, key=lambda s: s[0] * s[1])
        if slots * rows >= self.alive_SPG.shape[1] * self.alive_SPG.shape[2]:
            return None
        return self._move(slots, rows)

    def _fits(self, slots: int, rows: int) -> bool:
        needed = -(-self.alive_SPG.sum(-1) // rows)
        return bool(needed.sum(-1).max() <= slots)

    def _move(self, slots: int, rows: int) -> Regroup:
        shards = len(self.alive_SPG)
        move = Regroup(
            np.zeros((shards, slots), np.int32),
            np.zeros((shards, slots, rows), np.int32),
            np.zeros((shards, slots, rows), bool),
        )
        for shard in range(shards):
            place = 0
            for slot, alive_G in enumerate(self.alive_SPG[shard]):
                growing = np.flatnonzero(alive_G)
                for start in range(0, len(growing), rows):
                    share = growing[start : start + rows]
                    move.slot_SP[shard, place] = slot
                    move.row_SPG[shard, place, : len(share)] = share
                    move.alive_SPG[shard, place, : len(share)] = True
                    place += 1
        every = np.arange(shards)[:, None]
        self.prompt_SP = self.prompt_SP[every, move.slot_SP]
        self.step_SP = self.step_SP[every, move.slot_SP]
        self.row_SPG = self.row_SPG[every[..., None], move.slot_SP[..., None], move.row_SPG]
        self.alive_SPG = move.alive_SPG.copy()
        return move
