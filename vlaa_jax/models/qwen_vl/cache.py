"""Key/value caches for decoding: the prompt's once per group, the completion's per sample.

Plain named tuples that go in and come out of jitted functions; no hidden mutable state, and the
per-prompt rope offset travels with the prefix.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class PrefixCache(NamedTuple):
    """Keys and values of P prompts, each shared by its G completions.

    Holds the prompt without its last token: that token is the first input of every completion,
    so prefill needs no logits and the first sampled token takes the same path as all others.

    Attributes:
        k_LPKSH: keys per layer, right padded to S positions.
        v_LPKSH: values.
        length_P: int, number of real positions of each prompt's prefix.
        last_id_P: int, the prompt's last token.
        last_position_P: int, its M-RoPE position (text: equal on all axes); completion input t of
            prompt p stands at ``last_position_P[p] + t``.
    """

    k_LPKSH: Array
    v_LPKSH: Array
    length_P: Array
    last_id_P: Array
    last_position_P: Array


class SuffixCache(NamedTuple):
    """Keys and values of the completions up to the present burst of decoding.

    Attributes:
        k_LPKGUH: keys per layer; U positions are allocated, 0 where bursts have no past.
        v_LPKGUH: values.
        step_P: int, number of inputs written; the same for all completions of a prompt.
    """

    k_LPKGUH: Array
    v_LPKGUH: Array
    step_P: Array


class BurstCache(NamedTuple):
    """Keys and values of the present burst.

    Apart from the past because within a burst everybody stands at the same position: a new token
    is one slice written in place, where prompts at different steps would need a scatter.

    Attributes:
        k_LPKGCH: keys per layer, C positions; or a list of [P, K, G, C, H] by layer.
        v_LPKGCH: values, likewise.
        written: int scalar, number of inputs written.
    """

    k_LPKGCH: Any
    v_LPKGCH: Any
    written: Array

    def write(self, k_LPKGH: Any, v_LPKGH: Any) -> "BurstCache":
        """One more position."""

        def put(cache: Array, new: Array) -> Array:
            axis = cache.ndim - 2
            return jax.lax.dynamic_update_slice_in_dim(
                cache, jnp.expand_dims(new, axis), self.written, axis
            )

        return BurstCache(
            jax.tree.map(put, self.k_LPKGCH, k_LPKGH),
            jax.tree.map(put, self.v_LPKGCH, v_LPKGH),
            self.written + 1,
        )


def empty_suffix(prefix: PrefixCache, completions: int, length: int) -> SuffixCache:
    """A suffix cache for G = `completions` samples per prompt and `length` tokens each."""
    layers, prompts, kv_heads, _, head_dim = prefix.k_LPKSH.shape
    shape = (layers, prompts, kv_heads, completions, length, head_dim)
    zeros = jnp.zeros(shape, prefix.k_LPKSH.dtype)
    return SuffixCache(zeros, zeros, jnp.zeros((prompts,), jnp.int32))


def empty_burst(past: SuffixCache, length: int) -> BurstCache:
    """A burst cache of `length` tokens behind a past."""
    shape = list(past.k_LPKGUH.shape)
    shape[4] = length
    zeros = jnp.zeros(shape, past.k_LPKGUH.dtype)
    return BurstCache(zeros, zeros, jnp.int32(0))


def append(past: SuffixCache, burst: BurstCache) -> SuffixCache:
    """The past with all C positions of a burst behind it, each prompt's at its own step.

    A past without positions stays so: its completions are all over. Otherwise positions beyond
    what the past has room for overwrite its end; only completions at their token limit reach there.
    """
    k_new, v_new = (
        jnp.stack(a) if isinstance(a, list) else a for a in (burst.k_LPKGCH, burst.v_LPKGCH)
    )
    steps, room = k_new.shape[4], past.k_LPKGUH.shape[4]
    if room == 0:
        return past._replace(step_P=past.step_P + steps)
    first_P1 = jnp.minimum(past.step_P, room - steps)[:, None]
    since_PU = jnp.arange(room) - first_P1
    inside = ((since_PU >= 0) & (since_PU < steps))[None, :, None, None, :, None]
    turn_PC = (jnp.arange(steps) - first_P1) % steps

    def write(cache_LPKGUH: Array, new_LPKGCH: Array) -> Array:
        # Turned so that new token i lies at (first + i) % C, repeated over all positions, and taken
        # where the burst is. A slice update at each prompt's own step would be a scatter, which
        # XLA cannot cut over GPUs and runs element by element on a CPU.
        turned = jax.vmap(lambda a, i: jnp.take(a, i, axis=3, mode="clip"), (1, 0), 1)
        repeats = -(-room // steps)
        tiled = jnp.tile(turned(new_LPKGCH, turn_PC), (1, 1, 1, 1, repeats, 1))
        return jnp.where(inside, tiled[..., :room, :], cache_LPKGUH)

    return SuffixCache(
        write(past.k_LPKGUH, k_new), write(past.v_LPKGUH, v_new), past.step_P + steps
    )
