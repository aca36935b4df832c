"""Completions of requests that come and go: the engine's decoding with a seat for whoever arrives.

Buffers have slots of a fixed number of rows. A request takes as many slots as its completions
need, all filled from one prefill, while others decode; what it asks for (temperature, limit, ends,
seed) is a row of an array. Its tokens depend on its own prompt, rule and seed alone. Buffers have
few sizes, and grow and shrink with what is in hand: an idle slot costs as much as a busy one.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vlaa_jax.models.qwen_vl.cache import PrefixCache
from vlaa_jax.models.qwen_vl.model import PromptInputs
from vlaa_jax.parallel.local import fetch
from vlaa_jax.parallel.mesh import data_shards
from vlaa_jax.parallel.sharding import Layout
from vlaa_jax.rollout import generate
from vlaa_jax.rollout.engine import pin_buffers, pin_cache
from vlaa_jax.rollout.generate import Buffers
from vlaa_jax.rollout.rules import MAX_STOPS, NO_ID, RowRules
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.rollout.slots import NOWHERE
from vlaa_jax.rollout.weights import SAMPLE, SamplingWeights

Array = jax.Array

TOGETHER = 4
"""Prompts of a data shard that are prefilled together where enough wait. More gain little: four
small images fill a vision buffer, and four long prompts keep the device busy."""
MAX_LIKELIEST = 20
"""Likeliest tokens that are told of each place; what OpenAI's interface allows."""
_KEYS = "threefry2x32"
_LEAST_SLOTS, _LEAST_PREFIX, _LEAST_PAST = 4, 64, 64
PATIENCE = np.array((1, 16, 16))
"""Bursts that fewer slots, shorter prefixes and pasts would have been enough for, before there are
no more of them: clients leave and come by the dozen, and who is long today is so tomorrow."""
_FREE = -1


class Wanted(NamedTuple):
    """How a prompt is to be answered.

    Attributes:
        sampling: how tokens are drawn.
        limit: most tokens of a completion, at most the stream's.
        stop_ids: tokens that end one; at most `rules.MAX_STOPS`.
        seed: of the completions, at least 0 and below 2**64. Those of `Engine.generate` with
            ``jax.random.key(seed)`` are the same.
        completions: how many.
        likeliest: whether the likeliest tokens of each place are told.
    """

    sampling: Sampling
    limit: int
    stop_ids: tuple[int, ...]
    seed: int
    completions: int = 1
    likeliest: bool = False


class News(NamedTuple):
    """What a burst has added to a completion; T tokens.

    Attributes:
        ticket: of its request.
        choice: which of the request's completions.
        tokens_T: int32, an end token included.
        logprobs_T: float32, under the policy.
        likeliest: ids [T, K] and log-probabilities, where they were asked for.
        ended: "stop" after an end token, "length" at the limit, empty where it goes on.
    """

    ticket: int
    choice: int
    tokens_T: np.ndarray
    logprobs_T: np.ndarray
    likeliest: tuple[np.ndarray, np.ndarray] | None
    ended: str


