"""Prefill, bursts of decoding, and moves between buffers, on the device.

One prompt's keys and values exist once and serve its G completions. Randomness of a completion
depends on its own key and token index alone, so a sample does not change with the buffer it sits
in, nor with the neighbours it has there.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlaa_jax.models.qwen_vl.cache import (
    BurstCache,
    PrefixCache,
    SuffixCache,
    append,
    empty_burst,
    empty_suffix,
)
from vlaa_jax.models.qwen_vl.layers import matmul, matmul_out_first
from vlaa_jax.models.qwen_vl.model import QwenVL
from vlaa_jax.rollout.rules import OneRule, RowRules

Array = jax.Array


class Buffers(NamedTuple):
    """P slots with G growing completions each; see slots.py.

    Attributes:
        prefix: the prompts' cache, one prompt per slot.
        suffix: the completions' cache.
        ids_PG: the next input of each completion.
        done_PG: the completion has ended, or the row is padding.
        keys_PG: random key of each completion.
    """

    prefix: PrefixCache
    suffix: SuffixCache
    ids_PG: Array
    done_PG: Array
    keys_PG: Array


def empty_buffers(
    part: PrefixCache, keys_P: Array, *, slots: int, completions: int, prefix: int, length: int
) -> Buffers:
    """Buffers without a completion, with the dtype and layers of a prefilled part.

    Args:
        part: prefixes of some prompts, for shapes and dtypes.
        keys_P: their keys, for the kind of key.
        slots: P.
        completions: G.
        prefix: positions of a prompt.
        length: positions of a completion.
    """
    layers, _, kv_heads, _, head_dim = part.k_LPKSH.shape
    cache = jnp.zeros((layers, slots, kv_heads, prefix, head_dim), part.k_LPKSH.dtype)
    zeros_P = jnp.zeros((slots,), jnp.int32)
    prefixes = PrefixCache(cache, cache, zeros_P, zeros_P, zeros_P)
    shape = (slots, completions)
    keys = jnp.broadcast_to(keys_P[0], shape)
    suffix = empty_suffix(prefixes, completions, length)
    return Buffers(prefixes, suffix, jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool), keys)


def insert(
    buffers: Buffers, part: PrefixCache, keys_PG: Array, slots_SU: Array, real_SU: Array
) -> Buffers:
    """Seats prefilled prompts in slots, each on its own shard.

    Args:
        buffers: where to.
        part: prefixes of shards * U prompts; may have fewer positions than the buffers.
        keys_PG: one random key per completion.
        slots_SU: slot of each prompt, counted within its shard.
        real_SU: False for prompts that are padding or not seated; these have a slot beyond all, and
            nothing of them is written.
    """
    completions = buffers.ids_PG.shape[1]
    missing = buffers.prefix.k_LPKSH.shape[3] - part.k_LPKSH.shape[3]
    widths = ((0, 0), (0, 0), (0, 0), (0, missing), (0, 0))
    part = part._replace(
        k_LPKSH=jnp.pad(part.k_LPKSH, widths), v_LPKSH=jnp.pad(part.v_LPKSH, widths)
    )

    def seat(axis: int) -> Callable[[Array, Array], Array]:
        return lambda old, new: _by_shard(_set, slots_SU, axis)(old, new)

    first_PG = jnp.repeat(part.last_id_P[:, None], completions, axis=1)
    done_PG = jnp.repeat(~real_SU.reshape(-1, 1), completions, axis=1)
    prefix = PrefixCache(
        seat(1)(buffers.prefix.k_LPKSH, part.k_LPKSH),
        seat(1)(buffers.prefix.v_LPKSH, part.v_LPKSH),
        *(seat(0)(old, new) for old, new in zip(buffers.prefix[2:], part[2:], strict=True)),
    )
    step_P = seat(0)(buffers.suffix.step_P, jnp.zeros_like(part.last_id_P))
    return Buffers(
        prefix,
        buffers.suffix._replace(step_P=step_P),
        seat(0)(buffers.ids_PG, first_PG),
        seat(0)(buffers.done_PG, done_PG),
        seat(0)(buffers.keys_PG, keys_PG),
    )


def pick_slots(buffers: Buffers, slot_SP: Array) -> Buffers:
    """Moves slots to buffers of another size: each shard's, in this order, counted within it."""

    def slots(array: Array, axis: int = 0) -> Array:
        return _by_shard(_get, slot_SP, axis)(array)

    (k, v, *prompt), (k_own, v_own, step_P), *rows = buffers
    prefix = PrefixCache(slots(k, 1), slots(v, 1), *map(slots, prompt))
    suffix = SuffixCache(slots(k_own, 1), slots(v_own, 1), slots(step_P))
    return Buffers(prefix, suffix, *map(slots, rows))


