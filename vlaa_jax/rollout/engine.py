"""The rollout engine: prompts in, G completions each out, with the trainer's own parameters.

There is no second implementation of the model and no name mapping; where it pays, the weights are
cast and laid out for decoding once per rollout (weights.py). Decoding runs in bursts on the device.
Between bursts the host seats waiting prompts in slots whose completions have all ended, and moves
the last completions to smaller buffers when nobody waits any more, so that a few long answers do
not hold up a large batch.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vlaa_jax.data.images.planner import ladder
from vlaa_jax.models.qwen_vl.cache import PrefixCache, SuffixCache
from vlaa_jax.models.qwen_vl.model import PromptInputs
from vlaa_jax.parallel.local import fetch
from vlaa_jax.parallel.mesh import data_shards
from vlaa_jax.parallel.sharding import Layout
from vlaa_jax.rollout import generate
from vlaa_jax.rollout.generate import Buffers
from vlaa_jax.rollout.rules import OneRule
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.rollout.slots import MOST_HELD, NOWHERE, Results, Slots
from vlaa_jax.rollout.weights import SAMPLE, SamplingWeights

Array = jax.Array
Cache = TypeVar("Cache", PrefixCache, SuffixCache)


class Rollout(NamedTuple):
    """Completions of P prompts, G each, on the host, right padded to T from the ladder.

    Attributes:
        tokens_PGT: int32 ids, the end token included; 0 behind the end.
        logprobs_PGT: float32 log-probabilities under the policy that sampled.
        mask_PGT: True on real tokens.
        length_PG: number of real tokens.
        truncated_PG: True where the token limit ended the completion, not the end token.
    """

    tokens_PGT: np.ndarray
    logprobs_PGT: np.ndarray
    mask_PGT: np.ndarray
    length_PG: np.ndarray
    truncated_PG: np.ndarray


OnFinished = Callable[[list[int], Rollout], None]
"""Told of prompts, by their places, whose completions have all ended, and of these completions."""


@dataclass(frozen=True)
class Decoding:
    """How many completions, how long they may get, and how much of that is done at once.

    Attributes:
        completions: G.
        max_new_tokens: token limit of a completion.
        slots: most prompts decoded at once; 0 decodes all at once.
        burst: tokens between two looks of the host; 0 decodes to the end in one go.
        min_bucket: smallest T of a rollout.
    """

    completions: int
    max_new_tokens: int
    slots: int = 0
    burst: int = 0
    min_bucket: int = 32

    @property
    def burst_steps(self) -> int:
        """Tokens of a burst."""
        return min(self.burst or self.max_new_tokens, self.max_new_tokens)

    @property
    def cache_lengths(self) -> list[int]:
        """Lengths a completion's past may have: the limit, its half and its quarter.

        Every length is a compiled program, and a longer one makes every token read more. Where one
        burst is all there is, nothing comes before it.
        """
        limit, burst = self.max_new_tokens, self.burst_steps
        if burst == limit:
            return [0]
        shorter = [n for n in (-(-limit // 4), -(-limit // 2)) if n >= 2 * burst]
        return [*shorter, limit]


class Engine:
    """Samples completions.

    Args:
        graphdef: structure of the model.
        decoding: how many, how long, how many at once.
        sampling: how to draw tokens.
        eos_id: the token that ends a completion, or all of those that do.
        allowed_V: which ids may be sampled.
        mesh: where weights and buffers of decoding lie, buffers split by prompt and by head: a
            `weights.sampling_mesh`. None leaves that to jax.
        like: an engine for the same structure and mesh, whose weights and prefill are shared.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        decoding: Decoding,
        *,
        sampling: Sampling,
        eos_id: int | Collection[int],
        allowed_V: np.ndarray,
        mesh: Mesh | None = None,
        like: "Engine | None" = None,
    ) -> None:
        self.decoding = decoding
        self._stop_ids = stop_ids(eos_id)
        self._allowed_V = jnp.asarray(allowed_V)
        self._shards = 1 if mesh is None else data_shards(mesh)
        self.weights: SamplingWeights = like.weights if like else SamplingWeights(graphdef, mesh)
        model_of = self.weights.model
        layout = None if mesh is None else Layout(mesh, SAMPLE)
        rules = OneRule(sampling, self._stop_ids, decoding.max_new_tokens)

        def prefill(params: Any, prompt: PromptInputs) -> PrefixCache:
            return pin_cache(layout, model_of(params).prefill(prompt))

        def burst_(params: Any, buffers: Buffers, allowed_V: Array) -> tuple:
            added = generate.burst(
                model_of(params), buffers, rules, allowed_V=allowed_V, steps=decoding.burst_steps
            )
            return place(added.buffers), added.tokens_PGC, added.logprobs_PGC

        def insert(buffers: Buffers, part: PrefixCache, keys_P: Array, *where: Array) -> Buffers:
            keys_PG = generate.group_keys(keys_P, decoding.completions)
            return place(generate.insert(buffers, part, keys_PG, *where))

        place: Any = partial(pin_buffers, layout)
        self._prefill: Any = like._prefill if like else jax.jit(prefill)
        self._empty = jax.jit(
            lambda *a, **k: place(generate.empty_buffers(*a, **k)),
            static_argnames=("slots", "completions", "prefix", "length"),
        )
        self._insert = jax.jit(insert, donate_argnums=0)
        self._regroup = jax.jit(lambda *a: place(generate.regroup(*a)))
        self._lengthen = jax.jit(lambda b, n: place(generate.lengthen(b, n)), static_argnums=1)
        self._burst = jax.jit(burst_, donate_argnums=1)

    @property
    def compile_count(self) -> int:
        """Programs compiled so far."""
        jitted = (
            self._prefill,
            self._empty,
            self._insert,
            self._regroup,
            self._lengthen,
            self._burst,
        )
        programs = sum(int(f._cache_size()) for f in jitted)  # type: ignore
        return programs + self.weights.compile_count

    def generate(
        self,
        params: Mapping[str, Any],
        parts: Iterable[PromptInputs],
        keys_P: Array,
        *,
        prefix_length: int,
        on_finished: OnFinished | None = None,
    ) -> Rollout:
        """Samples G completions of every prompt.

        Args:
            params: the policy's parameters, or `weights` of them.
            parts: the prompts on the device, a few at a time, the same number in each part; asked
                for one ahead, so that the host prepares a part while the device decodes.
            keys_P: one random key per real prompt; prompts of the last part beyond them are
                padding.
            prefix_length: positions of the longest prompt, or more.
            on_finished: told after every burst which prompts have all their completions now, and
                given these; every prompt is told once. Long answers of others go on meanwhile.

        Returns:
            The completions in the order of the prompts, cropped to the ladder size of the longest.
        """
        return _Round(self, self.weights(params), iter(parts), keys_P, prefix_length).run(
            on_finished
        )