class Stream:
    """Decodes requests as they come. For one thread.

    Args:
        graphdef: structure of the model.
        params: the policy's parameters, or None until there are some; see `use`.
        slots: most prefixes held at once, rounded up to a multiple of the data shards.
        rows: completions of each; a request for more takes several slots, which repeats its
            prefix, and one for fewer leaves rows idle.
        max_prompt: positions of the longest prompt.
        max_new_tokens: highest limit of a completion.
        burst: tokens between two looks of the host.
        allowed_V: which ids may be sampled.
        mesh: where weights and buffers lie, a `weights.sampling_mesh`; None leaves that to jax.

    Attributes:
        shards: data shards.
        per_shard: most slots of each.
        widths: how many slots a shard may have at a time.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        params: Mapping[str, Any] | None,
        *,
        slots: int,
        rows: int,
        max_prompt: int,
        max_new_tokens: int,
        burst: int,
        allowed_V: np.ndarray,
        mesh: Mesh | None = None,
    ) -> None:
        self.shards = 1 if mesh is None else data_shards(mesh)
        self.per_shard = -(-slots // self.shards)
        self.burst = min(burst, max_new_tokens)
        self.widths = rungs(self.per_shard, _LEAST_SLOTS, 4)
        self._prefixes = rungs(max_prompt, _LEAST_PREFIX, 2)
        self._pasts = rungs(max_new_tokens, max(_LEAST_PAST, 2 * self.burst), 4)
        self._allowed_V = jnp.asarray(allowed_V)
        self._weights = SamplingWeights(graphdef, mesh)
        self._jit(mesh)
        self._buffers: Buffers | None = None
        self._tickets, self._spare = 0, np.zeros(3, int)
        count = self.per_shard * self.shards
        self._rules = RowRules.empty(count, rows)
        self._ticket_P = np.full(count, _FREE)
        self._first_P = np.zeros(count, int)
        self._step_P = np.zeros(count, int)
        self._prompt_P = np.zeros(count, int)
        self._params: Mapping[str, Any] | None = None
        self.use(params)

    def _jit(self, mesh: Mesh | None) -> None:
        layout = None if mesh is None else Layout(mesh, SAMPLE)
        model_of = self._weights.model
        place: Any = partial(pin_buffers, layout)

        def prefill(params: Any, prompt: PromptInputs) -> PrefixCache:
            return pin_cache(layout, model_of(params).prefill(prompt))

        def insert(
            buffers: Buffers, part: PrefixCache, seeds_P2: Array, choice_PG: Array, *where: Array
        ) -> Buffers:
            keys_PG = choice_keys(seeds_P2, choice_PG)
            return place(generate.insert(buffers, part, keys_PG, *where))

        def burst(params: Any, buffers: Buffers, rules: RowRules, allowed_V: Array) -> tuple:
            buffers = buffers._replace(done_PG=buffers.done_PG | ~rules.growing_PG)
            added = generate.burst(
                model_of(params),
                buffers,
                rules,
                allowed_V=allowed_V,
                steps=self.burst,
                likeliest=min(MAX_LIKELIEST, len(self._allowed_V)),
            )
            return place(added.buffers), *added[1:]

        self._prefill: Any = jax.jit(prefill)
        self._empty = jax.jit(
            lambda *a, **k: place(generate.empty_buffers(*a, **k)),
            static_argnames=("slots", "completions", "prefix", "length"),
        )
        self._insert = jax.jit(insert, donate_argnums=0)

        def resize(buffers: Buffers, slot_SP: Array, prefix: int, length: int) -> Buffers:
            # In one program: no copy of the cache lies between the old one and the new.
            return place(generate.resize(generate.pick_slots(buffers, slot_SP), prefix, length))

        self._resize = jax.jit(resize, static_argnums=(2, 3))
        self._burst = jax.jit(burst, donate_argnums=1)

    def use(self, params: Mapping[str, Any] | None) -> None:
        """Decodes with these parameters from now on, cast and laid out once.

        Requests in hand are dropped. None gives up weights and buffers.
        """
        for ticket in set(self._ticket_P.tolist()) - {_FREE}:
            self.drop(ticket)
        self._params = None if params is None else self._weights(params)
        if params is None:
            self._buffers = None

    @property
    def compile_count(self) -> int:
        """Programs compiled so far."""
        jitted: tuple[Any, ...] = (
            self._prefill,
            self._empty,
            self._insert,
            self._resize,
            self._burst,
        )
        return sum(int(f._cache_size()) for f in jitted) + self._weights.compile_count

    @property
    def rows(self) -> int:
        """Completions of a slot."""
        return self._rules.growing_PG.shape[1]

    @property
    def most(self) -> int:
        """Completions that a request may ask for."""
        return self.per_shard * self.rows

    @property
    def growing(self) -> int:
        """Completions that are being decoded."""
        return int(self._rules.growing_PG.sum())

    def places(self, completions: Sequence[int], most: int = 1) -> list[int]:
        """Data shards for the first of some requests, as many as have room now.

        Args:
            completions: of each request, in the order they are to be served.
            most: requests that may go to one shard.
        """
        free_S = (self._ticket_P == _FREE).reshape(self.shards, -1).sum(axis=1)
        found: list[int] = []
        for count in completions:
            open_S = [free if found.count(s) < most else 0 for s, free in enumerate(free_S)]
            shard = int(np.argmax(open_S))  # the emptiest
            if open_S[shard] < self._slots_of(count):
                break
            free_S[shard] -= self._slots_of(count)
            found.append(shard)
        return found

    def _slots_of(self, completions: int) -> int:
        return -(-completions // self.rows)

    def prefill(self, prompt: PromptInputs) -> PrefixCache:
        """The prefixes of prompts, as many for each data shard, for `seat`."""
        part: PrefixCache = self._prefill(self._params, prompt)
        return part

    def seat(self, part: PrefixCache, wanted_P: Sequence[Wanted | None]) -> list[int]:
        """Begins to answer prompts.

        Args:
            part: their prefixes, those of a shard together.
            wanted_P: how each is answered, on a shard with room (`places`); None for padding.

        Returns:
            A ticket for each, by which `News` name it.
        """
        tickets, slots = [], []
        for place, wanted in enumerate(wanted_P):
            shard = place * self.shards // len(wanted_P)
            self._tickets += 1
            tickets.append(self._tickets)
            slots.append([] if wanted is None else self._occupy(shard, self._tickets, wanted))
            self._prompt_P[slots[-1]] = part.k_LPKSH.shape[3]
        self._buffers = self._grown(self._buffers or self._new(part))
        seeds = [0 if wanted is None else wanted.seed for wanted in wanted_P]
        seeds_P2 = np.array([(seed >> 32, seed & 0xFFFFFFFF) for seed in seeds], np.uint32)
        for turn in range(max(map(len, slots))):
            here = [own[turn] if turn < len(own) else None for own in slots]
            places = [NOWHERE if p is None else p % self.per_shard for p in here]
            choice_PG = turn * self.rows + np.arange(self.rows) + np.zeros((len(here), 1), int)
            self._buffers = self._insert(
                self._buffers,
                part,
                seeds_P2,
                choice_PG.astype(np.uint32),
                np.array(places, np.int32).reshape(self.shards, -1),
                np.array([p is not None for p in here]).reshape(self.shards, -1),
            )
        return tickets

    def _occupy(self, shard: int, ticket: int, wanted: Wanted) -> list[int]:
        """Takes slots of a shard and writes the request's rules to their rows."""
        first, rules = shard * self.per_shard, self._rules
        free = np.flatnonzero(self._ticket_P[first : first + self.per_shard] == _FREE) + first
        slots = free[: self._slots_of(wanted.completions)].tolist()
        if len(slots) < self._slots_of(wanted.completions):
            raise ValueError(f"no room for {wanted.completions} completions on shard {shard}")
        stops = (*wanted.stop_ids, *[NO_ID] * (MAX_STOPS - len(wanted.stop_ids)))
        sampling = wanted.sampling
        values = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
        for array_PG, value in zip(rules.sampling, (*values, sampling.greedy), strict=True):
            array_PG[slots] = value
        rules.limit_PG[slots], rules.stop_PGN[slots] = wanted.limit, stops
        rules.likeliest_PG[slots] = wanted.likeliest
        self._ticket_P[slots], self._step_P[slots] = ticket, 0
        self._first_P[slots] = np.arange(len(slots)) * self.rows
        choices_PG = self._first_P[slots][:, None] + np.arange(self.rows)
        rules.growing_PG[slots] = choices_PG < wanted.completions
        return slots

    def _new(self, part: PrefixCache) -> Buffers:
        slots, prefix, past = self._needed()
        keys = jax.random.wrap_key_data(jnp.zeros((self.shards, 2), jnp.uint32), impl=_KEYS)
        buffers: Buffers = self._empty(
            part,
            keys,
            slots=slots * self.shards,
            completions=self.rows,
            prefix=prefix,
            length=past,
        )
        return buffers

    def _needed(self) -> tuple[int, int, int]:
        """Slots of a shard, and positions of a prompt and of a completion, that are enough until
        the end of the next burst."""
        held_P = self._ticket_P != _FREE
        slots = int(held_P.reshape(self.shards, -1).sum(axis=1).max())
        after = int(self._step_P[held_P].max(initial=0)) + self.burst
        prompt = int(self._prompt_P[held_P].max(initial=0))
        return (
            _rung(self.widths, slots),
            _rung(self._prefixes, prompt),
            _rung(self._pasts, after),
        )

    def _grown(self, buffers: Buffers) -> Buffers:
        """The buffers as large as is needed; whoever is seated stays where he is."""
        now = self._sizes(buffers)
        return self._resized(buffers, now, np.maximum(now, self._needed()))

    def _fit(self, buffers: Buffers) -> Buffers:
        """The buffers as large as is needed, and not much larger for long. Once in a burst."""
        now, needed = self._sizes(buffers), np.array(self._needed())
        self._spare = np.where(needed < now, self._spare + 1, 0)
        target = np.where(self._spare > PATIENCE, needed, np.maximum(now, needed))
        return self._resized(buffers, now, target)

    def _sizes(self, buffers: Buffers) -> np.ndarray:
        """Slots of a shard, and positions of a prompt and of a completion."""
        slots = buffers.ids_PG.shape[0] // self.shards
        return np.array((slots, buffers.prefix.k_LPKSH.shape[3], buffers.suffix.k_LPKGUH.shape[4]))

    def _resized(self, buffers: Buffers, now: np.ndarray, target: np.ndarray) -> Buffers:
        if (target == now).all():
            return buffers
        slot_SP = self._moved(int(now[0]), int(target[0]))
        resized: Buffers = self._resize(buffers, slot_SP, *target[1:].tolist())
        return resized

    def _moved(self, slots: int, target: int) -> np.ndarray:
        """Which slot of a shard each of its `target` slots is made of, now that it has `slots`.

        Fewer are the held ones; what these are known by moves with them. Otherwise all stay, and
        any will do for the new ones: nobody is there, and who comes fills all of it.
        """
        if target >= slots:
            return np.minimum(np.arange(target), slots - 1) + np.zeros((self.shards, 1), int)
        free_SP = (self._ticket_P == _FREE).reshape(self.shards, -1)
        order_SP = np.argsort(free_SP, axis=1, kind="stable")
        order_P = (order_SP + np.arange(self.shards)[:, None] * self.per_shard).reshape(-1)
        known = (*jax.tree.leaves(self._rules), self._ticket_P, self._first_P, self._step_P)
        for array_P in (*known, self._prompt_P):
            array_P[:] = array_P[order_P]
        return order_SP[:, :target]

    def _first_slots(self, array_P: np.ndarray, slots: int) -> np.ndarray:
        """What stands first of each shard, as many as the buffers have now."""
        by_shard = array_P.reshape(self.shards, self.per_shard, *array_P.shape[1:])[:, :slots]
        return by_shard.reshape(-1, *array_P.shape[1:])

    def step(self) -> list[News]:
        """Decodes one burst; what it has added to each completion."""
        if self._buffers is None:
            return []
        rules = self._rules
        self._buffers = self._fit(self._buffers)  # the old ones are free before the burst begins
        slots = int(self._sizes(self._buffers)[0])
        # The rules are this process's memory: nothing writes there before the tokens have come.
        here = jax.tree.map(lambda array_P: self._first_slots(array_P, slots), rules)
        self._buffers, *added, best = self._burst(
            self._params, self._buffers, here, self._allowed_V
        )
        tokens_PGC, logprobs_PGC = map(fetch, added)
        best = [fetch(a) for a in best] if rules.likeliest_PG.any() else []
        news = []
        for p, g in np.argwhere(rules.growing_PG).tolist():
            here_p = p // self.per_shard * slots + p % self.per_shard
            count, ended = self._length(p, g, tokens_PGC[here_p, g])
            mine = (here_p, g, slice(count))
            asked = rules.likeliest_PG[p, g]
            likeliest = (best[0][mine], best[1][mine]) if asked else None
            ticket, choice = int(self._ticket_P[p]), int(self._first_P[p]) + g
            news.append(
                News(ticket, choice, tokens_PGC[mine], logprobs_PGC[mine], likeliest, ended)
            )
            rules.growing_PG[p, g] = not ended
        self._step_P += self.burst
        self._let_go()
        return news

    def _length(self, p: int, g: int, tokens_C: np.ndarray) -> tuple[int, str]:
        """How many of a burst's tokens are a completion's own, and why it ends there."""
        rest = int(self._rules.limit_PG[p, g] - self._step_P[p])
        stops = np.flatnonzero(np.isin(tokens_C[:rest], self._rules.stop_PGN[p, g]))
        if len(stops):
            return int(stops[0]) + 1, "stop"
        return min(rest, len(tokens_C)), "length" if rest <= len(tokens_C) else ""

    def drop(self, ticket: int, choice: int | None = None) -> None:
        """Stops a request, or one of its completions; nothing is told of it any more."""
        mine_PG = np.repeat((self._ticket_P == ticket)[:, None], self.rows, axis=1)
        if choice is not None:
            mine_PG &= self._first_P[:, None] + np.arange(self.rows) == choice
        self._rules.growing_PG[mine_PG] = False
        self._let_go()

    def _let_go(self) -> None:
        """Frees the slots whose completions have all ended."""
        over_P = ~self._rules.growing_PG.any(axis=1)
        self._ticket_P[over_P], self._prompt_P[over_P] = _FREE, 0
        self._rules.likeliest_PG[over_P] = False
        # Whoever draws from everything asks for no sorting of the vocabulary.
        self._rules.sampling.top_k_B[over_P], self._rules.sampling.top_p_B[over_P] = 0, 1


def choice_keys(seeds_P2: Array, choice_PG: Array) -> Array:
    """The keys of choices [P, G] of requests with seeds of 64 bits, high word first."""
    fold = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))
    return fold(jax.random.wrap_key_data(seeds_P2, impl=_KEYS), choice_PG)


def rungs(most: int, least: int, factor: int) -> tuple[int, ...]:
    """Sizes up to `most`, each `factor` times the one before, the first `least` or more."""
    sizes = [most]
    while -(-sizes[0] // factor) >= least:
        sizes.insert(0, -(-sizes[0] // factor))
    return tuple(sizes)


def _rung(sizes: Sequence[int], needed: int) -> int:
    """The smallest size that is enough; the largest is enough for whoever may go on."""
    return next((size for size in sizes if size >= needed), sizes[-1])