def regroup(buffers: Buffers, slot_SP: Array, row_SPG: Array, alive_SPG: Array) -> Buffers:
    """Moves completions to a smaller buffer; see slots.Regroup for the arguments."""

    def rows(array: Array, axis: int) -> Array:
        """Picks rows within slots that are already in place; `axis` counts the slots."""
        index = row_SPG.reshape(-1, row_SPG.shape[-1])
        return jax.vmap(lambda a, i: jnp.take(a, i, axis=axis), in_axes=(axis, 0), out_axes=axis)(
            array, index
        )

    prefix, suffix, ids_PG, done_PG, keys_PG = pick_slots(buffers, slot_SP)
    caches = (jnp.moveaxis(a, 3, 2) for a in (suffix.k_LPKGUH, suffix.v_LPKGUH))
    k_own, v_own = (jnp.moveaxis(rows(a, 1), 2, 3) for a in caches)
    return Buffers(
        prefix,
        SuffixCache(k_own, v_own, suffix.step_P),
        rows(ids_PG, 0),
        rows(done_PG, 0) | ~alive_SPG.reshape(-1, alive_SPG.shape[-1]),
        rows(keys_PG, 0),
    )


def group_keys(keys_P: Array, completions: int) -> Array:
    """The keys [P, G] of the completions of prompts that have one key each."""
    return jax.vmap(lambda key: jax.random.split(key, completions))(keys_P)


def lengthen(buffers: Buffers, length: int) -> Buffers:
    """Gives the completions' cache more positions."""
    k, v, step_P = buffers.suffix
    return buffers._replace(suffix=SuffixCache(_resized(k, length), _resized(v, length), step_P))


def resize(buffers: Buffers, prefix: int, length: int) -> Buffers:
    """Gives the prompts' cache `prefix` positions, and the completions' `length`.

    What is cut off must hold nothing of a completion that still grows.
    """
    k, v, *rest = buffers.prefix
    prefixes = PrefixCache(_resized(k, prefix), _resized(v, prefix), *rest)
    return lengthen(buffers._replace(prefix=prefixes), length)


def _resized(cache: Array, positions: int) -> Array:
    """A cache with zeros behind its positions, or without the last ones; [..., S, H]."""
    cache = cache[..., :positions, :]
    missing = positions - cache.shape[-2]
    return jnp.pad(cache, (*(((0, 0),) * (cache.ndim - 2)), (0, missing), (0, 0)))


def _by_shard(function: Callable[..., Array], index_SI: Array, axis: int) -> Callable[..., Array]:
    """Applies an indexing function to the slots of every shard alone.

    The slot axis is split in (shards, slots per shard); a gather or scatter that is batched over
    shards moves nothing between devices.
    """
    shards = index_SI.shape[0]

    def split(array: Array) -> Array:
        per_shard = array.shape[axis] // shards  # no -1: a cache may have no positions
        return array.reshape(*array.shape[:axis], shards, per_shard, *array.shape[axis + 1 :])

    def apply(*arrays: Array) -> Array:
        mapped = jax.vmap(
            lambda index, *own: function(axis, index, *own),
            in_axes=(0, *(axis for _ in arrays)),
            out_axes=axis,
        )
        out = mapped(index_SI, *(split(a) for a in arrays))
        both = out.shape[axis] * out.shape[axis + 1]
        return out.reshape(*out.shape[:axis], both, *out.shape[axis + 2 :])

    return apply


def _get(axis: int, index: Array, array: Array) -> Array:
    return jnp.take(array, index, axis=axis)


def _set(axis: int, index: Array, array: Array, new: Array) -> Array:
    return array.at[(slice(None),) * axis + (index,)].set(new, mode="drop")


class Burst(NamedTuple):
    """What a burst of C tokens has added; zeros behind an end.

    Attributes:
        buffers: as they are now.
        tokens_PGC: int32.
        logprobs_PGC: float32, under each completion's policy.
        likeliest: ids [P, G, C, K] and log-probabilities of the K likeliest tokens at each place,
            or nothing where K is 0.
    """

    buffers: Buffers
    tokens_PGC: Array
    logprobs_PGC: Array
    likeliest: tuple[Array, ...]