class _Part:
    """Prompts whose prefixes are computed and who wait for slots.

    Attributes:
        prefix: their cache.
        keys_U: their random keys.
        prompts_SU: their places in the results, by shard; -1 when seated, and for padding.
    """

    def __init__(self, prefix: PrefixCache, keys_U: Array, prompts_SU: np.ndarray) -> None:
        self.prefix, self.keys_U, self.prompts_SU = prefix, keys_U, prompts_SU


class _Round:
    """One call of `Engine.generate`."""

    def __init__(
        self,
        engine: Engine,
        params: Mapping[str, Any],
        parts: Iterator[PromptInputs],
        keys_P: Array,
        prefix_length: int,
    ) -> None:
        self.engine, self.params, self.parts = engine, params, parts
        self.keys_P, self.prefix_length = keys_P, prefix_length
        self.count = keys_P.shape[0]
        self.computed = 0
        self.held: list[_Part] = []
        decoding = engine.decoding
        self.results = Results(self.count, decoding.completions, decoding.max_new_tokens)
        self.waiting: PromptInputs | None = next(parts)
        self.unit = self.waiting.ids_PT.shape[0]
        fill = -(-min(decoding.slots or self.count, self.count) // self.unit) * self.unit
        self.slots = Slots(
            engine._shards,
            fill // engine._shards,
            decoding.completions,
            limit=decoding.max_new_tokens,
            stop_ids=engine._stop_ids,
        )
        self.buffers: Buffers | None = None

    def run(self, on_finished: OnFinished | None) -> Rollout:
        """Decodes until every prompt is answered."""
        told_P = np.zeros(self.count, bool)
        self._seat()
        while self.slots.busy:
            self.buffers, tokens, logprobs = self.engine._burst(
                self.params, self._fit(), self.engine._allowed_V
            )
            if self.waiting is None:
                self.waiting = next(self.parts, None)
            self.slots.take_in(fetch(tokens), fetch(logprobs), self.results)
            if on_finished is not None:
                new = np.flatnonzero(self.results.finished_P & ~told_P)
                told_P[new] = True
                if len(new):
                    on_finished(new.tolist(), self._rollout(new))
            self._seat()
        return self._rollout(np.arange(self.count))

    def _seat(self) -> None:
        """Fills free slots with prompts that wait, each shard with its own."""
        for part in self.held:
            self._insert(part)
        self.held = [part for part in self.held if (part.prompts_SU >= 0).any()]
        while self.waiting is not None and self.slots.has_room and len(self.held) < MOST_HELD:
            part = self._prefill(self.waiting)
            self._insert(part)
            self.held += [part] * bool((part.prompts_SU >= 0).any())
            self.waiting = next(self.parts, None)

    def _prefill(self, prompt: PromptInputs) -> _Part:
        """The prefixes of the next prompts; what is beyond the last one is padding."""
        prefix = self.engine._prefill(self.params, prompt)
        prompts_U = self.computed + np.arange(self.unit)
        self.computed += self.unit
        prompts_U[prompts_U >= self.count] = -1
        keys_U = self.keys_P[np.maximum(prompts_U, 0)]
        return _Part(prefix, keys_U, prompts_U.reshape(self.engine._shards, -1))

    def _insert(self, part: _Part) -> None:
        """Seats those of a part that find a slot."""
        engine, seats = self.engine, self.slots.seat(part.prompts_SU)
        seated = seats != NOWHERE
        if not seated.any():
            return
        if self.buffers is None:
            shards, per_shard = self.slots.prompt_SP.shape
            self.buffers = engine._empty(
                part.prefix,
                part.keys_U,
                slots=shards * per_shard,
                completions=engine.decoding.completions,
                prefix=self.prefix_length,
                length=engine.decoding.cache_lengths[0],
            )
        self.buffers = engine._insert(self.buffers, part.prefix, part.keys_U, seats, seated)
        part.prompts_SU = np.where(seated, -1, part.prompts_SU)

    def _fit(self) -> Buffers:
        """The buffers as small as the rest allows and as long as the next burst asks for.

        They are handed over: what they were moved from is free as soon as the move is done.
        """
        engine, buffers, self.buffers = self.engine, self.buffers, None
        assert buffers is not None, "nobody is seated"
        if self.waiting is None and not self.held:
            move = self.slots.shrink()
            if move is not None:
                buffers = engine._regroup(buffers, *move)
        lengths = engine.decoding.cache_lengths
        needed = min(self.slots.longest + engine.decoding.burst_steps, lengths[-1])
        length = next(n for n in lengths if n >= needed)
        if length > buffers.suffix.k_LPKGUH.shape[4]:
            buffers = engine._lengthen(buffers, length)
        return buffers

    def _rollout(self, prompts: np.ndarray) -> Rollout:
        """Completions of some prompts, as they are now."""
        results = self.results
        length_PG = results.length_PG[prompts]
        length = ladder(int(length_PG.max(initial=1)), self.engine.decoding.min_bucket)
        return Rollout(
            _fit_columns(results.tokens_PGT[prompts], length),
            _fit_columns(results.logprobs_PGT[prompts], length),
            np.arange(length) < length_PG[..., None],
            length_PG,
            ~results.ended_PG[prompts],
        )


def _fit_columns(array_PGT: np.ndarray, length: int) -> np.ndarray:
    missing = max(length - array_PGT.shape[-1], 0)
    return np.pad(array_PGT[..., :length], ((0, 0), (0, 0), (0, missing)))


def stop_ids(eos_id: int | Collection[int]) -> tuple[int, ...]:
    """Ids that end a completion, in order."""
    return (eos_id,) if isinstance(eos_id, int) else tuple(sorted(map(int, eos_id)))


def pin_cache(layout: Layout | None, cache: Cache) -> Cache:
    """Splits a prefix or suffix cache by prompt, and its keys and values by head too."""
    if layout is None:
        return cache
    k, v, *rest = cache
    # Keys come with as many heads as the mesh has parts; see SelfAttention.project.
    k, v = (layout.pin(a, None, "batch", "heads", *(None,) * (a.ndim - 3)) for a in (k, v))
    return type(cache)(k, v, *(layout.pin(a, "batch") for a in rest))


def pin_buffers(layout: Layout | None, buffers: Buffers) -> Buffers:
    """Splits the slots over the data shards."""
    if layout is None:
        return buffers
    prefix, suffix, *rows = buffers
    rows = [layout.pin(a, "batch", None) for a in rows]
    return Buffers(pin_cache(layout, prefix), pin_cache(layout, suffix), *rows)