class Carry(NamedTuple):
    """What changes from token to token of a burst."""

    recent: BurstCache
    ids_PG: Array
    done_PG: Array
    tokens_PGC: Array
    logprobs_PGC: Array
    likeliest: tuple[Array, ...]

    @classmethod
    def empty(cls, recent: BurstCache, buffers: Buffers, steps: int, likeliest: int) -> "Carry":
        """Before the first token."""
        columns = (*buffers.ids_PG.shape, steps)
        tokens, logprobs = jnp.zeros(columns, jnp.int32), jnp.zeros(columns, jnp.float32)
        wanted = (jnp.int32, jnp.float32) if likeliest else ()
        best = tuple(jnp.zeros((*columns, likeliest), dtype) for dtype in wanted)
        return cls(recent, buffers.ids_PG, buffers.done_PG, tokens, logprobs, best)

    def add(
        self,
        recent: BurstCache,
        ended_PG: Array,
        drawn: tuple[Array, Array],
        best: tuple[Array, ...],
    ) -> "Carry":
        """One more token of each, its log-probability, and what was likeliest in its place."""
        count, (tokens_PG, logprobs_PG) = self.recent.written, drawn
        return Carry(
            recent,
            tokens_PG,
            self.done_PG | ended_PG,
            self.tokens_PGC.at[..., count].set(tokens_PG),
            self.logprobs_PGC.at[..., count].set(logprobs_PG),
            tuple(
                all_.at[..., count, :].set(now.reshape(*tokens_PG.shape, -1))
                for all_, now in zip(self.likeliest, best, strict=True)
            ),
        )


def burst(
    model: QwenVL,
    buffers: Buffers,
    rules: OneRule | RowRules,
    *,
    allowed_V: Array | None,
    steps: int,
    likeliest: int = 0,
) -> Burst:
    """Decodes up to `steps` tokens of every completion; stops early when all have ended.

    Args:
        model: laid out for decoding.
        buffers: where completions stand.
        rules: how tokens are drawn and when a completion ends.
        allowed_V: bool mask of ids, or None.
        steps: C.
        likeliest: K, for `RowRules` alone, which say what completions want them.
    """
    layout = model.compute.layout
    recent = empty_burst(buffers.suffix, steps)
    layers, prefix, past, recent = model.by_layer(buffers.prefix, buffers.suffix, recent)
    kernel = model.head_kernel_DV.astype(model.dtype)
    kernel, product = (kernel, matmul) if layers is None else (kernel.T, matmul_out_first)

    def growing(carry: Carry) -> Array:
        return ~carry.done_PG & rules.within(past.step_P + carry.recent.written)

    def running(carry: Carry) -> Array:
        return (carry.recent.written < steps) & jnp.any(growing(carry))

    def body(carry: Carry) -> Carry:
        hidden_PGD, recent = model.decode(prefix, past, carry.recent, carry.ids_PG, layers)
        logits_BV = product(hidden_PGD.reshape(-1, hidden_PGD.shape[-1]), kernel)
        if layout is not None:
            logits_BV = layout.pin(logits_BV, "batch", "vocab")
        step_P, growing_PG = past.step_P + carry.recent.written, growing(carry)
        keys_PG = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(0, None)))(buffers.keys_PG, step_P)
        drawn = rules.draw(logits_BV, keys_PG.reshape(-1), allowed_V)
        tokens_PG, logprobs_PG = (
            jnp.where(growing_PG, a.reshape(growing_PG.shape), 0) for a in drawn
        )
        best: tuple[Array, ...] = ()
        if likeliest and isinstance(rules, RowRules):
            best = rules.likeliest(logits_BV, allowed_V, likeliest)
        ended_PG = growing_PG & rules.ends(tokens_PG)
        return carry.add(recent, ended_PG, (tokens_PG, logprobs_PG), best)

    start = Carry.empty(recent, buffers, steps, likeliest)
    end = jax.lax.while_loop(running, body, start)
    # An early stop leaves the clock behind; everybody has ended then, but the host counts bursts.
    suffix = append(buffers.suffix, end.recent)
    buffers = buffers._replace(suffix=suffix, ids_PG=end.ids_PG, done_PG=end.done_PG)
    return Burst(buffers, end.tokens_PGC, end.logprobs_PGC, end.likeliest)
